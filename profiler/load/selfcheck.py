"""The first loop of a user's agent, under each strategy, and what it shows before the load.

`Trace` collects it while the loop runs, `judged` makes findings of it. Only what is certain is said, with its
line in the user's code where that is known.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from profiler.anatomy import peak
from profiler.load.context import agent_call
from profiler.load.places import thread_line, waiting_line
from profiler.records import LoopRecord, RoundRecord
from profiler.rundir import Check
from profiler.shortfalls import EXPLAINED
from profiler.statistics.heeding import counted
from profiler.strategies import StrategySpec
from profiler.watch.places import place_of_caller

CHECK_SECONDS = 10.0
"""How long the loop of a check may take: one that takes longer is ended, and tells nothing."""

_OWN_WAY = frozenset(("application", "application_limit", "openai_runner", "anthropic_runner", "threads"))
"""Shortfalls that are the agent's own."""


@dataclass(slots=True, eq=False)
class Trace:
    """Notes of one loop of an agent while it runs.

    `agent` is its coroutine, `task` the task and `thread` the thread that it runs in (0: an event loop's).
    `calls` and `callers`: where it waited for its calls, and where the code of each was called.
    `requests`: where model requests were made, `blocking` those of sync clients on an event loop. `foreign`:
    where it used what was made for another strategy. `nested`: where it asked for its strategy inside a call.
    """

    agent: Any = None
    task: asyncio.Task[Any] | None = None
    thread: int = 0
    observed: Any = None
    calls: Counter[str] = field(default_factory=Counter)
    callers: Counter[str] = field(default_factory=Counter)
    requests: Counter[str] = field(default_factory=Counter)
    blocking: Counter[str] = field(default_factory=Counter)
    foreign: Counter[str] = field(default_factory=Counter)
    nested: Counter[str] = field(default_factory=Counter)

    def started(self) -> None:
        """A call starts, here."""
        here = place_of_caller()
        if here is not None:
            self.callers[here] += 1
        if (place := self._where_calls_run(here)) is not None:
            self.calls[place] += 1

    def _where_calls_run(self, here: str | None) -> str | None:
        """The agent's own line, where it waits for calls that run beside it; else where it calls them."""
        loop = asyncio._get_running_loop()
        if loop is not None and asyncio.current_task(loop) is self.task:
            return here
        waits = thread_line(self.thread) if self.thread else waiting_line(self.agent)
        return waits or here

    def requested(self, asynchronous: bool) -> None:
        """A model request is about to be sent."""
        here = place_of_caller() or "the agent"
        self.requests[here] += 1
        if not asynchronous and asyncio._get_running_loop() is not None:
            self.blocking[here] += 1

    def missed(self) -> tuple[list[str], list[str]]:
        """Tools that the model asked for and no watched tool ran, and those that ran and nobody asked for."""
        rounds = [] if self.observed is None else self.observed.rounds
        unrun = {request.name for one in rounds if not one.error_type for request, _ in one.unclaimed}
        ran = [call for one in rounds for call in one.calls if not (call.request.id or call.nested)]
        return sorted(unrun), sorted({call.request.name for call in ran} - unrun)

    def note(self, where: Counter[str]) -> None:
        """Count the place of the caller in one of these."""
        where[place_of_caller() or "the agent"] += 1


def tracing(profiler: object) -> Callable[[], None]:
    """Notes where calls of a profiler's tools start. For its `on_start`."""

    def started() -> None:
        call = agent_call.get()
        if call is None or call.trace is None or call.context is None:
            return
        if call.context.profiler is not profiler:
            call.trace.note(call.trace.foreign)
        call.trace.started()

    return started


@dataclass(frozen=True, slots=True)
class Seen:
    """One loop under one strategy, after it has ended.

    `records` are its records; `unrun` the tools that it was asked to run and did not, as far as is known, and
    `unasked` those that ran under a name that nothing asked for; each with its place. `unwatched` are clients
    that nobody watches, `swallowed` tools that make results of exceptions, and where. `caps` are limits at
    module level: what, where, and how many calls they let run. `remade` are tools that each call of a plain
    agent makes anew. `mixed`: loops used each other's tools.
    """

    records: Sequence[LoopRecord]
    trace: Trace
    unrun: Mapping[str, str] = field(default_factory=dict)
    unasked: Mapping[str, str] = field(default_factory=dict)
    unwatched: Sequence[str] = ()
    swallowed: Mapping[str, str] = field(default_factory=dict)
    remade: Mapping[str, str] = field(default_factory=dict)
    caps: Sequence[tuple[str, int]] = ()
    plain: bool = False
    mixed: bool = False
    timed_out: bool = False


