"""What is about to happen, said before it does, and asked about where it leaves this machine."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from profiler.load.options import LoadOptions

if TYPE_CHECKING:
    from profiler.load.estimate import Plan
    from profiler.scenarios.schema import Scenario


def add_yes(parser: argparse.ArgumentParser) -> None:
    """Consent given beforehand."""
    parser.add_argument(
        "--yes", action="store_true", help="do not ask before a load test that leaves this machine"
    )


def agreed(
    arguments: argparse.Namespace, options: LoadOptions, planned: Callable[[Scenario, bool], Plan]
) -> bool:
    """Show the plan, of a scenario and of a target that is remote or not; ask where somebody can answer.

    False, and said so, when the answer is no. Raises `UsageError` for a target that is not to be loaded.
    """
    from profiler.scenarios.schema import load_scenario

    options.check_targets(os.environ)
    scenario = load_scenario(options.scenario)
    remote = bool(options.remote_targets(os.environ))
    asks = remote and not arguments.yes and sys.stdin.isatty() and sys.stdout.isatty()
    if asks or not arguments.quiet:
        print("\n".join(planned(scenario, remote).lines()), file=sys.stderr, flush=True)
    if not asks:
        return True
    print("start? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() in ("y", "yes"):
        return True
    print("nothing was started", file=sys.stderr)
    return False
