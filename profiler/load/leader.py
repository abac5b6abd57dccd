"""Leads a load test through its trials, on Locust's master or in the only process.

It prepares the workers, opens and closes one trial after another on all of them, waits until all have
drained, and writes the run directory. Strategies never run mixed: the next trial begins when the last loop
of this one has ended everywhere.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections import Counter
from collections.abc import Callable

from profiler import rundir
from profiler.errors import ProfilerError, TargetError, UsageError
from profiler.load.health import meters_of
from profiler.load.messages import Returned, TrialState
from profiler.load.options import DRAIN_SECONDS, LoadOptions
from profiler.load.output import RunOutput
from profiler.load.plan import (
    WARM_UP_BLOCK,
    PlannedTrial,
    Timing,
    drain_bound,
    ramp_seconds,
    schedule,
    timing,
    turns,
)
from profiler.load.spending import Resource
from profiler.load.target import Target
from profiler.load.tool_servers import lost_said, said
from profiler.load.trial import Event
from profiler.load.workers import Ended, Workers
from profiler.loop.model import parse_model_limit
from profiler.records import Clock
from profiler.report.text import counted
from profiler.rundir import Incident, Progress, State
from profiler.statistics.objectives import AbortRule
from profiler.statistics.stillness import LEAST_SECONDS, stood_still
from profiler.strategies import effective_limits

DEFAULT_WINDOW = 10.0
"""Seconds a trial measures when nothing says how long: a start in the web UI without a run time."""

SHAPE_WINDOW = 5.0
"""The same under a load shape, each of whose steps should hold a trial of every strategy."""

SPAWN_GRACE_SECONDS = 30.0
"""How much longer than the ramp itself the leader waits for its users."""

SETTLE_SECONDS = 3.0
"""How long it waits before a trial for users that should all be there."""

SHORT_RAMP_SECONDS = 1.0
"""In a ramp up to this long agents wait for each other; in a longer one they work, unmeasured."""

DRAIN_LOOPS = 1.5
"""How long a trial is expected to drain, in mean loops, before one of its strategy has been seen to."""

SHORTEST_WINDOW = 2.0
"""Seconds for which a trial of a search measures at least, where its time is short."""

LONGEST_SPREAD = 0.5
"""Agents start within this share of the window, however long their loops take."""

CUT_SECONDS = 0.5
"""Seconds reserved at the end of a test for cancelling loops that still run."""

WATCH_SECONDS = 0.25
LIMITED_WATCH_SECONDS = 0.02
"""The same where a limit may end the trial: agents stand still from then on."""

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Ramp:
    """The ramp asked of Locust: `users` at `rate` a second, `seconds` in all (None: until stopped).

    `shaped`: a load shape decides how many users there are, and when the test is over.
    """

    users: int
    rate: float
    seconds: float | None
    shaped: bool = False


class _Quiet:
    """Whether loops ran in a trial and none ended for a while: then its records are worth a look.

    `position` is where they begin in the file.
    """

    def __init__(self, position: int) -> None:
        self.position = position
        self.long = False
        self._loops: int | None = None
        self._since_ns = 0

    def look(self, state: TrialState, now_ns: int) -> None:
        """To be called every second."""
        if state.loops != self._loops or not state.in_flight:
            self._loops, self._since_ns = state.loops, now_ns
        self.long = self.long or now_ns - self._since_ns > (LEAST_SECONDS - 2.0) * 1e9


class Leader:
    """One load test, from its first trial to its last."""

    def __init__(
        self,
        options: LoadOptions,
        ramp: Ramp,
        workers: Workers,
        target: Target,
        output: RunOutput,
        new_event: Callable[[], Event],
        clock: Clock = time.monotonic_ns,
    ) -> None:
        self.options = options
        self.output = output
        self.error: ProfilerError | None = None
        self.ended_early = False
        self._ramp = ramp
        self._workers = workers
        self._target = target
        self._clock = clock
        self._stop = new_event()
        self._spawned = new_event()
        self._started_ns = clock()
        self._longest_drain = 0.0
        self._loop_seconds: dict[tuple[str, int], float] = {}  # by strategy and number of users
        self._drains: dict[tuple[str, int], float] = {}
        self._begun_ns = self._started_ns_of_trial = 0
        self._worker_count = 0
        self._limit: Resource | None = None
        self._quiet = _Quiet(0)
        self._rule = None if options.abort_on is None else AbortRule.parse(options.abort_on)
        self._strategies = [spec.text for spec in options.strategies]
        self._turns = turns(len(options.strategies), len(options.levels), climb=options.climb)
        whole = options.uninterrupted and ramp.seconds is not None and options.trial_seconds is None
        self._timing: Timing = timing(
            turns=self._turns,
            total=None if ramp.shaped else ramp.seconds,
            window=options.trial_seconds,
            blocks=options.blocks if options.blocks is not None or not whole else 1,
            default_window=SHAPE_WINDOW if ramp.shaped else DEFAULT_WINDOW,
        )
        self._trials_in_all = None if self._timing.blocks is None else self._timing.blocks * self._turns
        self._now = Progress(time.time(), "preparing", blocks=self._timing.blocks, trials=self._trials_in_all)
        self._trial_ends_ns = 0
        self._window = self._timing.window

    # Called while `run` waits:

    def spawned(self) -> None:
        """All users are there."""
        self._spawned.set()

    def stop(self) -> None:
        """Let the trial under way be the last: its loops drain, nothing new starts."""
        self._stop.set()

    def stop_without_workers(self) -> None:
        """Stop: Locust has ended the test because the last worker is gone."""
        if self.error is None:
            self.error = ProfilerError("no worker is left to run loops; what was measured is kept")
            self.ended_early = True
            self.output.note(Incident("aborted", str(self.error)))
        self._stop.set()

    def cut(self) -> None:
        """Stop, and wait for no loop."""
        self._stop.set()
        self._workers.cut()

    def returned(self, worker: str, message: Returned) -> None:
        """A worker that was lost has found out, and left."""
        self.output.note(
            Incident("worker_returned", self._workers.describe_returned(worker, message), message.loops)
        )

    def report_progress(self) -> None:
        """Write where the test is. To be called every second."""
        if self._now.state != "finished":
            self._show(self._now.state)
            self._quiet.look(self._workers.state(), self._clock())

    # On the greenlet that leads:

    def run(self) -> None:
        """Run all trials. What ends the test early is in `error`; the run directory is whole in any case."""
        try:
            if self._ramp_up():
                self._trials()
                if self.error is None:
                    self._warn_of_strategies_without_trial()
                    self._measure_clients()
                self._stop.wait(self.options.linger_seconds)
            self._save_spent()
            self.output.save(
                finished=not self.ended_early and (not self._stop.is_set() or self._time_is_out())
            )
        except ProfilerError as error:
            if self.error is None:
                self.error = error
                self.output.note(Incident("aborted", str(error)))
        finally:
            self._show("finished")

    def _ramp_up(self) -> bool:
        """Prepare the workers and wait for the users; False when the test was stopped meanwhile."""
        workers = self._prepare_workers()
        self.output.save(
            model=self._workers.model,
            workers=len(workers),
            capacity=self._workers.capacity,
            loop_seconds=self._workers.loop_seconds,
            checks=self._workers.checks,
            mcp_servers=self._workers.mcp_servers,
        )
        self._say_checks()
        self._log_servers(len(workers))
        if self._workers.metrics_ports:
            self.output.targets(self._workers.metrics_ports, self.options.metrics_host)
        self._log_limits(len(workers))
        ramp = ramp_seconds(self._ramp.users, self._ramp.rate)
        if ramp > SHORT_RAMP_SECONDS and not self._spawned.is_set() and not self._ramp.shaped:
            _log.info("users are being spawned for some %.0f s: nothing is measured until then", ramp)
            first = next(schedule(self._strategies, 0)).strategy
            unmeasured = PlannedTrial(-1, WARM_UP_BLOCK, first)
            self._show("ramping", strategy=first)
            self._workers.begin(workers, unmeasured, self.options, self._ramp.users)
            there = self._spawned.is_set
            self._wait(
                lambda: there() or self._exhausted() or self._cannot_go_on(), ramp + SPAWN_GRACE_SECONDS
            )
            self._warn_of_short_ramp()
            self._end(workers, unmeasured)
        else:
            self._wait(self._spawned.is_set, SPAWN_GRACE_SECONDS)
            self._warn_of_short_ramp()
        return not self._stop.is_set()

    def _measure_clients(self) -> None:
        """Unless whoever stopped the test waits for its end. Of a search's test only the client in use."""
        if self._stop.is_set() and not self._time_is_out():
            return
        options = self.options
        others = () if options.until_seconds is not None else (options.other_client,)
        self._workers.measure_clients((options.client, *others))
        self.output.save(capacity=self._workers.capacity)

    def _say_checks(self) -> None:
        """Say what the first loops showed. Raises `UsageError` where that leaves a search nothing to find."""
        for check in self._workers.checks:
            fine = check.outcome in ("heeded", "not_told")
            _log.log(logging.INFO if fine else logging.WARNING, "%s", check)
            if check.outcome == "not_heeded" and self.options.window_loops:
                raise UsageError(f"nothing to tune: {check}")

    def _warn_of_short_ramp(self) -> None:
        """Say so where the run time ended the ramp. Whatever else may have ended it says so itself."""
        if not self._stop.is_set() or self._spawned.is_set() or not self._time_is_out():
            return
        interrupted = any(incident.kind == "interrupted" for incident in self.output.run.incidents)
        if self._limit is None and self.error is None and not interrupted:
            self.ended_early = True
            _log.warning(
                "stopped before all users were there: nothing was measured; spawn them faster (-r), "
                "or give it more time (-t)"
            )

    def _trials(self) -> None:
        options = self.options
        plan = schedule(
            self._strategies, options.seed, self._timing.blocks, options.levels, climb=options.climb
        )
        for planned in plan:
            if planned.index % self._turns == 0:
                self._window = self._block_window(planned.block)
            left = None if self._trials_in_all is None else self._trials_in_all - planned.index
            seconds = self._timing.fit(self._window, left, self._elapsed())
            if self._stop.is_set() or seconds <= 0 or self._exhausted():
                break
            if self.output.settled:
                self.output.note(Incident("settled", f"before trial {planned.index}"))
                break
            if options.window_loops:  # sooner a shorter window than none
                seconds = min(seconds, max(SHORTEST_WINDOW, seconds + self._time_after(planned, seconds)))
            if self._time_after(planned, seconds) < 0:
                self.output.note(Incident("out_of_time", f"before trial {planned.index}"))
                break
            self._scale(planned)
            self._trial(planned, seconds)
            if (planned.index + 1) % self._turns == 0:
                self.output.summarise()

    def _block_window(self, block: int) -> float:
        """How long each trial of a block measures: around that, it drains and its agents start one by one."""
        spread = max(self._loop_seconds.values(), default=self._workers.loop_seconds)
        return self._timing.block_window(self._turns, block, self._elapsed(), self._longest_drain + spread)

    def _time_after(self, planned: PlannedTrial, seconds: float) -> float:
        """Seconds that are left when a trial that measures so long has drained; infinite without an end."""
        until = self.options.until_seconds
        if until is None:
            return math.inf
        loop = (planned.strategy, self._wanted_users(planned))
        # Nothing is left out on suspicion: before any trial there is only the first loop, alone and perhaps a
        # long one by chance, and other strategies may take longer.
        each = self._loop_seconds.get(loop, min(self._loop_seconds.values(), default=0.0))
        if self.options.arrivals is None:
            seconds = max(seconds, self.options.window_loops * each)
        drain = min(self._drains.get(loop, DRAIN_LOOPS * each), self.options.drain_seconds)
        return until - self._clock() / 1e9 - self._spread_seconds(planned, seconds) - seconds - drain

    def _exhausted(self) -> bool:
        """Whether a limit on what may be spent is reached; then nothing more begins."""
        if self._limit is None:
            self._limit = self._workers.exhausted()
            if self._limit is not None:
                self._stop.set()
        return self._limit is not None

    def _scale(self, planned: PlannedTrial) -> None:
        """Have as many users as the trial asks for, before it begins."""
        transport = self._workers.transport
        if planned.users is not None and planned.users != transport.wanted_users():
            transport.scale(planned.users, max(self._ramp.rate, 1.0))
        # Without a change they are all there, unless a worker was lost with its users.
        patience = SETTLE_SECONDS if planned.users is None else SPAWN_GRACE_SECONDS
        self._wait(lambda: transport.users() == self._wanted_users(planned), patience)

    def _wanted_users(self, planned: PlannedTrial) -> int:
        """How many users there should be. A trial's own number comes first: Locust learns of it later."""
        return self._workers.transport.wanted_users() if planned.users is None else planned.users

    def _save_spent(self) -> None:
        grants = self._workers.grants
        self.output.save(spent=grants.total)
        if self._limit is not None:
            self.ended_early = True
            self.output.note(Incident("limited", grants.budget.stopped(self._limit, grants.total)))

    def _warn_of_strategies_without_trial(self) -> None:
        tried = {trial.strategy for trial in self.output.run.trials}
        missed = [strategy for strategy in self._strategies if strategy not in tried]
        if missed:
            _log.warning("no turn for %s: give it more time or fewer strategies", ", ".join(missed))

    def _trial(self, planned: PlannedTrial, seconds: float) -> None:
        workers = self._prepare_workers()
        wanted = self._wanted_users(planned)
        self._log_trial(planned, wanted, seconds)
        self._trial_ends_ns = self._clock() + int(seconds * 1e9)
        self._show(
            "measuring",
            strategy=planned.strategy,
            users=wanted,
            trial=planned.index + 1,
            block=planned.block + 1,
        )
        others = meters_of(self._target.others())
        spread = self._spread_seconds(planned, seconds)
        begun_ns = self._begun_ns = self._clock()
        self._quiet = _Quiet(self.output.position)
        self._workers.begin(workers, planned, self.options, self._ramp.users, spread)
        self._stop.wait(spread)
        started_ns = self._started_ns_of_trial = self._clock()
        self._trial_ends_ns = started_ns + int(seconds * 1e9)
        self._watch(planned, wanted)
        users = self._workers.transport.users()
        ended_ns = self._clock()
        health = [meter.read(name, planned.index) for name, meter in others.items()]
        self._show("draining")
        ended = self._end(workers, planned)
        drained_ns = self._clock()
        if self._cannot_go_on():
            return  # the trial is not whole; its records are kept all the same
        # Locust counts users of a worker that has just stopped, and of one that joined and waits. Agents that
        # were cut off before the end are in no answer.
        users = ended.total("agents") or users
        self._longest_drain = max(self._longest_drain, (drained_ns - ended_ns) / 1e9)
        if loops := ended.total("loops"):
            # Little's law, with half of the drain because agents leave one by one in it.
            busy_ns = ended_ns - begun_ns + (drained_ns - ended_ns) / 2
            self._loop_seconds[planned.strategy, users] = users * busy_ns / 1e9 / loops
            self._drains[planned.strategy, users] = (drained_ns - ended_ns) / 1e9
        trial = rundir.Trial(
            index=planned.index,
            block=planned.block,
            strategy=planned.strategy,
            users=users,
            started_ns=started_ns,
            ended_ns=ended_ns,
            drained_ns=drained_ns,
            interrupted=ended.total("interrupted"),
            arrived=None if self.options.arrivals is None else ended.total("arrived"),
            late=ended.total("late"),
            dropped=ended.total("dropped"),
            wanted=wanted,
        )
        run = self.output.run
        of_workers = [one.health for one in ended.drained if one.health is not None]
        self.output.save(
            trials=(*run.trials, trial),
            workers=len(workers),
            client=(*run.client, *of_workers, *health),
            spent=self._workers.grants.total,
        )

    def _log_trial(self, planned: PlannedTrial, wanted: int, seconds: float) -> None:
        if not self.options.direct:
            load = f" with {planned.users} agents" if planned.users is not None else ""
            _log.info("trial %d: %s%s for %.1f s", planned.index, planned.strategy, load, seconds)
            return
        rate = self.output.run.load.rate_of(wanted)
        calls = f"{counted(wanted, 'call')} at once" if rate is None else f"calls arrive at {rate:.3g}/s"
        several = self._timing.blocks is None or self._timing.blocks > 1
        block = f"block {planned.block + 1}: " if several else ""
        _log.info("%s%s for %.1f s", block, calls, seconds)

    def _spread_seconds(self, planned: PlannedTrial, window: float) -> float:
        """How long the agents of a closed load take to start, one after another, before the trial measures.

        About as long as a loop takes: then they are as far apart as in the long run, and loops end from the
        first second on. Agents that start together stay in step, and a window that begins with them counts no
        loop for as long as the first ones take.
        """
        if self.options.arrivals is not None or self._ramp.shaped:
            return 0.0
        loop = (planned.strategy, self._wanted_users(planned))
        return min(self._loop_seconds.get(loop, self._workers.loop_seconds), window * LONGEST_SPREAD)

    def _watch(self, planned: PlannedTrial, wanted: int) -> None:
        """Let the trial measure until its time is over, or something else ends it.

        That is a limit on what may be spent, a failure, the rule of `--abort-on`, or a change of users by a
        load shape.
        """
        tick = LIMITED_WATCH_SECONDS if self._workers.grants.limited else WATCH_SECONDS
        while not self._exhausted() and not self._stop.is_set():
            left_ns = self._trial_ends_ns - self._clock()
            if left_ns <= 0 and not self._prolong(wanted):
                return
            self._stop.wait(min(max(0.0, left_ns / 1e9), tick))
            if self._cannot_go_on():
                return
            self._workers.look(wanted)
            self._abort_if_hopeless(planned)
            if self._ramp.shaped and self._workers.transport.wanted_users() != wanted:
                return

    def _prolong(self, users: int) -> bool:
        """Let the trial under way measure on, where its loops turn out to be long; False where it may end."""
        options = self.options
        if not options.window_loops or options.until_seconds is None or options.arrivals is not None:
            return False  # without an end it would wait for ever on a server that stands still
        now_ns, loops = self._clock(), self._workers.state().loops
        if not loops:
            ends_ns = now_ns + max(10**9, now_ns - self._begun_ns)
        else:
            # Little's law: on average an agent began in the middle of the spread, and is in the middle of a
            # loop now. Of the first loops the short ones end first, so it is asked again then.
            spread_ns = self._started_ns_of_trial - self._begun_ns
            each_ns = users * (now_ns - self._begun_ns - spread_ns / 2) / (loops + users / 2)
            ends_ns = self._started_ns_of_trial + int(options.window_loops * each_ns)
        ends_ns = min(ends_ns, int((options.until_seconds - CUT_SECONDS) * 1e9))
        if ends_ns - now_ns < WATCH_SECONDS * 1e9:
            return False
        self._trial_ends_ns = ends_ns
        return True

    def _abort_if_hopeless(self, planned: PlannedTrial) -> None:
        if self._rule is None or self._stop.is_set():
            return
        state = self._workers.state()
        wrong = self._rule.broken(state.loops, state.failed)
        if wrong is not None:
            self.ended_early = True
            self.output.note(Incident("aborted", f"{planned.strategy}, trial {planned.index}: {wrong}"))
            self._stop.set()

    def _cannot_go_on(self) -> bool:
        """Whether the target is gone, or records cannot be written: then this trial is the last."""
        if self.error is None:
            gone = self._target.gone()
            error = self.output.error or (None if gone is None else TargetError(gone))
            if error is not None:
                self._abort(error)
        return self.error is not None

    def _abort(self, error: ProfilerError) -> None:
        """End the test with this error, after the trial under way."""
        if self.error is None:
            self.error, self.ended_early = error, True
            self.output.note(Incident("aborted", str(error)))
            self._stop.set()

    def _prepare_workers(self) -> list[str]:
        workers = self._workers.prepare(self.options, self._target.root)
        if len(workers) < self._worker_count:
            gone = self._worker_count - len(workers)
            left = f"between two trials: {len(workers)} workers are left, which have its agents"
            self.output.note(Incident("worker_lost", left, gone))
        self._worker_count = len(workers)
        # Until a drain has been seen, the length of a loop is the best guess at how long it takes.
        self._longest_drain = max(self._longest_drain, self._workers.loop_seconds)
        return workers

    def _end(self, workers: list[str], planned: PlannedTrial) -> Ended:
        """End the trial under way, and note the workers that were lost in it."""
        drain, until = self._drain_seconds(), self.options.until_seconds
        if until is not None:
            drain = max(0.0, min(drain, until - self._clock() / 1e9))
        ended = self._workers.end(workers, drain)
        where = f"in trial {planned.index} ({planned.strategy})" if planned.index >= 0 else "while ramping"
        if unwritten := ended.total("unwritten"):
            self.output.note(Incident("records_dropped", where, unwritten))
        if held := next((one.held for one in ended.drained if one.held is not None), None):
            self._abort(ProfilerError(held))
        lost_calls: Counter[str] = Counter()
        for one in ended.drained:
            lost_calls.update(dict(one.lost_sessions))
        for server, calls in sorted(lost_calls.items()):
            self.output.note(Incident("server_lost", f"{where}: {lost_said(server, calls)}", calls))
        for lost in ended.lost:
            self.output.note(Incident("worker_lost", f"{where}, {lost}"))
        self._worker_count -= len(ended.lost)
        if self._quiet.long and planned.index >= 0:
            self._note_stillness(where)
        return ended

    def _drain_seconds(self) -> float:
        """How long the trial that ends now may drain.

        Where tools are called as they arrive, and nothing else was asked for: until the last call has ended.
        """
        options = self.options
        if not (options.uninterrupted and options.drain_seconds == DRAIN_SECONDS):
            return options.drain_seconds
        state = self._workers.state()
        seconds = (self._clock() - self._begun_ns) / 1e9
        drain = drain_bound(state.in_flight + state.waiting, state.loops, seconds)
        if drain > DRAIN_SECONDS:
            _log.info(
                "no more calls begin: %d have not ended, which are waited for, up to %.0f s",
                *(state.in_flight + state.waiting, drain),
            )
        return drain

    def _note_stillness(self, where: str) -> None:
        """Note when the target stood still in the trial that has just drained."""
        with_tools = self.options.direct or self.options.tools_url == self._target.root
        for one in stood_still(self.output.since(self._quiet.position), with_tools):
            at = time.gmtime(self.output.run.anchor.unix(one.started_ns) / 1e9)
            waited = "1 request was" if one.waiting == 1 else f"{one.waiting} requests were"
            said = (
                f"for {one.seconds:.0f} s from {time.strftime('%H:%M:%S', at)} UTC, {where}: {waited} waiting"
            )
            self.output.note(Incident("target_stood_still", said))

    def _wait(self, true: Callable[[], bool], seconds: float) -> None:
        deadline_ns = self._clock() + int(seconds * 1e9)
        while not true() and not self._stop.is_set() and self._clock() < deadline_ns:
            self._stop.wait(0.05)

    def _elapsed(self) -> float:
        return (self._clock() - self._started_ns) / 1e9

    def _time_is_out(self) -> bool:
        """Whether the run time is over: then it is Locust that stopped the test, and not the user."""
        if self._ramp.shaped:
            return True  # the shape says when it is over
        return self._ramp.seconds is not None and self._elapsed() > self._ramp.seconds - 1.0

    def _log_limits(self, workers: int) -> None:
        options = self.options
        if options.direct and all(one.kind == "gathered" for one in options.strategies):
            return  # there is one call in a loop, and nothing between it and the server
        agents = max(options.levels, default=self._ramp.users)
        share = workers if options.share_limit else 1
        model = () if options.model_limit is None else parse_model_limit(options.model_limit)
        for line in effective_limits(
            options.strategies, model, agents=agents, processes=workers, share=share
        ):
            _log.info("%s", line)

    def _log_servers(self, workers: int) -> None:
        """Say which tools the loops have, where no command of ours has said it before the load."""
        if self.options.run_directory is None:
            agents = max(self.options.levels, default=self._ramp.users)
            per_agent = self.options.mcp_per_agent
            for line in said(self._workers.mcp_servers, agents=agents, workers=workers, per_agent=per_agent):
                _log.info("%s", line)

    def _show(self, state: State, **changes: str | int) -> None:
        trial = self._workers.state()
        self._now = dataclasses.replace(
            self._now,
            unix=time.time(),
            state=state,
            elapsed_seconds=self._elapsed(),
            seconds_left=0.0 if state == "finished" else self._seconds_left(),
            loops=trial.loops,
            failures=trial.failed,
            rate_limited=trial.rate_limited,
            in_flight=trial.in_flight,
            waiting=trial.waiting,
            lag_seconds=trial.lag_ns / 1e9,
            **changes,  # type: ignore[arg-type]
        )
        self.output.progress(self._now)

    def _seconds_left(self) -> float | None:
        if self._timing.total is not None:
            return max(0.0, self._timing.total - self._elapsed())
        if self._now.trials is None:
            return None
        each = self._window + self._longest_drain
        here = each
        if self._now.trial:
            here = max(0.0, (self._trial_ends_ns - self._clock()) / 1e9) + self._longest_drain
        return here + each * (self._now.trials - max(1, self._now.trial))
