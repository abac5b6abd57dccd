"""CONTRIBUTING.md is true: its picture is the package's, its examples run."""

from __future__ import annotations

import ast
import json
import re
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

import profiler
from profiler import metrics
from profiler.emulator.server import Emulator
from profiler.records import LoopRecord
from profiler.report.html.page import Section, _section
from profiler.scenarios import parse_scenario
from profiler.statistics.summary import summarise
from tests.unit.statistics_data import call, loop, run, trial
from tests.unit.test_emulator_server import ask

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PACKAGE = Path(profiler.__file__).parent
HOW_TO = dict(re.findall(r"^### a (\w[\w ]*)\n(.*?)(?=^###? |\Z)", TEXT, re.M | re.S))


def example(subject: str, language: str = "python") -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", HOW_TO[subject], re.M | re.S)
    return found


def run_example(subject: str, **names: object) -> dict[str, object]:
    found = {"__name__": subject, **names}
    exec(compile(example(subject), f"CONTRIBUTING.md ({subject})", "exec"), found)
    return found


# The picture


def picture() -> list[tuple[list[str], str, set[str]]]:
    """(modules, what parts them, libraries) of each line, from the top."""
    (block,) = re.findall(r"<!-- picture: .*?-->\n```\n(.*?)```", TEXT, re.S)
    lines = []
    for line in block.splitlines():
        modules, _, libraries = line[len("presentation") :].partition("←")
        separators = set(re.findall(r"[|:]", modules))
        assert len(separators) <= 1, line
        lines.append((re.findall(r"\w+", modules), "".join(separators), set(libraries.split())))
    return lines


def test_picture_has_the_layers_of_the_import_contract():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    wanted = [(re.findall(r"\w+", layer), "".join(set(re.findall(r"[|:]", layer)))) for layer in layers]
    assert [(modules, separator) for modules, separator, _ in picture()] == wanted


def test_picture_has_every_module_of_the_package_once():
    inside = {path.stem for path in PACKAGE.glob("*.py")} | {
        path.parent.name for path in PACKAGE.glob("*/__init__.py")
    }
    drawn = [module for modules, _, _ in picture() for module in modules]
    assert sorted(drawn) == sorted(inside - {"__init__"})


def imported(path: Path) -> set[str]:
    """The top names of what a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
    return {name.partition(".")[0] for name in found}


def test_picture_names_the_libraries_that_each_line_imports():
    for modules, _, libraries in picture():
        files = [path for module in modules for path in PACKAGE.rglob("*.py") if belongs(path, module)]
        found = set().union(*map(imported, files)) - sys.stdlib_module_names - {"profiler"}
        assert found == libraries, modules


def belongs(path: Path, module: str) -> bool:
    return path.relative_to(PACKAGE).parts[0] in (module, f"{module}.py")


# The examples


@pytest.mark.parametrize("subject", ["provider", "strategy", "metric", "scenario", "report section"])
def test_steps_are_fewer_than_ten_and_name_files_that_exist(subject):
    steps = re.findall(r"^(\d+)\. ((?:.+\n)(?:   .+\n)*)", HOW_TO[subject], re.M)
    assert [int(number) for number, _ in steps] == list(range(1, len(steps) + 1))
    assert 1 < len(steps) < 10
    places = (ROOT, PACKAGE, PACKAGE / "providers", PACKAGE / "report/html", ROOT / "tools/dashboards")
    for word in re.findall(r"`([\w/.]+\.(?:py|md|js|toml)|[\w/]+/)`", HOW_TO[subject]):
        if "NAME" not in word and word != "summary.json":
            assert any((place / word).exists() for place in places), word


@pytest.mark.parametrize("subject", ["provider", "strategy"])
def test_provider_and_the_strategy_run_in_the_loop(subject):
    run_example(subject)


def test_metric_is_exposed_with_its_value(monkeypatch):
    monkeypatch.setattr(metrics, "TABLE", metrics.TABLE)
    run_example("metric", record=three_rounds())


def three_rounds() -> LoopRecord:
    record = loop(0, 10.0, [(0.0, 20.0)])
    first, last = record.rounds
    failed = replace(first, tool_calls=(call(10, 20, status="error"), call(10, 5, status="timeout")))
    mixed = replace(first, tool_calls=(call(10, 20, status="error"), call(10, 5)))
    return replace(record, rounds=(failed, mixed, last))


def test_scenario_is_served_by_the_emulator():
    scenario = parse_scenario(example("scenario", "toml"), name="example", source="CONTRIBUTING.md")
    emulator = Emulator(scenario, 1, None)  # type: ignore[arg-type]
    parameters = scenario.tools[0].parameters
    tools = [{"type": "function", "function": {"name": "search", "parameters": parameters}}]
    messages: list[object] = [{"role": "user", "content": scenario.prompt.format(number=1)}]
    fan_outs = []
    for _ in range(3):
        body = {"model": "m", "messages": messages, "tools": tools}
        message = json.loads(ask(emulator, "POST", "/v1/chat/completions", body).body)["choices"][0][
            "message"
        ]
        messages.append(message)
        calls = message.get("tool_calls") or []
        fan_outs.append(len(calls))
        for made in calls:
            arguments = json.loads(made["function"]["arguments"])
            assert set(arguments) == {"query"}
            reply = ask(emulator, "POST", "/tools/search", arguments, x_toolloop_call=made["id"])
            assert reply.status == 200
            messages.append({"role": "tool", "tool_call_id": made["id"], "content": reply.body.decode()})
    assert fan_outs == [2, 2, 0]
    assert messages[-1]["content"].startswith("From 4 results")
    entries = json.loads(ask(emulator, "GET", "/emulator/journal").body)["entries"]
    tool_seconds = [entry["duration_ns"] / 1e9 for entry in entries if entry["kind"] == "tool"]
    assert len(tool_seconds) == 4
    assert all(0.05 <= seconds <= 0.15 for seconds in tool_seconds)


def test_section_shows_the_summary_s_figures():
    records = [loop(100 * k, 20.0, trial=0, number=k, strategy="<b>") for k in range(3)]
    summary = summarise(run([trial(0, "<b>", 0, 1000)]), records)
    section = _section(Section(*run_example("report section", summary=summary)["section"]))  # type: ignore[misc]
    assert '<section id="tokens" aria-labelledby="h-tokens"><h2 id="h-tokens">Tokens</h2>' in section
    assert '<td data-sort="30" class="n">30</td><td data-sort="6" class="n">6</td>' in section
    assert "<bdi>&lt;b&gt;</bdi>" in section
