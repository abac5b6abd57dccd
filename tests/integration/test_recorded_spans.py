"""Spans that real instrumentations wrote, against what the emulator saw of the same loops.

Needs the optional dependencies `frameworks`; where they are missing the tests are skipped, on CI (CI=true)
they fail.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from profiler.emulator.process import start_emulator
from profiler.recordings.drafts import LoopDraft, Tally, record_of
from profiler.recordings.formats import Item, Source
from profiler.recordings.otlp import Otlp
from profiler.records import LoopRecord
from tests.integration.framework_agents import need

SCENARIO = """
description = "two rounds of three calls"
prompt = "Question {number}"

[model]
first_token = 0.01
tokens_per_second = 5000

[loop]
rounds = 2
fan_out = 3

[tools.search]
description = "Search."
duration = 0.05
"""
SLACK_NS = 20_000_000
"""By which the two clocks of this machine may part while the agents run."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("pydantic_ai", "agents", "openinference.instrumentation.openai_agents"):
        need(package)
    need("opentelemetry.instrumentation.openai")
    folder = tmp_path_factory.mktemp("spans")
    (folder / "scenario.toml").write_text(SCENARIO)
    with start_emulator(str(folder / "scenario.toml")) as emulator:
        command = [sys.executable, "-m", "tests.integration.span_agents", emulator.url, str(folder)]
        done = subprocess.run(command, timeout=100, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return folder


def records(path: Path) -> list[LoopRecord]:
    format_ = Otlp()
    with path.open("rb") as stream:
        assert format_.recognises(stream.read(4096), path)
        stream.seek(0)
        read = list(format_.read(Source(path, path.name, stream), False))
    items = [one for one in read if isinstance(one, Item)]
    assert items == read
    loops = list(format_.loops(sorted(items, key=lambda one: one.at_ns), False))
    return [record_of(one, Tally()) for one in loops if isinstance(one, LoopDraft)]


@pytest.mark.parametrize("kind", ["pydantic-ai", "openinference", "openllmetry", "anthropic"])
@pytest.mark.parametrize("written", ["jsonl", "console"])
def test_spans_say_what_the_server_saw(folder: Path, kind: str, written: str) -> None:
    journal: dict[str, Any] = json.loads((folder / f"{kind}.journal").read_text())
    asked = [one for one in journal["entries"] if one["kind"] == "model"]
    answered = [one for one in asked if one["status"] == 200]
    ran = [one for one in journal["entries"] if one["kind"] == "tool"]
    loops = records(folder / f"{kind}.{written}")

    assert [loop.status for loop in loops] == ["ok", "ok"]
    if kind != "anthropic":  # its runner has no name
        assert [loop.name for loop in loops] == ["searcher", "searcher"]
    assert [[len(round_.tool_calls) for round_ in loop.rounds] for loop in loops] == [[3, 3, 0], [3, 3, 0]]
    models = [round_.model for loop in loops for round_ in loop.rounds]
    assert sum(model.attempt_count for model in models) == len(asked)
    for name in ("input_tokens", "output_tokens"):
        assert sorted(getattr(one, name) for one in models) == sorted(one[name] for one in answered)

    calls = [call for loop in loops for call in loop.tool_calls]
    assert {call.status for call in calls} == {"ok"}
    assert sorted(call.name for call in calls) == sorted(one["tool"] for one in ran)
    # A span holds its request: so do the k-th of all starts and of all ends.
    offset_ns = journal["offset_ns"]
    for call_ns, server_ns in zip(
        sorted(call.started_ns or 0 for call in calls), sorted(one["received_ns"] for one in ran), strict=True
    ):
        assert call_ns <= server_ns + offset_ns + SLACK_NS
    for call_ns, server_ns in zip(
        sorted(call.ended_ns for call in calls), sorted(one["sent_ns"] for one in ran), strict=True
    ):
        assert call_ns >= server_ns + offset_ns - SLACK_NS
    if kind == "pydantic-ai":
        assert all(model.streamed and model.first_token_ns is not None for model in models)
    if kind != "anthropic":  # its runner waits for one tool after the other
        assert all(overlap(round_.tool_calls) for loop in loops for round_ in loop.rounds[:2])


def overlap(calls: Any) -> bool:
    return max(call.started_ns for call in calls) < min(call.ended_ns for call in calls)