def judged(spec: StrategySpec, seen: Seen, share: int = 1) -> list[Check]:
    """Whether the loop heeded its strategy, and what else it showed: the first is of the strategy itself."""
    return [_heeded(spec, seen, share), *_problems(spec, seen)]


def _heeded(spec: StrategySpec, seen: Seen, share: int) -> Check:
    name = spec.text
    if seen.timed_out:
        return Check(name, "not_told", f"could not be told within {CHECK_SECONDS:g} s")
    top = [record for record in seen.records if record.parent is None]
    rounds = [round_ for record in top for round_ in record.rounds]
    asked, ran = sum(map(_asked, rounds)), sum(map(_matched, rounds))
    widest = max(map(_asked, rounds), default=0)
    if not asked:
        why = "the model asked for no tool call" if rounds else "no model request of it was seen"
        return Check(name, "not_told", f"could not be told: {why}")
    said = f"{counted(asked)} asked for, {ran} seen"
    calls = [call for one in rounds for call in one.tool_calls if not call.nested]
    most = peak((call.started_ns, call.ended_ns) for call in calls if call.started_ns is not None)
    around = sum(record.unlimited_calls or 0 for record in top)
    limit = 1 if spec.kind == "sequential" else spec.share_of_limit(share)
    if around and spec.kind in ("sequential", "limited"):
        allows = f" where {name} allows {limit}" if limit is not None and most > limit else ""
        return Check(
            name,
            "not_heeded",
            f"{said}, {most} at once{allows}, {around} of them around it: not heeded",
            _how_to_heed(seen),
        )
    if (ran < asked or seen.mixed) and spec.kind != "own":
        return Check(name, "not_told", f"{said}: could not be told")
    said += f", {most} at once"
    held = next((one for one in rounds if one.shortfall in _OWN_WAY and _asked(one) > 1), None)
    allowed = widest if limit is None else min(limit, widest)
    # A lock is not to blame where an agent awaits its calls in turn.
    least = 1 if held is not None and held.shortfall == "application_limit" else 2
    cap = next((what for what, places in seen.caps if places == most >= least), None)
    if (held is not None or cap is not None) and most < allowed and not spec.variant:
        where = _first(seen.trace.calls)
        if cap is not None:
            where = _first(seen.trace.callers)
            words, remedy = f"{cap} lets {most} run at once", "raise it, or leave it out under load"
        elif held is not None and held.shortfall is not None:
            words, remedy = EXPLAINED[held.shortfall]
        return Check(
            name,
            "not_heeded",
            f"{said} where {allowed} could be: {words}: not heeded",
            f"{where}: {remedy}" if where else remedy,
        )
    if spec.kind == "own":
        return Check(name, "heeded", said)
    if limit is None and most == 1 < widest:
        return Check(name, "not_told", f"{said}: could not be told: each had ended before the next began")
    if limit is not None and most > limit:
        return Check(name, "not_told", f"{said}: could not be told, with calls of another loop among them")
    if limit is not None and widest <= limit:
        wide = f"no reply asked for more than {counted(widest)}"
        return Check(name, "not_told", f"{said}: could not be told, since {wide}")
    as_allowed = f" as {name} allows" if limit is not None else ""
    return Check(name, "heeded", f"{said}{as_allowed}: heeded")


def _how_to_heed(seen: Seen) -> str:
    where = _first(seen.trace.calls)
    what = (
        "hand the calls over: await ctx.execute(*(partial(tool, **arguments) for each call)), or put "
        "`async with ctx.slot(name):` around each"
    )
    if seen.plain:
        what = "run its tools as tasks (asyncio.gather) or in threads: code on the event loop cannot wait"
    elif where is None and any(record.unlimited_calls and record.rounds for record in seen.records):
        what = f"give its ToolLoop strategy=ctx.strategy; or {what}"
    return f"{where}: {what}" if where else what


