"""Whether the tools of an MCP server refused calls since an emulated model had made up their arguments."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from profiler.records import ToolCall
from profiler.rundir import McpServer, Run
from profiler.statistics.caveats import Caveat

REMEDY = (
    "have a real model ask for them (--base-url), or give arguments of your own: "
    "profiler mcp load --args-from FILE"
)


def has_emulated_model(run: Run) -> bool:
    """A model asked for the calls, and it was the embedded emulator's."""
    given = run.arguments
    return not (given.get("direct") or given.get("base_url") or given.get("agent"))


def refused_calls(servers: Iterable[McpServer], calls: Iterable[ToolCall]) -> Iterator[str]:
    """As `refused`, from the calls themselves."""
    made, raised = Counter[str](), Counter[str]()
    for call in calls:
        made[call.server or ""] += 1
        raised[call.server or ""] += call.error_type == "tool_error"
    yield from refused(servers, {name: (raised[name], count) for name, count in made.items()})


def refused(servers: Iterable[McpServer], counts: Mapping[str, tuple[int, int]]) -> Iterator[str]:
    """For each server that is not our emulator, and half of whose calls or more say that they failed, that.

    `counts`: by the server's name, how many calls a tool said had failed (`tool_error`), and how many there
    were.
    """
    for server in servers:
        raised, made = counts.get(server.name, (0, 0))
        if made and 2 * raised >= made and not server.emulated:
            yield (
                f"the tools of {server.name} refused {raised} of {made} calls (tool_error): the emulated "
                "model makes up arguments that fit their schemas, and these tools need real ones"
            )


def invented(run: Run, counts: Mapping[str, tuple[int, int]]) -> Iterator[Caveat]:
    """The caveats of a run for which that is so."""
    if has_emulated_model(run):
        for said in refused(run.mcp_servers, counts):
            yield Caveat("invented_arguments", said, REMEDY)
