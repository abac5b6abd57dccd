"""Which sinks the keywords of a profiler make, and where its records are then."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from profiler import records as records_file
from profiler.errors import UsageError
from profiler.exporters.jsonl import JsonlDirectory, JsonlSink
from profiler.exporters.prometheus import PrometheusSink
from profiler.watch.profiler import Profiler


def sink(record: Any) -> None: ...


def kinds(prof: Profiler) -> list[str]:
    return [getattr(one, "__name__", type(one).__name__) for one in prof.recorder.sinks]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["PrometheusSink"]),
        ({"prometheus": False}, []),
        ({"sinks": []}, []),
        ({"sinks": [sink]}, ["sink"]),
        ({"sinks": [sink], "prometheus": True}, ["sink", "PrometheusSink"]),
        ({"records": "runs"}, ["JsonlDirectory"]),
        ({"records": Path("loops.jsonl")}, ["JsonlSink"]),
        ({"otel": True}, ["OpenTelemetrySink"]),
        (
            {"sinks": (sink,), "records": "runs", "prometheus": True, "otel": True},
            ["sink", "JsonlDirectory", "OpenTelemetrySink", "PrometheusSink"],
        ),
    ],
)
def test_keywords_add_sinks(options: Any, expected: list[str], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    prof = Profiler(**options)
    assert kinds(prof) == expected
    assert isinstance(prof.metrics, PrometheusSink) == ("PrometheusSink" in expected)
    assert not (tmp_path / "runs").exists()  # until there is a record
    for one in prof.recorder.sinks:
        if not isinstance(one, PrometheusSink) and hasattr(one, "close"):
            one.close()


def test_records_in_a_file_and_in_a_directory(tmp_path: Path) -> None:
    for where in ("new/loops.jsonl", "runs"):
        prof = Profiler(records=tmp_path / where)
        for name in ("a", "b"):
            with prof.loop(name):
                pass
        (one,) = prof.recorder.sinks
        assert isinstance(one, JsonlSink | JsonlDirectory)
        one.close()
    (file,) = (tmp_path / "runs").iterdir()
    assert file.suffix == ".jsonl"
    for path in (tmp_path / "new" / "loops.jsonl", file):
        assert [record.name for record in records_file.read(path)] == ["a", "b"]
        assert path.stat().st_mode & 0o077 == 0


def test_files_of_one_second_have_names_of_their_own(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("profiler.exporters.jsonl.time.strftime", lambda *_: "20261129-134501")
    made = [JsonlDirectory(tmp_path) for _ in range(3)]
    prof = [Profiler([one]) for one in made]
    assert [one.path for one in made] == [None] * 3
    for number, one in enumerate(prof):
        with one.loop(str(number)):
            pass
        made[number].close()
    assert [one.path.name for one in made if one.path] == [
        "20261129-134501.jsonl",
        "20261129-134501-2.jsonl",
        "20261129-134501-3.jsonl",
    ]
    assert [next(records_file.read(one.path)).name for one in made if one.path] == ["0", "1", "2"]


FORKING = """
import os, sys
from profiler.watch.profiler import Profiler
prof = Profiler(records=sys.argv[1])
with prof.loop("before"):
    pass
children = []
for number in range(3):
    child = os.fork()
    if not child:
        with prof.loop(f"child {number}"):
            pass
        with prof.loop(f"child {number} again"):
            pass
        sys.exit()
    children.append(child)
with prof.loop("after"):
    pass
for child in children:
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_forked_children_have_files_of_their_own_and_nothing_is_lost(tmp_path: Path) -> None:
    script = subprocess.run(
        [sys.executable, "-c", FORKING, tmp_path / "runs"], capture_output=True, text=True
    )
    assert (script.returncode, script.stderr) == (0, "")
    files = sorted([one.name for one in records_file.read(path)] for path in (tmp_path / "runs").iterdir())
    assert files == [["before", "after"], *([f"child {n}", f"child {n} again"] for n in range(3))]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ("", "records is a .jsonl file or a directory, not ''"),
        (7, "records is a .jsonl file or a directory, not 7"),
        ("{file}/runs", "records: .*a-file/runs: cannot make a run directory: Not a directory"),
        (
            "{file}/loops.jsonl",
            "records: .*a-file/loops.jsonl cannot be written: .*a-file is not a directory",
        ),
    ],
)
def test_records_that_cannot_be_written_are_refused(records: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "a-file").touch()
    if isinstance(records, str):
        records = records.format(file=tmp_path / "a-file")
    with pytest.raises(UsageError, match=message):
        Profiler(records=records)


def test_otel_without_opentelemetry_says_what_to_install(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    monkeypatch.delitem(sys.modules, "profiler.exporters.opentelemetry", raising=False)
    with pytest.raises(UsageError, match=r"pip install 'toolcall-profiler\[otel\]'"):
        Profiler(otel=True)


def test_metrics_that_nobody_asked_for_cannot_be_served() -> None:
    with pytest.raises(UsageError, match="prometheus=True"):
        Profiler([]).serve_metrics(0)