def _problems(spec: StrategySpec, seen: Seen) -> Iterable[Check]:
    name, trace = spec.text, seen.trace

    def found(detail: str, remedy: str) -> Check:
        return Check(name, "problem", detail, remedy)

    if trace.foreign:
        yield found(
            f"{_first(trace.foreign)} uses what the factory made for another strategy: something at module "
            "level (a registry of tools, a client, the context) keeps the last one",
            "keep it inside the factory",
        )
    if seen.mixed:
        pass  # what is missed here ran for the loop of another strategy
    elif seen.unrun and seen.unasked:
        for asked, ran in zip(seen.unrun, seen.unasked, strict=False):
            how = f'ctx.profiler.tool({ran}, name="{asked}")'
            yield found(
                f"{_at(asked, seen.unrun)} was asked for, and {_at(ran, seen.unasked)} ran: not matched",
                f"watch it under the name that the model knows: {how}",
            )
    elif seen.unrun:
        names = ", ".join(_at(one, seen.unrun) for one in seen.unrun)
        how = f"ctx.profiler.tool({next(iter(seen.unrun))})"
        if seen.plain:
            how = (
                "a function of that name, or a registry with that key, is found by itself; name others: "
                "profiler.Profiler().dispatcher(function, name=its parameter) for one that runs all tools"
            )
        yield found(f"asked for, and run by no watched tool: {names}: not seen", f"watch it: {how}")
    for tool, place in seen.remade.items():
        yield found(
            f"{tool} ({place}) is made anew by each call of the agent: under load only the first is watched, "
            "and held back",
            "define it outside of the agent",
        )
    rounds = sum(len(record.rounds) for record in seen.records)
    for client in seen.unwatched:
        yield found(
            f"{client} is not watched: its requests, and the calls they ask for, are not seen",
            "ctx.profiler.instrument(client)",
        )
    if trace.requests and not rounds and not seen.unwatched and not seen.timed_out:
        yield found(
            f"model requests were sent ({_first(trace.requests)}), and none is of this loop: not seen",
            "give the ToolLoop sinks=[ctx.sink], or have the client watched by ctx.profiler",
        )
    if trace.blocking:
        yield found(
            f"{_first(trace.blocking)} asks the model by a sync client on the event loop: while it waits, no "
            "other agent runs",
            "await the SDK's async client; or make the agent a plain `def`, which runs in a thread",
        )
    for tool, place in seen.swallowed.items():
        yield found(
            f"{tool} makes results of its exceptions ({place}): its failures count as successes, but for "
            "those whose text names a 429 or a timeout",
            "let it raise, and make a text of it where the results are put together",
        )
    if trace.nested:
        yield found(
            f"{_first(trace.nested)} asks for its strategy inside a call that has its place already, as an "
            "agent that is a tool does: its calls are not limited by themselves",
            "give the inner agent a limit of its own, or none",
        )
    orphans = sum(record.orphan_calls for record in seen.records)
    if orphans and not seen.mixed:
        yield found(
            f"{counted(orphans)} of watched tools ran outside the loop",
            "let them end before the agent does, and hand the context on to threads (copy_context().run)",
        )
    ambiguous = sum(record.ambiguous_calls for record in seen.records)
    if ambiguous:
        yield found(
            f"{counted(ambiguous)} could not be told apart",
            "are arguments changed on their way, or equal in threads without context?",
        )


def merged(checks: Sequence[Check]) -> tuple[Check, ...]:
    """The checks of all strategies: a problem that several have is said once, for all of them."""
    own = [one for one in checks if one.outcome != "problem"]
    problems: dict[tuple[str, str], list[str]] = {}
    for one in checks:
        if one.outcome == "problem":
            problems.setdefault((one.detail, one.remedy), []).append(one.strategy)
    return (
        *(
            Check("" if len(names) == len(own) else ", ".join(names), "problem", *words)
            for words, names in problems.items()
        ),
        *own,
    )


def _asked(round_: RoundRecord) -> int:
    return _matched(round_) + round_.unobserved_calls


def _matched(round_: RoundRecord) -> int:
    return sum(bool(call.id) for call in round_.tool_calls)


def _first(places: Counter[str]) -> str | None:
    return next((place for place, _ in places.most_common(1)), None)


def _at(name: str, places: Mapping[str, str]) -> str:
    return f"{name} ({places[name]})" if places.get(name) else name
