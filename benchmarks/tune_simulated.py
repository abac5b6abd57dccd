"""Systems in virtual time that `profiler tune` can search: real loops and limits, invented servers.

A `SimulatedSystem` runs the experiments of a search as the leader of a load test does (agents that start
one after another, a window that lasts at least three loops, a drain) on an event loop in virtual time, and
leaves real run directories. `clock` is what the search reads. So a search of minutes takes seconds, and what
it finds can be held against the goodput of every limit, measured for as long as one likes.

    python -m benchmarks.tune_simulated [--only cap7,drifting] [--seeds 10] [--budgets 60,120]
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import httpx

from profiler.errors import UsageError
from profiler.load.experiment import Experiment
from profiler.load.options import LoadOptions, conditions
from profiler.load.plan import schedule
from profiler.load.spending import spent_by
from profiler.loop.loop import ToolLoop
from profiler.loop.model import CallRequest, Message, Probe, Reply, RequestOptions, ToolResult, conversation
from profiler.loop.tools import Tool, tool
from profiler.over import parse_over
from profiler.records import LoopRecord, encode
from profiler.rundir import Incident, RunDirectory, Spent, Trial
from profiler.strategies import parse_strategy
from profiler.testing import run_virtual
from profiler.tune.asked import Search
from profiler.tune.predictor import PredictedSpace, Seen, SpacePredictor
from profiler.tune.scores import Scored
from profiler.tune.search import tune

WATCH_SECONDS = 0.25
REQUEST = httpx.Request("POST", "http://tools.invalid/")


@dataclass(frozen=True, slots=True)
class System:
    """A model, and one tool that serves `capacity` calls at once; durations are lognormal (median, sigma).

    `mode`: calls above the capacity are refused (`reject`) or wait (`queue`). With `other`, the capacity of a
    second tool, half of the calls are of that. `drift`: the share by which
    tools take longer after a minute, and again after each further one. `start`: the shortest and the longest
    time, in seconds, from the start of an experiment to its first trial. With `setting` the agent is one of
    the user's own, whose setting `calls` is searched: the calls at once of the `process`, or of each loop
    (`agent`).
    """

    users: int
    capacity: int
    model: tuple[float, float] = (0.2, 0.4)
    tool: tuple[float, float] = (0.2, 0.8)
    fan_out: int = 4
    mode: str = "reject"
    drift: float = 0.0
    start: tuple[float, float] = (3.0, 6.0)
    exit: float = 0.7
    other: int = field(default=0, repr=False)
    setting: Literal["process", "agent"] | None = field(default=None, repr=False)  # repr seeds the draws

    def limits(self, spec: str) -> str:
        """What a strategy comes to here: settings are limits."""
        if self.setting is None or not spec.startswith("calls="):
            return spec
        return f"semaphore:{spec.removeprefix('calls=')}" + ("@agent" if self.setting == "agent" else "")

    @property
    def tried(self) -> list[str]:
        """What brute force tries."""
        each = self.capacity / (self.users if self.setting == "agent" else 1)
        values = {max(1, round(each * share)) for share in (0.5, 0.75, 0.9, 1.0, 1.15, 1.5, 2.0)}
        name = "semaphore:" if self.setting is None else "calls="
        if self.other:
            values |= {round(self.capacity + share * self.other) for share in (0.25, 0.5, 1.0)}
            both = [f"semaphore:work={self.capacity},other={self.other}", f"semaphore:work={self.capacity}"]
            return ["gathered", *both, *(f"{name}{one}" for one in sorted(values))]
        return [*(["gathered"] if self.setting is None else []), *(f"{name}{one}" for one in sorted(values))]


SYSTEMS = {
    "crowded60": System(60, 40, (0.3, 0.5), (0.103, 1.0)),
    "crowded120": System(120, 40, (0.3, 0.5), (0.103, 1.0)),
    "cap7": System(12, 7),
    "cap23": System(40, 23),
    "cap90": System(120, 90),
    "drifting": System(40, 23, drift=0.1),
    "queue23": System(40, 23, mode="queue"),
    "two_tools": System(60, 12, other=45),
    "setting23": System(40, 23, setting="process"),
    "setting_of_loops": System(24, 40, fan_out=8, setting="agent"),
}


class _Model:
    """Asks for the calls, then answers."""

    provider = "simulated"
    model = "simulated"
    conversation = staticmethod(conversation)

    def __init__(self, system: System, draw: random.Random) -> None:
        self._system = system
        self._draw = draw

    def render_tools(self, tools: Sequence[Tool]) -> list[str]:
        return [one.name for one in tools]

    async def request(
        self, messages: list[Message], tools: Any, options: RequestOptions, probe: Probe
    ) -> Reply:
        await asyncio.sleep(_lognormal(self._draw, self._system.model))
        if messages[-1]["role"] == "tool":
            return Reply("done", (), [{"role": "assistant", "content": "done"}], "stop", None, 10, 2)
        names = ("work", "other") if self._system.other else ("work",)
        count = self._system.fan_out
        calls = tuple(CallRequest(f"call_{k}", names[k % len(names)], "{}") for k in range(count))
        return Reply("", calls, [{"role": "assistant", "content": ""}], "tool_calls", None, 10, 5)

    def results(self, results: Sequence[ToolResult]) -> list[Message]:
        return [{"role": "tool", "content": one.content} for one in results]


def _lognormal(draw: random.Random, what: tuple[float, float]) -> float:
    median, sigma = what
    return min(20.0 + 5 * median, median * math.exp(sigma * draw.gauss(0.0, 1.0)))


class _Server:
    """The places of one server."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.places = asyncio.Semaphore(capacity)
        self.running = 0


