"""The exit codes: which of them applies first, and that what is said of them is the same everywhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from profiler.commands import exits
from profiler.commands.exits import Ending, complain, complaints, exit_code
from profiler.errors import ProfilerError, ProviderError, RecordError, TargetError, UsageError

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")


class Told(KeyboardInterrupt):
    """What SIGTERM raises."""

    incident = "terminated"


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        (Ending(), 0),
        (Ending(incidents={"worker_lost", "records_dropped", "settled", "out_of_time"}), 0),
        # 1: what was asked does not hold.
        (Ending(missed=True), 1),
        (Ending(incidents={"limited"}), 1),
        (Ending(incidents={"aborted"}), 1),
        (Ending(error=ProfilerError("Locust failed")), 1),
        # 3 before 1.
        (Ending(error=TargetError("refused")), 3),
        (Ending(error=ProviderError("no", provider="openai"), missed=True), 3),
        (Ending(unanswered=True, missed=True, incidents={"aborted"}), 3),
        # 130 before 3, 143 before 130.
        (Ending(incidents={"interrupted"}, unanswered=True, missed=True), 130),
        (Ending(error=KeyboardInterrupt()), 130),
        (Ending(incidents={"interrupted", "limited"}, error=TargetError("gone")), 130),
        (Ending(incidents={"interrupted", "terminated"}), 143),
        (Ending(incidents={"terminated"}, error=TargetError("gone"), missed=True), 143),
        (Ending(error=Told(), missed=True), 143),
        # 70 before all of these, also of one loop.
        (Ending(internal=1), 70),
        (Ending(internal=1, incidents={"terminated", "interrupted"}), 70),
        (Ending(internal=9, error=TargetError("gone"), missed=True), 70),
        (Ending(error=KeyError("x")), 70),
        # 2 before everything.
        (Ending(error=UsageError("no")), 2),
        (Ending(error=RecordError("no disk"), internal=1, incidents={"terminated"}), 2),
    ],
)
def test_exit_code_is_the_first_that_applies(ending: Ending, code: int) -> None:
    assert exit_code(ending) == code


@pytest.mark.parametrize(
    "said", [exits.__doc__, exits.EXIT_CODES, README], ids=["docstring", "help", "README"]
)
def test_exit_codes_are_said_alike_and_in_their_order(said: str) -> None:
    lines = said.partition("first that applies")[2]
    found = re.findall(r"^(?:\| )? *`?(\d+)`? +(?=[a-z|])", lines, re.M)[:7]
    assert list(map(int, found)) == [2, 70, 143, 130, 3, 1, 0]


def test_defect_is_said_with_the_number_of_its_loops(capsys: pytest.CaptureFixture[str]) -> None:
    assert complain(Ending(internal=3, missed=True), "runs/1") == 70
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == (
        "profiler: 3 loops ended by a defect of the profiler (internal): please report it with what --debug "
        "shows; the records are in runs/1\n"
    )
    assert next(iter(complaints(Ending(internal=1)))).startswith("1 loop ended by a defect")
    assert [*complaints(Ending(unanswered=True))] == [
        "the target never answered: nothing came back to any request"
    ]
    assert [*complaints(Ending(missed=True, incidents={"terminated"}))] == []
