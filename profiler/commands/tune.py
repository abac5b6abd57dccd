"""`profiler tune`: the concurrency and the rates to set, found and proven."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from profiler.commands import add_command, show
from profiler.commands.compare import (
    add_output,
    agreed,
    asked_load,
    check_output,
    show_as_asked,
    write_junit,
)
from profiler.commands.exits import Ending, complain
from profiler.errors import ProfilerError, TargetError
from profiler.load.declared import SECONDS, TEXT, add_options
from profiler.load.options import GROUPS, LoadOptions, Size
from profiler.process.streams import json_text
from profiler.strategies import parse_strategies

if TYPE_CHECKING:
    from profiler.commands import Commands


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "tune",
        "find the concurrency limit and the rates to set",
        main,
        "--scenario crowded --users 120",
        "--objective p95 --slo 'p95<2s,errors<1%' --over semaphore,rate,adaptive",
        "--stream --over semaphore,eager --budget 10m",
        "--quota openai:rpm=500,tpm=30000",
        "--slo 'p95<2s' --junit junit.xml --format markdown",
        "--agent my_app.agents:make_agent --max-cost 5 --price 2.50/10",
        "--over semaphore=2..64,adaptive",
        "--over semaphore:search=1..16",
        "--agent my_app.agents:make_agent --over max_concurrent_calls=1..32",
    )
    add_options(parser, "tune", (Size, LoadOptions), GROUPS)
    search = parser.add_argument_group("search")
    search.add_argument(
        "--objective",
        choices=("goodput", "p95", "throughput"),
        default="goodput",
        help="what to make best (default: goodput, loops a second with every call answered within --slo)",
    )
    search.add_argument(
        "--over",
        type=TEXT.argument,
        default="semaphore,adaptive",
        metavar="KIND[=LO..HI],…",
        help="what to try: semaphore (@agent, @tool, @server: one for each; semaphore:TOOL: of that tool), "
        "rate, adaptive, eager, sequential, gathered (default: semaphore,adaptive), within the values that "
        "are named: semaphore=2..64, rate=5..50 (a second), semaphore:search=1,2,4,8; or values of a "
        "setting that the function of --agent is called with: max_concurrent_calls=1..32",
    )
    search.add_argument(
        "--budget",
        type=SECONDS.argument,
        default=150.0,
        metavar="T",
        help="time for everything (default: 150s)",
    )
    search.add_argument(
        "--quota",
        type=TEXT.argument,
        action="append",
        default=[],
        metavar="Q",
        help="a server's limits, such as openai:rpm=500,tpm=30000; rpd, tpd: a day (default: its headers)",
    )
    add_output(parser, json="print the answer as JSON, and nothing else", running="the search runs")


def main(arguments: argparse.Namespace) -> int:
    import orjson

    from profiler.limits.known import parse_quota
    from profiler.over import parse_over
    from profiler.report import ci
    from profiler.statistics.gates import missed
    from profiler.tune.answer import findings, render
    from profiler.tune.asked import Search
    from profiler.tune.search import tune

    check_output(arguments)
    size = Size.from_namespace(arguments)
    # One strategy, for the estimate: the search tries its own, and this is the one that asks for most.
    load = asked_load(arguments, strategies=parse_strategies("gathered"))
    search = Search(
        load,
        size.users,
        size.workers,
        objective=arguments.objective,
        over=parse_over(arguments.over),
        budget=arguments.budget,
        quotas=tuple(parse_quota(spec) for spec in arguments.quota),
    )
    if not agreed(arguments, load, size, search.budget, search=True):
        return 1

    def say(text: str) -> None:
        if not arguments.quiet:
            print(text, file=sys.stderr, flush=True)

    try:
        answer = tune(search, say)
    except ProfilerError as error:
        write_junit(arguments, ci.junit_of_error(f"profiler tune: {load.scenario}", str(error)))
        raise
    outcomes = answer.outcomes(arguments.allow_saturated)
    found = findings(answer, outcomes, load.scenario)
    write_junit(arguments, ci.junit(found))
    spent = load.budget().limits or load.remote_targets(os.environ)
    if arguments.json:
        data = {
            "sentence": answer.sentence,
            "headroom": answer.headroom,
            **orjson.loads(orjson.dumps(answer)),
        }
        show(json_text(orjson.dumps(data, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)))
    elif not show_as_asked(arguments, found):
        show(render(answer) + (f"\nspent: {answer.spent}\n" if spent else "\n"))
    ending = Ending(
        error=TargetError(answer.stopped or "") if answer.failed else None,
        internal=answer.internal,
        incidents=() if answer.ended is None else (answer.ended,),
        unanswered=answer.unanswered,
        missed=missed(outcomes),
    )
    return complain(ending, ", ".join(answer.runs))