class SimulatedSystem:
    """Runs experiments against `system` in place of `run_experiment`; `clock` is in seconds."""

    def __init__(self, system: System, seed: int, out: Path) -> None:
        self.system = system
        self.now = 1000.0
        self._began = self.now
        self._out = out
        self._draw = random.Random(f"{seed}/{system}")

    def clock(self) -> float:
        return self.now

    def run(self, experiment: Experiment, enough: Callable[[RunDirectory], bool] | None = None) -> Path:
        """One experiment, from the start of its process to its end; the path of its run directory."""
        options = experiment.options
        run = conditions(replace(options, out=str(self._out)), experiment.users)
        directory = RunDirectory.create(self._out, run)
        loop_seconds = sum(_lognormal(self._draw, self.system.model) for _ in range(2)) + max(
            _lognormal(self._draw, self.system.tool) for _ in range(self.system.fan_out)
        )
        until = math.inf if options.until_seconds is None else options.until_seconds
        self.now += self._draw.uniform(*self.system.start)
        loop_seconds = max(0.0, min(loop_seconds, until - self.now))
        self.now += loop_seconds
        trials: list[Trial] = []
        incidents: list[Incident] = []
        seen: dict[tuple[str, int], tuple[float, float]] = {}
        window = max(0.1, experiment.seconds / experiment.blocks)
        spent = Spent()
        with directory.records_path.open("wb") as file:
            for planned in schedule(
                [spec.text for spec in options.strategies],
                options.seed,
                experiment.blocks,
                options.levels,
                climb=options.climb,
            ):
                if enough is not None and trials and planned.block > trials[-1].block:
                    file.flush()
                    directory.save(replace(run, trials=tuple(trials)))
                    if enough(directory):
                        incidents.append(Incident("settled", f"before trial {planned.index}"))
                        break
                users = planned.users or experiment.users
                shortest = min((one for one, _ in seen.values()), default=0.0)
                each, drain = seen.get((planned.strategy, users), (shortest, 1.5 * shortest))
                spread = min(each or loop_seconds, window * 0.5)
                measured = max(window, options.window_loops * each)
                over = self.now + spread + measured + drain - until
                if over > 0 and options.window_loops:
                    measured = max(2.0, options.window_loops * each, measured - over)
                if self.now + spread + measured + drain > until:
                    incidents.append(Incident("out_of_time", f"before trial {planned.index}"))
                    break
                trial, records = self._trial(planned.strategy, users, spread, min(window, measured), options)
                trial = replace(trial, index=planned.index, block=planned.block)
                busy = (trial.ended_ns + trial.drained_ns) / 2e9 - (trial.started_ns / 1e9 - spread)
                if records:
                    drained = (trial.drained_ns - trial.ended_ns) / 1e9
                    seen[planned.strategy, users] = users * busy / len(records), drained
                for record in records:
                    spent += replace(spent_by(record), loops=1)
                    file.write(encode(replace(record, trial=planned.index)) + b"\n")
                trials.append(trial)
        directory.save(
            replace(
                run,
                trials=tuple(trials),
                finished=True,
                spent=spent,
                loop_seconds=loop_seconds,
                incidents=tuple(incidents),
            )
        )
        self.now += self.system.exit
        return directory.path

    def _trial(
        self, spec: str, users: int, spread: float, window: float, options: LoadOptions
    ) -> tuple[Trial, list[LoopRecord]]:
        records: list[LoopRecord] = []
        base, system, draw = self.now, self.system, self._draw
        until = math.inf if options.until_seconds is None else options.until_seconds

        async def main(clock: Callable[[], int]) -> tuple[float, float]:
            def now() -> float:
                return base + clock() / 1e9

            def now_ns() -> int:
                return round(base * 1e9) + clock()

            @tool
            async def work() -> str:
                """Work."""
                return await served(first)

            @tool
            async def other() -> str:
                """Other work."""
                return await served(second)

            async def served(server: _Server) -> str:
                slower = (1 + system.drift) ** int((now() - self._began) / 60)
                seconds = _lognormal(draw, system.tool) * slower
                if system.mode == "queue":
                    async with server.places:
                        await asyncio.sleep(seconds)
                    return "ok"
                if server.running >= server.capacity:
                    await asyncio.sleep(0.001)
                    raise httpx.HTTPStatusError(
                        "429", request=REQUEST, response=httpx.Response(429, request=REQUEST)
                    )
                server.running += 1
                try:
                    await asyncio.sleep(seconds)
                finally:
                    server.running -= 1
                return "ok"

            first, second = _Server(system.capacity), _Server(system.other)

            model = _Model(system, draw)
            loop = ToolLoop(
                model,
                [work, *([other] if system.other else [])],
                parse_strategy(system.limits(spec)).build(clock=now_ns),
                sinks=[records.append],
                clock=now_ns,
            )
            over = False

            async def agent(number: int) -> None:
                await asyncio.sleep(spread * number / users)
                while not over:
                    await loop.run("go", number=number, agent=str(number), trial=0, process="p")

            agents = [asyncio.create_task(agent(number)) for number in range(users)]
            await asyncio.sleep(spread)
            start = now()
            ends = start + window
            while True:
                if now() >= ends:
                    if not options.window_loops or math.isinf(until):
                        break
                    each = users * (now() - start + spread / 2) / (len(records) + users / 2)
                    ends = min(start + options.window_loops * each, until - 0.5)
                    if not records:
                        ends = min(now() + max(1.0, now() - start + spread), until - 0.5)
                    if ends - now() < WATCH_SECONDS:
                        break
                await asyncio.sleep(max(0.001, min(WATCH_SECONDS, ends - now())))
            ended, over = now(), True
            _, late = await asyncio.wait(agents, timeout=max(0.0, min(options.drain_seconds, until - ended)))
            for one in late:
                one.cancel()
            if late:
                await asyncio.wait(late)
            self.now = now()
            return start, ended

        start, ended = run_virtual(main)
        found = [replace(one, strategy=spec) for one in records]
        times = int(start * 1e9), int(ended * 1e9), int(self.now * 1e9)
        return Trial(0, 0, spec, users, *times), found

    def goodput(self, spec: str, seconds: float) -> float:
        """Good loops a second in a long window, in brute force."""
        trial, records = self._trial(spec, self.system.users, 2.0, seconds, LoadOptions())
        within = [one for one in records if one.good and trial.started_ns <= one.ended_ns < trial.ended_ns]
        return len(within) / ((trial.ended_ns - trial.started_ns) / 1e9)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a search found: `share` of the best, the promise's `error`, whether its interval `held`."""

    spec: str
    share: float
    error: float
    held: bool
    loops: int
    took: float
    untried: int


