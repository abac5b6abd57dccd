"""Recordings made up without a server, and what a scenario draws: whether a scenario has the distributions of
the recording that it was written from, apart from all that a machine and a load add.

`made_up` makes the records that one agent would have of `tests.capacity_server.Shape`, whose calls run one
after another: each call and reply is as long as the shape says, and none is in another's way. `drawn` has
what the emulator's tape draws.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from profiler.emulator.conversation import AUTO, Conversation, offer
from profiler.emulator.draws import Place
from profiler.emulator.tape import Tape
from profiler.prediction.scenario.file import OWN_CALL_SECONDS, OWN_REPLY_SECONDS
from profiler.prediction.simulation.work import CallWork, LoopWork, RoundWork
from profiler.records import LoopRecord, ModelCall, RoundRecord, ToolCall
from profiler.rundir import Anchor, Load, Run, Trial, machine
from profiler.scenarios import Scenario
from profiler.strategies import StrategySpec
from tests.capacity_server import Shape

GAP_NS = 10**12
"""Between loops: none is in another's way."""


@dataclass
class Drawn:
    """Seconds of calls by tool, of replies (`model`), and of loops whose calls are gathered."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    tokens: list[int] = field(default_factory=list)

    def add(self, name: str, seconds: float) -> None:
        self.seconds[name].append(seconds)


def true(shape: Shape, loops: int, first: int = 0) -> Drawn:
    """What the shape has."""
    found = Drawn()
    for record in made_up(shape, loops, first):
        wall = 0.0
        for one in record.rounds:
            found.add("model", one.model.duration_ns / 1e9)
            found.tokens.append(one.model.output_tokens or 0)
            took = [(call.ended_ns - (call.started_ns or 0)) / 1e9 for call in one.tool_calls]
            for call, seconds in zip(one.tool_calls, took, strict=True):
                found.add(call.name, seconds)
            wall += one.model.duration_ns / 1e9 + max(took, default=0.0)
        found.add("loop", wall)
    return found


def drawn(scenario: Scenario, loops: int, seed: int = 0) -> Drawn:
    """What the emulator draws."""
    tape, found = Tape(scenario, seed), Drawn()
    tools = offer({spec.name: dict(spec.parameters) for spec in scenario.tools})
    for loop in range(loops):
        turns, calls, wall = 0, 0, 0.0
        while True:
            talk = Conversation("m", False, False, tools, AUTO, True, turns, calls, None, [], None)
            places = tape.places(talk, loop)
            place = places[0] if places else Place(loop, tape.rounds(loop), 0)
            pace = tape.pace(*place)
            seconds = pace.whole or 0.0
            found.add("model", seconds)
            found.tokens.append(tape.tokens(place, 0).output or 0)
            wall += seconds
            if not places:
                break
            took = [
                (call.name, tape.duration(call.place, call.name)) for call in tape.calls(places, tools, AUTO)
            ]
            for name, one in took:
                found.add(name, one)
            wall += max(one for _, one in took)
            turns, calls = turns + 1, calls + len(places)
        found.add("loop", wall)
    return found


TOOLS = ("fetch", "search", "store")


def true_work(shape: Shape, loop: int) -> LoopWork:
    """A loop of the shape, for `profiler.prediction.simulation.engine`."""
    rounds = []
    for index in range(1000):
        seconds, tokens = shape.reply(str(loop), index)
        calls = tuple(
            CallWork(TOOLS.index(tool.name), int(shape.tool_seconds(tool, str(loop), index, place) * 1e9))
            for place, tool in enumerate(shape.calls(str(loop), index))
        )
        rounds.append(RoundWork(int(seconds * 1e9), calls, output_tokens=tokens))
        if not calls:
            break
    return LoopWork(tuple(rounds), cluster=loop)


def drawn_work(tape: Tape, loop: int) -> LoopWork:
    """A loop of the emulator, with what client and connection add."""
    tools = offer({spec.name: dict(spec.parameters) for spec in tape.scenario.tools})
    rounds: list[RoundWork] = []
    made = 0
    while True:
        talk = Conversation("m", False, False, tools, AUTO, True, len(rounds), made, None, [], None)
        places = tape.places(talk, loop)
        pace = tape.pace(*(places[0] if places else Place(loop, tape.rounds(loop), 0)))
        planned = tape.calls(places, tools, AUTO) if places else []
        calls = tuple(
            CallWork(
                TOOLS.index(call.name),
                int((tape.duration(call.place, call.name) + OWN_CALL_SECONDS) * 1e9),
            )
            for call in planned
        )
        rounds.append(RoundWork(int(((pace.whole or 0.0) + OWN_REPLY_SECONDS) * 1e9), calls))
        made += len(places)
        if not places:
            return LoopWork(tuple(rounds), cluster=loop)


def made_up(shape: Shape, loops: int, first: int = 0) -> Iterator[LoopRecord]:
    """Records of loops one after another."""
    for number in range(first, first + loops):
        started = at = number * GAP_NS
        rounds = []
        for index in range(1000):
            seconds, tokens = shape.reply(str(number), index)
            replied = at + int(seconds * 1e9)
            model = ModelCall("openai", "m", at, replied, input_tokens=100, output_tokens=tokens)
            asked = shape.calls(str(number), index)
            calls, ended = [], replied
            for place, tool in enumerate(asked):
                begun = ended
                ended = begun + int(shape.tool_seconds(tool, str(number), index, place) * 1e9)
                calls.append(
                    ToolCall(f"c{place}", tool.name, replied, begun, started_ns=begun, ended_ns=ended)
                )
            phases = (replied, ended) if calls else (None, None)
            rounds.append(RoundRecord(index, at, ended, model, *phases, tuple(calls)))
            at = ended
            if not calls:
                break
        yield LoopRecord(
            str(number), "sequential", "openai", "m", started, at, "ok", tuple(rounds), number=number, trial=0
        )


def run_of(loops: int) -> Run:
    """The run that such records are of."""
    strategy = StrategySpec("sequential", "sequential")
    trial = Trial(0, 0, "sequential", 1, 0, loops * GAP_NS, loops * GAP_NS)
    return Run(
        "made up", "openai", (strategy,), Load("closed", 1), 0, Anchor(0, 0), machine(), {}, trials=(trial,)
    )
