"""A scenario that was written for an agent's tools is read back as it was meant."""

from __future__ import annotations

from profiler.emulator.tape import Tape
from profiler.scenarios import parse_scenario
from profiler.scenarios.written import written

SEARCH = {
    "type": "object",
    "properties": {
        "query": {"type": "string", "default": None, "description": 'What to "look" for\nand where'},
        "limit": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        "kind": {"enum": ["quick", None, "depth"]},
    },
    "required": ["query"],
}


def test_tools_come_back_with_their_schemas_without_null():
    text = written([("search web", "Search.", SEARCH), ("now", "", {})], 'Say "hi" {number}', "my_app:agent")
    scenario = parse_scenario(text, name="mine", source="mine.toml")
    assert [tool.name for tool in scenario.tools] == ["search web", "now"]
    assert scenario.tools[0].parameters == {
        "type": "object",
        "properties": {
            "query": {"type": "string", "description": 'What to "look" for\nand where'},
            "limit": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
            "kind": {"enum": ["quick", "depth"]},
        },
        "required": ["query"],
    }
    assert (scenario.tools[0].description, scenario.tools[1].description) == ("Search.", "now")
    assert scenario.tools[1].parameters == {"type": "object"}
    assert (scenario.prompt, scenario.description) == ('Say "hi" {number}', "tools of my_app:agent")


def test_fan_out_and_rounds_are_there_to_be_filled_in():
    text = written([("search", "", SEARCH)], "x", "my_app:agent")
    assert "rounds = 2\nfan_out = 3\n" in text
    filled = text.replace("rounds = 2\nfan_out = 3\n", "rounds = 1\nfan_out = 5\n")
    tape = Tape(parse_scenario(filled, name="mine", source="mine.toml"), seed=1)
    assert (tape.rounds(0), tape.fan_out(0, 0)) == (1, 5)