def search_once(
    system: System,
    seed: int,
    budget: float,
    out: Path,
    say: Callable[[str], None] = lambda text: None,
    predicting_seconds: float | None = None,
) -> tuple[Any, SimulatedSystem, float]:
    """One search: its answer, the system as it was left, and the seconds it took, all in virtual time.

    Of that `predicting_seconds` go by whenever it predicts; None: as long as that takes on this machine.
    """
    simulated = SimulatedSystem(system, seed, out)
    simulated.now += 1.5  # the command's own start
    load = LoadOptions(seed=seed, metrics=False, out=str(out))
    search = Search(load, system.users, budget=budget)
    if system.setting is not None:
        load = replace(load, agent="simulated:make_agent")
        most = 3 * system.capacity if system.setting == "process" else 2 * system.fan_out
        search = Search(load, system.users, budget=budget, over=parse_over(f"calls=1..{most}"))
    predictor = None if system.setting else _Timed(search, simulated, predicting_seconds)
    answer = tune(search, say, run=simulated.run, clock=simulated.clock, predictor=predictor)
    return answer, simulated, simulated.now - 1000.0


class _Timed:
    """Predicts that takes its time of the simulated clock as well: `seconds`, None for as long as it took.

    With `seconds` it has all the time it needs, in this process, and comes to the same each time.
    """

    def __init__(self, search: Search, simulated: SimulatedSystem, seconds: float | None) -> None:
        self._predictor = SpacePredictor(search)
        if seconds is not None:
            self._predictor = SpacePredictor(search, lambda: 0.0, 1)
        self._simulated = simulated
        self._seconds = seconds

    def _took(self, began: float) -> None:
        self._simulated.now += time.monotonic() - began if self._seconds is None else self._seconds

    def predict_space(self, parts: Sequence[RunDirectory], seen: Seen, seconds: float) -> PredictedSpace:
        began = time.monotonic()
        found = self._predictor.predict_space(parts, seen, seconds)
        self._took(began)
        return found

    def at_loads(self, specs: Sequence[str], levels: Sequence[int]) -> dict[int, list[Scored]]:
        began = time.monotonic()
        found = self._predictor.at_loads(specs, levels)
        self._took(began)
        return found

    def close(self) -> None:
        self._predictor.close()


