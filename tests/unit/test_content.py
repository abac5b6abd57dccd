"""What is kept of what was said."""

from __future__ import annotations

import re

import pytest

from profiler import ToolLoop, tool
from profiler.loop.model import CallRequest
from profiler.providers.wire import requested_prompt
from profiler.records import decode, encode
from profiler.redaction import LOOKED_AT, MOST_CHARACTERS, Content
from profiler.report.html.markup import embedded
from profiler.report.html.waterfalls import loop as drawn
from profiler.testing import ScriptedModel, run_virtual


def test_text_is_redacted_before_it_is_cut() -> None:
    long = "x" * (MOST_CHARACTERS - 3) + "secret" + "y" * 10
    assert Content().keep(long) == f"{long[:MOST_CHARACTERS]}… (13 more characters)"
    kept = Content(lambda text: text.replace("secret", "")).keep(long)
    assert kept == f"{'x' * (MOST_CHARACTERS - 3)}yyy… (7 more characters)"


def test_of_a_long_text_only_the_beginning_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    key = "k3y-" + "s" * 5_000
    monkeypatch.setenv("MY_API_KEY", key)
    monkeypatch.setenv("OTHER_API_KEY", "Bearer 123456")
    content = Content()
    long = "x" * 1_000_000
    assert content.keep(long) == f"{long[:MOST_CHARACTERS]}… ({1_000_000 - MOST_CHARACTERS} more characters)"
    assert content.keep(long, cut=True).endswith("… (at least 995904 more characters)")
    # The look would end in the middle of a key, at whose beginning another one ends.
    text = (key + " ") * 3 + "x" * (LOOKED_AT - 3 * 5_005 - 20) + "Bearer 123456" + key + "x" * 9
    kept = "[redacted] " * 3 + "x" * (LOOKED_AT - 3 * 5_005 - 20)
    assert content.keep(text) == f"{kept}[redacted]… ({len(key) + 9} more characters)"
    assert Content(lambda text: text[-1]).keep("x" * 1_000_000 + "y") == "y"
    assert Content(lambda text: text).looks_at is None


def test_text_of_a_class_of_its_own_is_kept_as_text() -> None:
    class Own(str):
        __slots__ = ()

        def __len__(self) -> int:
            raise ValueError

        __str__ = __getitem__ = __len__  # type: ignore[assignment]

    kept = Content().keep(Own("mine"))
    assert (type(kept), kept) == (str, "mine")


def test_redact_that_fails_keeps_nothing() -> None:
    def fails(text: str) -> str:
        raise ValueError(text)

    assert Content(fails).keep("secret") == "[redact failed: ValueError]"
    assert Content(lambda text: None).keep("secret") == "[redact returned NoneType, not str]"  # type: ignore[arg-type,return-value]


def test_keys_are_never_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "abcdefgh")
    assert Content().keep("with abcdefgh") == "with [redacted]"
    assert Content(lambda text: text + "gh").keep("with abcdef") == "with [redacted]"


def test_record_has_every_text_as_redact_left_it_and_the_report_shows_it() -> None:
    @tool
    async def find(who: str) -> str:
        return f"<b>{who}</b> lives at 12 Elm Street"

    async def main(clock):
        model = ScriptedModel([[CallRequest("c", "find", '{"who": "Ann 7"}')], "Found 12"])
        looped = ToolLoop(
            model, [find], record_content=True, redact=lambda text: re.sub(r"\d", "#", text), clock=clock
        )
        return (await looped.run("Where is Ann 7?")).record

    record = run_virtual(main)
    (call,) = record.tool_calls
    assert (record.prompt, record.text) == ("Where is Ann #?", "Found ##")
    assert (call.arguments, call.result) == ('{"who": "Ann #"}', "<b>Ann #</b> lives at ## Elm Street")
    assert decode(encode(record)) == record
    details = [dict(row["detail"]) for row in drawn(record)["rows"]]
    assert details[0]["prompt"] == "Where is Ann #?"
    assert details[1]["result"] == "<b>Ann #</b> lives at ## Elm Street"
    assert details[2]["answer"] == "Found ##"
    assert "<b>" not in embedded(drawn(record))
    without = [dict(row["detail"]) for row in drawn(record, content=False)["rows"]]
    assert not any({"prompt", "answer", "arguments", "result"} & detail.keys() for detail in without)


@pytest.mark.parametrize(
    ("body", "prompt"),
    [
        (b'{"messages":[{"role":"system","content":"s"},{"role":"user","content":"hello"}]}', "hello"),
        (b'{"input":"hello"}', "hello"),
        (b'{"input":[{"role":"user","content":"a"},{"role":"user","content":"b"}]}', "b"),
        (b'{"messages":[{"role":"user","content":[{"text":"x"}]}]}', '[{"text":"x"}]'),
        (b'{"messages":[]}', None),
        (b"{}", None),
        (b"", None),
    ],
)
def test_prompt_of_a_request_is_what_the_user_said_last(body: bytes, prompt: str | None) -> None:
    assert requested_prompt(body) == prompt
