"""What processes of one load test have to have in common, and what is said where they have not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from profiler.load.identity import difference, of_files, of_scenario, own_hello
from profiler.load.messages import Hello
from profiler.scenarios import load_scenario, parse_scenario

SCENARIO = """
description = "one round of three calls"
prompt = "Question {number}"
[model]
first_token = 0.02
tokens_per_second = 0
[loop]
rounds = 1
fan_out = 3
[tools.look]
path = "/tools/look"
description = "Looks."
duration = 0.02
"""
MASTER = Hello("0.2.0", "compare.py", "aaaaaaaa", 1, 0)


@pytest.mark.parametrize(
    ("worker", "said"),
    [
        (replace(MASTER, pid=7, parent=1), None),
        (replace(MASTER, file="tmp4x_.py"), None),  # `-f -`: Locust sent it the master's
        (replace(MASTER, file="compare.py", digest=""), None),  # a folder, or an address: not known
        (replace(MASTER, version="0.1.9"), "it runs toolcall-profiler 0.1.9, the master 0.2.0"),
        (
            Hello(),
            "it runs toolcall-profiler a version that does not say which, the master 0.2.0",
        ),
        (
            replace(MASTER, file="steps.py", digest="bbbbbbbb"),
            "it runs the Locust file steps.py, the master compare.py",
        ),
        (
            replace(MASTER, digest="bbbbbbbb"),
            "it runs the Locust file compare.py with other contents than the master's",
        ),
    ],
)
def test_a_worker_that_runs_something_else_is_told_by_what(worker: Hello, said: str | None) -> None:
    assert difference(MASTER, worker) == said


def test_files_are_compared_by_their_text_and_not_by_their_line_ends(tmp_path: Path) -> None:
    one, other = tmp_path / "one.py", tmp_path / "other.py"
    one.write_bytes(b"a = 1\nb = 2\n")
    other.write_bytes(b"a = 1\r\nb = 2\r\n")
    assert of_files([str(one)]) == of_files([str(other)]) != ""
    other.write_bytes(b"a = 1\nb = 3\n")
    assert of_files([str(one)]) != of_files([str(other)])
    assert of_files([str(tmp_path)]) == of_files(["http://127.0.0.1:1/a.py"]) == of_files([]) == ""


def test_a_process_says_what_it_runs(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("a = 1\n")
    hello = own_hello([str(tmp_path / "mine.py")])
    assert (hello.file, len(hello.digest)) == ("mine.py", 8)
    assert hello.version
    assert str(tmp_path) not in repr(hello)


def test_scenarios_are_compared_by_what_they_say() -> None:
    texts = (SCENARIO, f"# quick\n{SCENARIO}", SCENARIO.replace("duration = 0.02", "duration = 0.03"))
    one, same, other = (parse_scenario(text, name="n", source="n.toml") for text in texts)
    assert of_scenario(one) == of_scenario(same) != of_scenario(other)
    assert of_scenario(load_scenario("cities")) == of_scenario(load_scenario("cities"))
