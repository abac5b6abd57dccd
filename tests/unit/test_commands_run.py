"""`profiler run`: its exit codes. The loop is made up; nothing is asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from profiler.cli import main
from profiler.errors import ProfilerError, ProviderError
from profiler.load import preparation
from profiler.load.target import Emulators
from profiler.records import INTERNAL, LoopRecord
from tests.unit.statistics_data import loop

GOOD = loop(0, 100, [(0, 200), (0, 100)])
FAILING = loop(0, 100, [(0, 200), (0, 100)], tool_status="error")
REFUSED = loop(0, 100, status="error")
DEFECT = replace(REFUSED, error_type=INTERNAL)


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Callable[[LoopRecord, Exception | None], None]:
    """Makes `run` end with this record, and this exception."""

    def instead(record: LoopRecord, error: Exception | None = None) -> None:
        async def close() -> None: ...

        def made(*_: Any) -> Any:
            def make(strategy: Any, sinks: list[Callable[[LoopRecord], None]]) -> Any:
                async def run(prompt: str, number: int) -> Any:
                    sinks[0](record)
                    if error is not None:
                        raise error
                    return SimpleNamespace(text="the answer")

                client = SimpleNamespace(close=close)
                return SimpleNamespace(run=run, model=SimpleNamespace(client=client))

            return make

        monkeypatch.setattr(preparation, "built_in_loops", made)
        monkeypatch.setattr("profiler.scenarios.tools.tool_session", lambda: None)
        for root in ("root", "tools_root"):
            monkeypatch.setattr(Emulators, root, lambda *_: "http://127.0.0.1:9")

    return instead


def gone() -> ProviderError:
    return ProviderError("openai: refused", provider="openai", error_type="refused")


@pytest.mark.parametrize(
    ("record", "error", "code", "out", "err"),
    [
        (GOOD, None, 0, "the answer\n", ""),
        (FAILING, None, 1, "the loop failed: TimeoutError (get_weather) 2\n", ""),
        (REFUSED, gone(), 3, "", "profiler: openai: refused\n"),
        # A defect is said beside the drawing, however the loop handed it on.
        (DEFECT, KeyError("x"), 70, "", "profiler: a defect of the profiler: KeyError: 'x' ("),
        (DEFECT, None, 70, "the answer\n", "profiler: 1 loop ended by a defect of the profiler (internal)"),
        (
            DEFECT,
            ProfilerError("odd"),
            70,
            "",
            "profiler: 1 loop ended by a defect of the profiler (internal)",
        ),
    ],
)
def test_run_ends_with_what_became_of_its_loop(
    ends: Callable[[LoopRecord, Exception | None], None],
    capsys: pytest.CaptureFixture[str],
    record: LoopRecord,
    error: Exception | None,
    code: int,
    out: str,
    err: str,
) -> None:
    ends(record, error)
    assert main(["run"]) == code
    said = capsys.readouterr()
    assert "model 1" in said.out
    assert out in said.out
    assert said.err.startswith(err)
    assert len(said.err.splitlines()) == bool(err)


@pytest.mark.parametrize("option", ["--slo=p95<2s", "--fail-on=p95 > 2s", "--junit=x.xml", "--format=github"])
def test_run_of_one_loop_has_no_figures_to_judge(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["run", option])
    assert left.value.code == 2
    assert f"unknown argument {option!r} (an option of compare" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["a prompt", "--prompt", "another"], "the prompt is given twice: once with --prompt, once without"),
        (["--agent", "m:f", "s.py"], "--agent is not for a script: s.py runs as it is"),
        (["--prompt", "x", "s.py"], "--prompt is not for a script: s.py runs as it is"),
        (
            ["--strategy", "gathered", "s.py"],
            "--strategy is not for a script: s.py runs its calls in its own",
        ),
        (["--client", "lean", "s.py"], "--client is not for a script: s.py runs as it is, with clients of"),
        (["--emulate", "--base-url", "http://127.0.0.1:9"], "--emulate and --base-url name two servers"),
        (["none.py"], "none.py: No such file or directory (what ends in .py is a script"),
        (["--agent", "no_such_module:agent"], "--agent no_such_module:agent: cannot import no_such_module"),
    ],
)
def test_arguments_that_contradict_are_one_clear_line(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", *argv]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("argv", [["a prompt"], ["--prompt", "a prompt"], ["--emulate", "a prompt"]])
def test_prompt_may_stand_alone(
    ends: Callable[[LoopRecord, Exception | None], None],
    argv: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    ends(GOOD, None)
    prompts = []
    built = preparation.built_in_loops

    def made(*arguments: Any) -> Any:
        make = built(*arguments)

        def noted(**options: Any) -> Any:
            loop = make(**options)

            async def run(prompt: str, number: int) -> Any:
                prompts.append(prompt)
                return await loop.run(prompt, number)

            return SimpleNamespace(run=run, model=loop.model)

        return noted

    monkeypatch.setattr(preparation, "built_in_loops", made)
    assert main(["run", *argv, "--out", str(tmp_path)]) == 0
    assert prompts == ["a prompt"]
    (run,) = tmp_path.iterdir()
    assert "Timeline" in (run / "report.html").read_text("utf-8")
