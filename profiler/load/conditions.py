"""What `run.json` says of a load test before anything has run."""

from __future__ import annotations

from dataclasses import asdict

from profiler import rundir
from profiler.load.options import LoadOptions
from profiler.rundir import Anchor, Load, Run


def conditions(options: LoadOptions, users: int) -> Run:
    """A run that is about to start on this machine: closed load, `users` agents."""
    arguments = asdict(options)
    for not_worth_repeating in ("out", "run_directory"):
        del arguments[not_worth_repeating]
    return Run(
        scenario=options.scenario,
        provider=options.provider,
        strategies=options.strategies,
        load=Load("closed", users),
        seed=options.seed,
        anchor=Anchor.now(),
        machine=rundir.machine(),
        versions=rundir.versions(),
        arguments=arguments,
        model=options.model or "",
    )
