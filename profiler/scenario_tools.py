"""The client's side of a scenario's tools: what the agents of a load test can call."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from profiler.examples import get_population, get_weather, tools_url
from profiler.scenario import Scenario, ToolSpec
from profiler.tool_http import tool_client
from profiler.tools import SchemaTool, Tool


def scenario_tools(scenario: Scenario) -> Sequence[Tool]:
    """A tool for each that the scenario names; the worked examples where it names them."""
    worked = {t.name: t for t in (get_weather, get_population)}
    return tuple(worked.get(spec.name) or _http_tool(spec) for spec in scenario.tools)


def _http_tool(spec: ToolSpec) -> Tool:
    return SchemaTool(
        partial(_ask, spec.path),
        name=spec.name,
        description=spec.description,
        parameters=spec.parameters,
        pure=True,  # the emulator's tools change nothing
    )


async def _ask(path: str, /, **arguments: Any) -> str:
    response = await tool_client().post(f"{tools_url()}{path}", json=arguments)
    response.raise_for_status()
    return response.text
