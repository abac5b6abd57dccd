"""Writes a scenario file for tools that an agent offers a model: a start, to be filled in by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import tomli_w

Offered = tuple[str, str, Mapping[str, Any]]
"""A tool as a request offers it: its name, its description, the JSON Schema of its arguments."""


def written(tools: Sequence[Offered], prompt: str, source: str) -> str:
    """The TOML of a scenario with these tools, in their order. `source` says whose they are.

    TOML has no null: a key of a schema whose value is null, and a null among values, are left out.
    """
    head = f"""\
# The work of {source}, as the emulator is to ask for it:
#     profiler compare --agent {source} --scenario ./THIS_FILE.toml
# The tools below are those that the agent offers the model. It runs them itself, so their durations and
# capacities here count only where it asks the emulator's own tools (--tools-url).
description = {json.dumps(f"tools of {source}")}
prompt = {json.dumps(prompt)}

[model]
# Seconds to the first token, and how fast the others follow.
first_token = {{ kind = "lognormal", median = 0.5, sigma = 0.4, max = 5 }}
tokens_per_second = 80

[loop]
# Fill in: how often the model asks for tools before it answers, and how many calls it asks for at once.
# A number, or a distribution: {{ kind = "uniform", low = 1, high = 4 }}
rounds = 2
fan_out = 3
"""
    tables = {}
    for name, description, schema in tools:
        tables[name] = {
            "description": description or name,
            "duration": {"kind": "lognormal", "median": 0.3, "sigma": 0.5, "max": 5},
            "parameters": {**_without_null(schema), "type": "object"},
        }
    return f"{head}\n{tomli_w.dumps({'tools': tables})}"


def _without_null(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _without_null(part) for key, part in value.items() if part is not None}
    if isinstance(value, list | tuple):
        return [_without_null(part) for part in value if part is not None]
    return value
