"""The load of a simulation: how loops are started, drawn ones or those of a recording in their order."""

from __future__ import annotations

from dataclasses import dataclass

from profiler.arrivals import Arrivals
from profiler.prediction.simulation.work import LoopWork


@dataclass(frozen=True, slots=True)
class SimulatedLoad:
    """How loops are started, as in `rundir.Load`.

    `workers` processes run the agents; of a limit each has its part where they `share_limit`, else all of it.
    `spread_seconds`: the agents of a closed load start one after another within that time.
    """

    users: int
    arrivals: Arrivals | None = None
    max_in_flight: int | None = None
    think_seconds: float = 0.0
    workers: int = 1
    share_limit: bool = False
    spread_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Trials:
    """`blocks` trials of `seconds` each, one after another, each drained for `drain_seconds` at most."""

    seconds: float
    blocks: int = 1
    drain_seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class Chain:
    """The loops of one agent, or one source of arrivals, in the order of a recording; all times in ns.

    `process` is the place of its process. `times_ns`: in a closed load the pause before each loop (of the
    first: from the start of the trial); in an open one when each is due, from the start of the trial. `well`:
    whether it came to an answer in the recording: else the pause after it was that of a failure.
    """

    process: int
    loops: tuple[LoopWork, ...]
    times_ns: tuple[int, ...]
    well: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class RecordedTrial:
    """A trial with the loops of a recording in their order, instead of drawn ones.

    It measures for `seconds`, which begin `warm_up_ns` after its start. An agent that has run all of its
    loops before the end begins again with the first, after `again_ns`; in an open load the arrivals are
    repeated every `period_ns`. `slots`: how many loops each process may have under way (-1: any number).
    """

    chains: tuple[Chain, ...]
    is_open: bool
    warm_up_ns: int
    seconds: float
    slots: tuple[int, ...]
    again_ns: int = 0
    period_ns: int = 0
