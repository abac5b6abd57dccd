"""The options of a load test on the command line, and the `LoadOptions` they come to."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from profiler.commands.options import amount, port, positive, seconds, text
from profiler.load import defaults
from profiler.providers.endpoint import LOOPBACK

if TYPE_CHECKING:
    from profiler.load.options import LoadOptions


def add_load(parser: argparse.ArgumentParser) -> None:
    """How much, and from how many processes."""
    load = parser.add_argument_group("load")
    load.add_argument(
        "--users",
        type=positive,
        default=defaults.USERS,
        metavar="N",
        help=f"agents; each starts its next loop when the last one ends (default: {defaults.USERS})",
    )
    load.add_argument("--think", type=seconds, default=0.0, metavar="T", help="wait between an agent's loops")
    load.add_argument(
        "--arrivals",
        type=text,
        metavar="R/s",
        help="open load instead: loops arrive at this rate (Poisson; constant:R/s evenly spaced) and do not "
        "wait for each other; latency counts from when they were due",
    )
    load.add_argument(
        "--max-in-flight", type=positive, metavar="N", help="open load: loops at once at most; others wait"
    )
    load.add_argument(
        "--drain",
        type=seconds,
        default=defaults.DRAIN_SECONDS,
        metavar="T",
        help="wait for loops in flight at most, then cut them off and count them "
        f"(default: {defaults.DRAIN_SECONDS:g}s)",
    )
    load.add_argument(
        "--allow-remote", action="store_true", help="let the load go beyond this machine: it costs money"
    )
    load.add_argument("--workers", type=positive, default=1, metavar="N", help="processes that run agents")
    load.add_argument(
        "--share-limit",
        action="store_true",
        help="divide all limits among the processes (default: each has them whole)",
    )
    load.add_argument("--slo", type=text, metavar="S", help="what a good loop is: p95<2s,errors<1%%")
    load.add_argument("--abort-on", type=text, metavar="RULE", help="end a hopeless run early: errors>20%%")
    load.add_argument(
        "--agent",
        type=text,
        metavar="MODULE:FACTORY",
        help="load your own agent instead of the built-in loop",
    )
    load.add_argument(
        "--calibrate",
        type=seconds,
        default=defaults.CALIBRATION_SECONDS,
        metavar="T",
        help=f"measure the client alone first, 0 to skip (default: {defaults.CALIBRATION_SECONDS:g}s)",
    )
    load.add_argument(
        "--metrics-port",
        type=port,
        metavar="P",
        help="serve /metrics here (default: 9464 or the next free one)",
    )
    load.add_argument(
        "--metrics-host",
        type=text,
        default=LOOPBACK,
        metavar="H",
        help=f"address to serve /metrics on (default: {LOOPBACK}, for this machine alone)",
    )
    load.add_argument("--no-metrics", dest="metrics", action="store_false", help="serve no /metrics")
    load.add_argument(
        "--out", type=text, default="runs", metavar="DIR", help="where run directories go (default: runs)"
    )


def add_turns(parser: argparse.ArgumentParser) -> None:
    """For how long, in how many turns, under which loads: what `tune` decides by itself."""
    turns = parser.add_argument_group("turns")
    turns.add_argument(
        "--levels",
        type=text,
        metavar="N,N,…",
        help="a ladder of loads: every strategy under each number of agents",
    )
    turns.add_argument(
        "--duration",
        type=seconds,
        default=defaults.SECONDS,
        metavar="T",
        help=f"measuring time per strategy (and level): 30s, 2m (default: {defaults.SECONDS:g}s)",
    )
    turns.add_argument(
        "--blocks", type=positive, metavar="N", help="turns that every strategy gets (default: 3 to 10)"
    )


def add_spending(parser: argparse.ArgumentParser) -> None:
    """Where the load is to stop, whatever the time."""
    spending = parser.add_argument_group(
        "spending", "end the run early; warm-up and retries count, loops under way are let finish"
    )
    spending.add_argument("--max-loops", type=positive, metavar="N", help="loops")
    spending.add_argument("--max-requests", type=positive, metavar="N", help="model requests: every attempt")
    spending.add_argument("--max-tokens", type=positive, metavar="N", help="input and output tokens together")
    spending.add_argument("--max-cost", type=amount, metavar="USD", help="cost of the tokens")
    spending.add_argument(
        "--price",
        type=text,
        metavar="IN/OUT",
        help="USD per million input and output tokens (default: a table of some known models)",
    )


def add_yes(parser: argparse.ArgumentParser) -> None:
    """Consent given beforehand (`profiler.commands.consent`)."""
    parser.add_argument(
        "--yes", action="store_true", help="do not ask before a load test that leaves this machine"
    )


def load_options(arguments: argparse.Namespace, strategies: tuple[str, ...]) -> LoadOptions:
    """Of `add_target`, `add_load` and, where the command has them, the others.

    Raises `UsageError` naming the option that cannot be used.
    """
    from profiler.load.options import LoadOptions, split_levels

    return LoadOptions(
        strategies=strategies,
        provider=arguments.provider,
        scenario=arguments.scenario,
        base_url=arguments.base_url,
        tools_url=arguments.tools_url,
        model=arguments.model,
        allow_remote=arguments.allow_remote,
        tool_choice=arguments.tool_choice,
        parallel_tool_calls=arguments.parallel_tool_calls,
        stream=arguments.stream,
        max_rounds=arguments.max_rounds,
        blocks=getattr(arguments, "blocks", None),
        seed=arguments.seed,
        drain_seconds=arguments.drain,
        out=arguments.out,
        metrics_port=arguments.metrics_port,
        metrics=arguments.metrics,
        metrics_host=arguments.metrics_host,
        # A port that was asked for is one that Prometheus scrapes: the last block must not be lost.
        linger_seconds=0.0 if arguments.metrics_port is None else defaults.LINGER_SECONDS,
        agent=arguments.agent,
        arrivals=arguments.arrivals,
        think_seconds=arguments.think,
        levels=split_levels(getattr(arguments, "levels", None)),
        max_in_flight=arguments.max_in_flight,
        abort_on=arguments.abort_on,
        slo=arguments.slo,
        calibration_seconds=arguments.calibrate,
        share_limit=arguments.share_limit,
        max_loops=arguments.max_loops,
        max_requests=arguments.max_requests,
        max_tokens=arguments.max_tokens,
        max_cost=arguments.max_cost,
        price=arguments.price,
        # `tune` shows no loops.
        record_content=getattr(arguments, "record_content", False),
        redact=getattr(arguments, "redact", None),
        model_limit=arguments.model_limit,
    )
