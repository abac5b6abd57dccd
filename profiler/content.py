"""What was said, for records that are to hold it: redacted, and no longer than a bound. Pure.

Recorded only when asked for (`record_content`). Keys that this process knows are taken out in any case.
"""

from __future__ import annotations

from collections.abc import Callable

from profiler.redaction import environment_secrets, scrub

MOST_CHARACTERS = 4096
"""Of a prompt, an answer, arguments or a result; what comes after is counted and dropped."""

Redact = Callable[[str], str]
"""Gets a whole text, returns what of it may be kept."""


class Content:
    """Makes texts fit to be recorded."""

    def __init__(self, redact: Redact | None = None) -> None:
        self._redact = redact
        self._secrets = environment_secrets()

    def keep(self, text: str) -> str:
        """What is recorded of a text. Where `redact` fails, nothing of it."""
        if self._redact is not None:
            try:
                text = self._redact(text)
            except Exception as error:
                return f"[redact failed: {type(error).__name__}]"
            if not isinstance(text, str):
                return f"[redact returned {type(text).__name__}, not str]"
        text = scrub(text, self._secrets)
        more = len(text) - MOST_CHARACTERS
        return text if more <= 0 else f"{text[:MOST_CHARACTERS]}… ({more} more characters)"
