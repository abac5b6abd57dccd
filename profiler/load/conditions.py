"""What `run.json` says of a load test before anything has run."""

from __future__ import annotations

from dataclasses import asdict

from profiler import rundir
from profiler.load.options import LoadOptions
from profiler.load.pacing import Arrivals
from profiler.rundir import Anchor, Load, Run


def conditions(options: LoadOptions, users: int) -> Run:
    """A run that is about to start on this machine, with `users` agents (the most of its `levels`)."""
    most = max(options.levels, default=users)
    load = Load("closed", most, think_seconds=options.think_seconds)
    if options.arrivals is not None:
        rate = Arrivals.parse(options.arrivals, users).expected(most, 1.0)
        load = Load("open", most, arrivals=options.arrivals, rate=rate)
    arguments = asdict(options)
    for not_worth_repeating in ("out", "run_directory"):
        del arguments[not_worth_repeating]
    return Run(
        scenario=options.scenario,
        provider=options.provider,
        strategies=options.strategies,
        load=load,
        seed=options.seed,
        anchor=Anchor.now(),
        machine=rundir.machine(),
        versions=rundir.versions(),
        arguments=arguments,
        model=options.model or "",
        slo=options.slo,
    )
