"""`profiler predict`: what a run would show, from one that was recorded; nothing is run."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from profiler.commands import add_command, show
from profiler.commands.exits import Ending, complain
from profiler.errors import UsageError, did_you_mean
from profiler.load.declared import COUNT, SEED, TEXT, Kind, add_options
from profiler.load.options import GROUPS, LoadOptions, Size, check_load
from profiler.process.streams import json_text

if TYPE_CHECKING:
    from profiler.commands import Commands
    from profiler.prediction.asking import Asked
    from profiler.prediction.capacity import Capacity
    from profiler.prediction.fitting import Fitted
    from profiler.prediction.predict import Predicted
    from profiler.prediction.processes import Predictor, Settings
    from profiler.rundir import Load, Run, RunDirectory
    from profiler.strategies import StrategySpec

FACTOR = 1000.0
"""The largest factor of a duration, and 1 by the smallest."""

MOST_VALUES = 9
"""Values of a range of `--over` that are predicted."""


def _factor(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a factor, such as 0.5 (half as long) or 2") from None


def _tool_factor(text: str) -> tuple[str, float]:
    name, equals, value = text.rpartition("=")
    if not equals or not name.strip():
        raise ValueError(f"{text!r}: expected TOOL=FACTOR, such as search=0.5")
    return name.strip(), float(_FACTOR.checked(_factor(value)))


_FACTOR = Kind(_factor, str, 1 / FACTOR, FACTOR, "F")
_TOOL_FACTOR = Kind(_tool_factor, metavar="TOOL=F")


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "predict",
        "what a run would show, from one that was recorded: without running it",
        main,
        "runs/20260101-120000 --strategy semaphore:8 --strategy gathered --users 40",
        "runs/20260101-120000 --levels 10,20,40 --slo 'p95<2s,errors<1%'",
        "runs/20260101-120000 --over semaphore=2..64 --users 60",
        "runs/20260101-120000 --quota openai:rpm=500,tpm=30000",
        "runs/20260101-120000 --tool-time search=0.5 --model-time 2",
        "runs/20260101-120000 --check",
    )
    parser.add_argument(
        "run",
        type=TEXT.argument,
        metavar="RUN",
        help="the run directory to predict from, of any command that makes one; what is not said below is as "
        "it was there",
    )
    add_options(parser, "predict", (Size, LoadOptions), GROUPS, defaults=False)
    group = parser.add_argument_group("prediction")
    group.add_argument(
        "--over",
        type=TEXT.argument,
        metavar="KINDS",
        help="a curve over limits: semaphore=2..64, semaphore:search=1..16, rate=5..50, adaptive",
    )
    group.add_argument(
        "--quota",
        type=TEXT.argument,
        action="append",
        default=[],
        metavar="Q",
        help="the model server's limits, such as openai:rpm=500,tpm=30000; rpd, tpd: a day (default: those "
        "that the recording shows)",
    )
    group.add_argument(
        "--tool-time",
        type=_TOOL_FACTOR.argument,
        action="append",
        default=[],
        metavar="TOOL=F",
        help="calls of this tool take F times as long (search=0.5: half); may be repeated",
    )
    group.add_argument(
        "--model-time",
        type=_FACTOR.argument,
        default=1.0,
        metavar="F",
        help="model requests take F times as long",
    )
    group.add_argument(
        "--check",
        action="store_true",
        help="how well the recording predicts itself: each level and each strategy in turn is left out and "
        "predicted from the others; how far off that was is kept for the report",
    )
    group.add_argument(
        "--replicates",
        type=COUNT.argument,
        metavar="N",
        help="simulated runs of each strategy and load, of which the bands are (default: 40)",
    )
    group.add_argument(
        "--seed", type=SEED.argument, default=1, metavar="N", help="seed of the simulated runs (default: 1)"
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--json", action="store_true", help="print the prediction as JSON, in the shape of compare's"
    )
    output.add_argument("--quiet", action="store_true", help="say nothing while it predicts")


CHECKED_WITHOUT = (
    *("strategy", "users", "levels", "arrivals", "think", "max_in_flight", "workers", "duration", "blocks"),
    *("drain", "share_limit", "slo", "over", "quota", "tool_time"),
)
"""Options that ask for another run than the recorded one, which `--check` is about."""


def main(arguments: argparse.Namespace) -> int:
    from profiler.rundir import RunDirectory

    directory = RunDirectory.open(arguments.run)
    run = directory.load()
    if arguments.check:
        return _check(arguments, directory, run)
    return _predict(arguments, directory, run)


def _predict(arguments: argparse.Namespace, directory: RunDirectory, run: Run) -> int:
    import orjson

    from profiler.limits.known import parse_quota
    from profiler.prediction.answering import answer_of
    from profiler.prediction.fitting import fit_run
    from profiler.prediction.processes import Predictor, cores
    from profiler.prediction.quotas.given import given_quota, given_words
    from profiler.prediction.support import invalid_of
    from profiler.report.prediction import render_prediction
    from profiler.report.text import use_color

    request = request_of(arguments, run)
    settings = settings_of(arguments, run)
    quotas = [parse_quota(spec) for spec in arguments.quota]
    _say(arguments, f"reading {arguments.run}")
    records = list(directory.records())
    invalid, doubts = invalid_of(run, records)
    settings = replace(settings, invalid=invalid)
    fitted = fit_run(run, records, seed=settings.seed, invalid=invalid)
    check_tools(request.asked, fitted)
    request = replace(request, asked=replace(request.asked, quota=given_quota(quotas, fitted)))
    with Predictor(fitted, settings, cores(), _progress(arguments, "predicted")) as predictor:
        predicted = predictor(request.asked.questions())
        capacities = _capacities(request, predicted, fitted, predictor, arguments.quota)
    answer = answer_of(
        run,
        arguments.run,
        fitted,
        request.asked,
        predicted,
        load=request.load,
        replicates=settings.replicates,
        seed=settings.seed,
        objective=settings.objective,
        over=request.curves,
        capacities=capacities,
        changed=request.changed,
        warned=given_words(quotas, fitted),
        invalid=doubts,
    )
    if arguments.json:
        show(json_text(orjson.dumps(answer, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)))
    else:
        width = min(shutil.get_terminal_size().columns, 100)
        show(render_prediction(answer, width, use_color(sys.stdout, os.environ)))
    missed = not answer.told
    if arguments.slo is not None and answer.told:
        missed = not any(one.objective_met for one in answer.every_level[0].strategies)
    return complain(Ending(missed=missed))


def _check(arguments: argparse.Namespace, directory: RunDirectory, run: Run) -> int:
    import orjson

    from profiler.prediction.processes import check_run, cores
    from profiler.prediction.support import invalid_of
    from profiler.report.prediction import render_check
    from profiler.report.text import use_color

    for name in CHECKED_WITHOUT:
        if getattr(arguments, name) not in (None, False, []):
            flag = "--" + name.replace("_", "-")
            raise UsageError(f"--check predicts the recorded settings themselves: leave out {flag}")
    if arguments.model_time != 1.0:
        raise UsageError("--check predicts the recorded settings themselves: leave out --model-time")
    settings = settings_of(arguments, run)
    _say(arguments, f"reading {arguments.run}")
    records = list(directory.records())
    settings = replace(settings, invalid=invalid_of(run, records)[0])
    found = check_run(run, records, settings, cores(), _progress(arguments, "left out and predicted"))
    if arguments.json:
        show(json_text(orjson.dumps(found, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)))
    else:
        width = min(shutil.get_terminal_size().columns, 100)
        show(render_check(found, width, use_color(sys.stdout, os.environ)))
    # Printed first: where it cannot be kept, the minutes that it took are not lost.
    if found.cells:
        directory.save_prediction(found)
        if not arguments.json:
            show(f"kept in {directory.prediction_path}; profiler report {arguments.run} shows it\n")
    return complain(Ending(missed=not any(cell.figures for cell in found.cells)))


def settings_of(arguments: argparse.Namespace, run: Run) -> Settings:
    """How predictions are made. Raises `UsageError` for an objective that cannot be read."""
    from profiler.prediction.predict import REPLICATES
    from profiler.prediction.processes import Settings
    from profiler.statistics.objectives import parse_objective

    slo = arguments.slo if arguments.slo is not None else run.slo
    return Settings(
        objective=None if slo is None else parse_objective(slo, "--slo"),
        replicates=arguments.replicates or REPLICATES,
        seed=arguments.seed,
    )


Curve = tuple[str, list[tuple[float, str]]]
"""A part of `--over`: its name, and each value with its strategy."""


@dataclass(frozen=True, slots=True)
class Request:
    """The questions of the command line; `changed` says in words what differs from the recording."""

    asked: Asked
    load: Load
    curves: tuple[Curve, ...]
    changed: tuple[str, ...]


def request_of(arguments: argparse.Namespace, run: Run) -> Request:
    """The questions about this run. Options that are not given are as recorded. Raises `UsageError`."""
    from profiler.arrivals import Arrivals
    from profiler.load.plan import blocks_for
    from profiler.prediction.asking import as_recorded, recorded_drain, recorded_levels
    from profiler.prediction.simulation.load import Trials
    from profiler.rundir import Load

    default = Size()
    seconds = arguments.duration or default.seconds
    blocks = arguments.blocks or blocks_for(seconds)
    drain = recorded_drain(run) if arguments.drain is None else arguments.drain
    trials = Trials(max(0.1, seconds / blocks), blocks, drain)
    levels = tuple(sorted(arguments.levels or ())) or ((arguments.users,) if arguments.users else ())
    asked = as_recorded(run, (), levels or recorded_levels(run), trials)
    changed = []
    if arguments.arrivals is not None:
        users = arguments.users or run.load.users or default.users
        arrivals: Arrivals | None = Arrivals.parse(arguments.arrivals, users)
        asked = replace(asked, arrivals=arrivals, levels=levels or (users,), think_seconds=0.0)
    elif levels and asked.arrivals is not None:
        # As compare has it: without --arrivals, agents are those of a closed load.
        changed.append("a closed load, where the recorded one was open")
        asked = replace(asked, arrivals=None, max_in_flight=None)
    if not asked.levels:
        raise UsageError(
            f"{arguments.run} does not say under which load its loops ran: say --users N, or --arrivals R/s"
        )
    if arguments.think is not None:
        asked = replace(asked, think_seconds=arguments.think)
    if arguments.max_in_flight is not None:
        asked = replace(asked, max_in_flight=arguments.max_in_flight)
    if arguments.workers is not None:
        asked = replace(asked, workers=arguments.workers)
    check_load(
        None if asked.arrivals is None else arguments.arrivals or run.load.arrivals,
        arguments.think or 0.0,
        arguments.max_in_flight,
        arguments.levels or (),
    )
    strategies, curves = strategies_of(arguments, run, asked)
    changed += [f"{name} takes {factor:g} times as long" for name, factor in arguments.tool_time]
    if arguments.model_time != 1.0:
        changed.append(f"the model takes {arguments.model_time:g} times as long")
    asked = replace(
        asked,
        strategies=strategies,
        share_limit=asked.share_limit or bool(arguments.share_limit),
        tool_time=tuple(arguments.tool_time),
        model_time=arguments.model_time,
    )
    top = asked.levels[-1]
    load = Load("closed", top, think_seconds=asked.think_seconds)
    if asked.arrivals is not None:
        load = Load("open", top, arrivals=arguments.arrivals or run.load.arrivals, rate=asked.rate(top))
    return Request(asked, load, curves, tuple(changed))


def strategies_of(
    arguments: argparse.Namespace, run: Run, asked: Asked
) -> tuple[tuple[StrategySpec, ...], tuple[Curve, ...]]:
    """The strategies that are asked about, each once, and which of them are a curve over a limit."""
    from profiler.over import Values, parse_over
    from profiler.prediction.asking import recorded_strategies
    from profiler.strategies import parse_strategies

    option = dict(LoadOptions.declared())["strategies"]
    named = option.read(arguments.strategy) if arguments.strategy else ()
    for spec in named:
        if named.count(spec) > 1:
            raise UsageError(f"--strategy {spec}: each strategy can be named once")
    curves: list[Curve] = []
    specs = list(named)
    for over in parse_over(arguments.over) if arguments.over else ():
        values = over.given
        if values is None and over.values is not None:
            if over.kind == "rate":
                raise UsageError("--over rate: say which, in calls a second: rate=5..50")
            values = Values(1, max(8, 2 * asked.levels[-1]))
        points = [] if values is None else values.spaced(MOST_VALUES)
        texts = over.specs(points)
        curves.append((over.name, list(zip(points, texts, strict=True)) if points else []))
        specs += parse_strategies(texts)
    found = tuple({spec.text: spec for spec in specs}.values())
    return found or recorded_strategies(run), tuple(curve for curve in curves if curve[1])


def check_tools(asked: Asked, fitted: Fitted) -> None:
    """Raises `UsageError` for a tool or MCP server that the recording does not have."""
    tools = fitted.system.tools
    servers = tuple(dict.fromkeys(name for name in fitted.system.mcp if name))
    for name, _ in asked.tool_time:
        _known(f"--tool-time {name}", "tool", name, tools)
    for spec in asked.strategies:
        for rule in spec.rules:
            if rule.tool is not None:
                _known(f"--strategy {spec}", "tool", rule.tool, tools)
            elif rule.server is not None:
                _known(f"--strategy {spec}", "MCP server", rule.server, servers)


def _known(where: str, kind: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        which = f"such {kind}" if where.endswith(f" {name}") else f"{kind} {name!r}"
        raise UsageError(
            f"{where}: the recording has no {which}{did_you_mean(name, known)}; it has "
            f"{', '.join(known) or 'none'}"
        )


def _capacities(
    request: Request, predicted: list[Predicted], fitted: Fitted, predictor: Predictor, quotas: list[str]
) -> list[Capacity]:
    """How much the best strategy under the highest load, of those that are predicted, can take."""
    from profiler.prediction.capacity import capacity_of
    from profiler.prediction.ranking import best

    asked = request.asked
    for users in reversed(asked.levels):
        leader = best([one for one in predicted if one.question.load.users == users and not one.refused])
        if leader is not None:
            objective = predictor.settings.objective
            found = capacity_of(asked, leader.question.strategy, fitted, predictor, objective, quotas)
            return [] if found is None else [found]
    return []


def _say(arguments: argparse.Namespace, text: str) -> None:
    if not arguments.quiet:
        print(text, file=sys.stderr, flush=True)


def _progress(arguments: argparse.Namespace, what: str) -> Callable[[int, int], None] | None:
    """Says how far it is: on a terminal in one line, else once for each batch that takes a while."""
    if arguments.quiet:
        return None
    terminal = sys.stderr.isatty()

    def told(done: int, total: int) -> None:
        if terminal:
            ends = "\n" if done == total else ""
            print(f"\r{what}: {done} of {total}", end=ends, file=sys.stderr, flush=True)
        elif done == total and total > 2:
            print(f"{what}: {total}", file=sys.stderr, flush=True)

    return told
