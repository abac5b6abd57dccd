"""Which calls a load without a model makes, and which it refuses to make."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from profiler.errors import UsageError
from profiler.load.calls import PlannedCall, plan_calls, read_calls
from profiler.mcp.session import ListedTool

CITY = {"type": "object", "required": ["city"], "properties": {"city": {"type": "string"}}}
SEARCH = ListedTool("search", "", CITY, read_only=True)
FIND = ListedTool("find", "", CITY, read_only=True)
DELETE = ListedTool("delete", "", CITY)


def plan(*tools: ListedTool, **given):
    return plan_calls(tools, **{"server": "files", "emulated": False, "seed": 1, **given})


def test_plan_calls_all_read_only_tools_in_turn_and_says_which_it_does_not():
    found = plan(SEARCH, DELETE, FIND)
    assert [found.call(number).tool for number in range(4)] == ["search", "find", "search", "find"]
    assert found.withheld == ("delete",)
    assert "delete (--allow-writes" in found.said


def test_plan_draws_arguments_of_the_schema_that_the_seed_decides():
    number = {"type": "object", "required": ["number"], "properties": {"number": {"type": "integer"}}}
    drawn = [plan(ListedTool("look", "", number, True), seed=seed).call(7).arguments for seed in (1, 1, 2)]
    assert set(drawn[0]) == {"number"}
    assert drawn[0] == drawn[1] != drawn[2]


def test_plan_repeats_the_arguments_that_were_given():
    found = plan(SEARCH, named=("search",), arguments={"city": "Oslo"})
    assert {json.dumps(found.call(number)) for number in range(3)} == {'["search", {"city": "Oslo"}]'}


def test_plan_cycles_the_calls_of_a_file_each_cycle_in_another_order():
    calls = [PlannedCall("search", {"city": str(number)}) for number in range(20)]
    found = plan(SEARCH, calls=calls)
    first, second = ([found.call(20 * cycle + k).arguments["city"] for k in range(20)] for cycle in (0, 1))
    assert Counter(first) == Counter(second) == Counter(str(number) for number in range(20))
    assert first != second
    assert [plan(SEARCH, calls=calls).call(k).arguments["city"] for k in range(20)] == first


def test_plan_calls_what_may_write_where_it_is_allowed_or_emulated():
    assert plan(DELETE, named=("delete",), allowed=("delete",)).call(0).tool == "delete"
    assert plan(DELETE, emulated=True).call(0).tool == "delete"


@pytest.mark.parametrize(
    ("tools", "given", "said"),
    [
        ((SEARCH,), {"named": ("serch",)}, "--call serch: files has no such tool"),
        ((SEARCH, DELETE), {"named": ("delete",)}, "--allow-writes delete"),
        ((DELETE,), {}, "none of its 1 tools says that it is read-only"),
        ((), {}, "it lists no tools"),
        ((SEARCH,), {"allowed": ("gone",)}, "--allow-writes gone: files has no such tool"),
        ((SEARCH,), {"calls": (PlannedCall("gone", {}),)}, "--args-from gone"),
        ((ListedTool("odd", "", {"type": "what"}, True),), {}, "no arguments can be drawn for odd"),
    ],
)
def test_plan_refuses_what_cannot_be_called(tools, given, said):
    with pytest.raises(UsageError, match=said):
        plan(*tools, **given)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no calls in it"),
        ('{"tool": "search"}\nnonsense\n', "calls.jsonl:2: no JSON"),
        ('{"name": "search"}\n', "calls.jsonl:1: expected"),
        ('{"tool": "search", "arguments": [1]}\n', "calls.jsonl:1: arguments must be an object"),
    ],
)
def test_file_of_calls_that_cannot_be_used_is_named_with_its_line(tmp_path: Path, text, said):
    path = tmp_path / "calls.jsonl"
    path.write_text(text)
    with pytest.raises(UsageError, match=said):
        read_calls(path)


def test_file_of_calls_may_leave_out_arguments_and_have_blank_lines(tmp_path: Path):
    path = tmp_path / "calls.jsonl"
    path.write_text('{"tool": "search", "arguments": {"city": "Rome"}}\n\n{"tool": "list"}\n')
    assert read_calls(path) == (PlannedCall("search", {"city": "Rome"}), PlannedCall("list", {}))
