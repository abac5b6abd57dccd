"""`profiler tune`: the concurrency and the rates to set, found and proven."""

from __future__ import annotations

import argparse
import os
import sys

from profiler.commands.compare import asked_load
from profiler.commands.consent import add_yes
from profiler.errors import TargetError
from profiler.load.declared import SECONDS, TEXT, add_options
from profiler.load.options import GROUPS, LoadOptions, Size
from profiler.strategies import parse_strategies


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "tune",
        help="find the concurrency limit and the rates to set",
        epilog="examples:\n"
        "  profiler tune --scenario crowded --users 120\n"
        "  profiler tune --objective p95 --slo 'p95<2s,errors<1%' --over semaphore,rate,adaptive\n"
        "  profiler tune --stream --over semaphore,eager --budget 10m\n"
        "  profiler tune --quota openai:rpm=500,tpm=30000\n"
        "  profiler tune --agent my_app.agents:make_agent --max-cost 5 --price 2.50/10",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser, "tune", (Size, LoadOptions), GROUPS)
    add_yes(parser)
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
        metavar="KINDS",
        help="what to try: semaphore, rate, adaptive, eager (default: semaphore,adaptive)",
    )
    search.add_argument(
        "--budget",
        type=SECONDS.argument,
        default=300.0,
        metavar="T",
        help="time for everything (default: 5m)",
    )
    search.add_argument(
        "--quota",
        type=TEXT.argument,
        action="append",
        default=[],
        metavar="Q",
        help="a server's limits a minute, such as openai:rpm=500,tpm=30000 (default: what headers say)",
    )
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="print the answer as JSON, and nothing else")
    output.add_argument("--quiet", action="store_true", help="say nothing while the search runs")
    output.add_argument(
        "--allow-saturated", action="store_true", help="exit 0 even when the client was the bottleneck"
    )
    parser.set_defaults(command=main)


def main(arguments: argparse.Namespace) -> int:
    import orjson

    from profiler.commands.consent import agreed
    from profiler.load.estimate import plan
    from profiler.tune.answer import render
    from profiler.tune.quotas import parse_quota
    from profiler.tune.search import Search, tune

    size = Size.from_namespace(arguments)
    search = Search(
        load=asked_load(arguments, strategies=parse_strategies("gathered")),
        users=size.users,
        workers=size.workers,
        objective=arguments.objective,
        over=tuple(part.strip() for part in arguments.over.split(",") if part.strip()),
        budget=arguments.budget,
        quotas=tuple(parse_quota(spec) for spec in arguments.quota),
    )

    load = search.load
    if not agreed(
        arguments,
        load,
        lambda scenario, remote: plan(
            load, search.users, search.budget, search.workers, scenario, remote, search=True
        ),
    ):
        return 1

    def say(text: str) -> None:
        if not arguments.quiet:
            print(text, file=sys.stderr, flush=True)

    answer = tune(search, say)
    if arguments.json:
        data = {
            "sentence": answer.sentence,
            "headroom": answer.headroom,
            **orjson.loads(orjson.dumps(answer)),
        }
        sys.stdout.write(orjson.dumps(data, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode())
    else:
        print(render(answer))
        if load.budget().limits or load.remote_targets(os.environ):
            print(f"spent: {answer.spent}")
    if answer.failed:
        return TargetError.exit_code
    return 1 if answer.stopped is not None or (answer.invalid and not arguments.allow_saturated) else 0
