"""The final answer: a few words that mention what the tools returned. Pure."""

from __future__ import annotations

from typing import Any

_MENTIONED = 3
_WIDTH = 48


def answer(results: list[Any]) -> str:
    """A short answer to a conversation whose tools returned `results` (texts or content blocks)."""
    if not results:
        return "There was nothing to look up, so this is the answer."
    mentioned = "; ".join(_snippet(result) for result in results[:_MENTIONED])
    more = f"; and {len(results) - _MENTIONED} more" if len(results) > _MENTIONED else ""
    return f"From {len(results)} results: {mentioned}{more}."


def _snippet(result: Any) -> str:
    if isinstance(result, list):
        texts = [block.get("text") for block in result if isinstance(block, dict)]
        result = next((text for text in texts if isinstance(text, str)), "")
    text = " ".join(str(result)[: _WIDTH * 4].split())
    return text if len(text) <= _WIDTH else text[: _WIDTH - 3] + "..."