def judged(system: System, seed: int, budget: float, out: Path, seconds: float = 60.0) -> Outcome:
    """One search, and how good its answer is."""
    answer, simulated, took = search_once(system, seed, budget, out)
    left = simulated.now
    found: dict[str, float] = {}
    for spec in [answer.setting.spec, *system.tried]:
        simulated.now = left
        if spec not in found:
            found[spec] = simulated.goodput(spec, seconds)
    simulated.now = left
    again = simulated.goodput(answer.setting.spec, 20.0)
    said, spec = answer.setting.goodput, answer.setting.spec
    held = said.low is not None and said.high is not None and said.low <= again <= said.high
    confirm = RunDirectory.open(answer.runs[-1])
    return Outcome(
        spec,
        found[spec] / max(found.values()),
        (said.value or 0.0) / found[spec] - 1 if found[spec] else 1.0,
        held,
        sum(1 for _ in confirm.records()),
        took,
        len(answer.untried),
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(SYSTEMS))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--budgets", default="60,120")
    arguments = parser.parse_args()
    missed = []
    for name in arguments.only.split(","):
        for budget in map(float, arguments.budgets.split(",")):
            outcomes, refused = [], 0
            began = time.monotonic()
            for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
                with tempfile.TemporaryDirectory() as out:
                    try:
                        one = judged(SYSTEMS[name], seed, budget, Path(out))
                    except UsageError as error:
                        print(f"  {name}, seed {seed}: {error}")
                        refused += 1
                        continue
                outcomes.append(one)
                print(
                    f"  {name}, seed {seed}: {one.spec}, {one.share:.3f} of the best, promise "
                    f"{one.error:+.1%}{'' if one.held else ', not held'}; {one.took:.0f} s",
                    flush=True,
                )
            good = sum(one.share >= 0.95 for one in outcomes)
            held = sum(one.held for one in outcomes)
            middle = statistics.median(abs(one.error) for one in outcomes) if outcomes else math.nan
            longest = max((one.took for one in outcomes), default=0.0)
            print(
                f"{name}, {budget:g} s: {good} of {arguments.seeds} within 5 % of the best, "
                f"{refused} refused; promise off by {middle:.1%} (median), held {held}; "
                f"{longest:.0f} s at most ({time.monotonic() - began:.0f} s of this machine)",
                flush=True,
            )
            fine = middle <= 0.05 or held >= 0.9 * arguments.seeds
            if good < 0.9 * arguments.seeds or not fine or longest > 1.1 * budget:
                missed.append(f"{name} {budget:g} s")
    print("missed: " + ", ".join(missed) if missed else "all within what is expected")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
