"""The options of a load test, each declared once: on the field of `LoadOptions` that holds its value.

`profiler run`, `compare` and `tune`, Locust files, `run.json` and the README's table all come from here.
Importing this is cheap: `--help` does.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from profiler.errors import UsageError
from profiler.limits.spec import Rule
from profiler.load.declared import (
    AMOUNT,
    COUNT,
    LONGEST_SECONDS,
    MOST,
    PORT,
    SECONDS,
    SEED,
    SWITCH,
    TEXT,
    Kind,
    Options,
    option,
)
from profiler.providers import DEFAULT_MODELS, PROVIDERS
from profiler.providers.endpoint import LOOPBACK, Endpoint
from profiler.strategies import StrategySpec, parse_strategies

if TYPE_CHECKING:
    from profiler.load.spending import Budget, Resource
    from profiler.rundir import Run

DEFAULT_STRATEGIES = (
    StrategySpec("sequential", "sequential"),
    StrategySpec("gathered"),
    StrategySpec("semaphore:32", "limited", (Rule("semaphore:32", "semaphore", limit=32),)),
)
"""With 20 agents a limit of 32 is felt and does not choke: it shows what a shared semaphore costs."""

METRICS_PORT = 9464
"""The first port that is tried for /metrics."""

LINGER_SECONDS = 6.0
"""How long /metrics stays up after the last trial for whoever scrapes it: every 5 s, and some to spare."""

STRATEGY_FORMS = (
    "sequential, gathered, semaphore:N (one for the process; @agent, @tool: one for each), "
    "semaphore:TOOL=N,…, rate:R/s or R/min[,burst=B], adaptive, eager (with --stream), "
    "or several joined by + (eager+semaphore:8)"
)
"""How strategies are named, for help texts."""

GROUPS = {
    "target": "",
    "load": "",
    "turns": "",
    "spending": "end the run early; warm-up and retries count, loops under way are let finish",
    "content": "",
}
"""Titles of groups in their order, and what the help says below them."""


def _levels(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise ValueError("expected numbers of users, such as 10,20,40") from None


STRATEGIES = Kind(parse_strategies, lambda specs: ",".join(map(str, specs)))
LEVELS = Kind(_levels, lambda levels: ",".join(map(str, levels)), least=1, most=MOST)

EVERY = ("run", "compare", "tune", "locust")
LOADS = ("compare", "tune", "locust")


@dataclass(frozen=True, slots=True)
class Size(Options):
    """How many agents in how many processes for how long; Locust has options of its own for these."""

    users: int = option(
        "--users",
        COUNT,
        20,
        "agents; each starts its next loop when the last one ends",
        group="load",
        commands=("compare", "tune"),
        metavar="N",
        default_text="20",
    )
    workers: int = option(
        "--workers",
        COUNT,
        1,
        "processes that run agents",
        group="load",
        commands=("compare", "tune"),
        metavar="N",
    )
    seconds: float = option(
        "--duration",
        Kind(SECONDS.read, SECONDS.write, least=0.001, most=LONGEST_SECONDS),
        15.0,
        "measuring time per strategy (and level): 30s, 2m",
        group="turns",
        commands=("compare",),
        metavar="T",
        default_text="15s",
    )

    def __post_init__(self) -> None:
        self.check()


@dataclass(frozen=True, slots=True)
class LoadOptions(Options):
    """What is asked of a load test, beside its size. Making one raises `UsageError` for what cannot be.

    `base_url` None: the embedded emulator. `trial_seconds` and `blocks` None: as the plan sees fit.
    `run_directory` is one that exists already and is to be used. `metrics_port` None: the first that is
    free. `linger_seconds`: how long /metrics is served after the last trial, for a last scrape.
    """

    provider: str = option(
        "--provider",
        TEXT,
        "openai",
        "whose SDK and wire format",
        group="target",
        commands=EVERY,
        choices=tuple(PROVIDERS),
        default_text="openai",
    )
    scenario: str = option(
        "--scenario",
        TEXT,
        "cities",
        "what the work is",
        group="target",
        commands=EVERY,
        metavar="NAME|FILE",
        default_text="cities",
    )
    base_url: str | None = option(
        "--base-url",
        TEXT,
        None,
        "the model server, root or ending in /v1",
        group="target",
        commands=EVERY,
        metavar="URL",
        default_text="the emulator",
    )
    tools_url: str | None = option(
        "--tools-url",
        TEXT,
        None,
        "root of the tools' server",
        group="target",
        commands=EVERY,
        metavar="URL",
        default_text="the emulator",
    )
    model: str | None = option(
        "--model",
        TEXT,
        None,
        "model name",
        group="target",
        commands=EVERY,
        metavar="M",
        default_text=", ".join(dict.fromkeys(DEFAULT_MODELS.values())),
    )
    seed: int = option(
        "--seed", SEED, 1, "seed of the emulated work", group="target", commands=EVERY, metavar="N"
    )
    max_rounds: int = option(
        "--max-rounds", COUNT, 5, "rounds with calls at most", group="target", commands=EVERY, metavar="N"
    )
    tool_choice: str = option(
        "--tool-choice",
        TEXT,
        "auto",
        "auto, none, required, or a tool's name",
        group="target",
        commands=EVERY,
        metavar="C",
    )
    parallel_tool_calls: bool = option(
        "--no-parallel-tool-calls",
        SWITCH,
        True,
        "ask for one call per response: a baseline",
        group="target",
        commands=EVERY,
    )
    model_limit: str | None = option(
        "--model-limit",
        TEXT,
        None,
        "limiters of ours in front of the model: rate:500/min,burst=10+tokens:30000/min, semaphore:8",
        group="target",
        commands=EVERY,
        metavar="SPEC",
    )
    stream: bool = option(
        "--stream", SWITCH, False, "ask for streamed responses", group="target", commands=EVERY
    )
    strategies: tuple[StrategySpec, ...] = option(
        "--strategy",
        STRATEGIES,
        DEFAULT_STRATEGIES,
        f"{STRATEGY_FORMS}; may be repeated; the first is what the others are compared with",
        group="load",
        commands=("compare", "locust"),
        metavar="S",
        repeats=True,
        default_text=STRATEGIES.write(DEFAULT_STRATEGIES),
    )
    think_seconds: float = option(
        "--think",
        SECONDS,
        0.0,
        "closed load: wait between an agent's loops",
        group="load",
        commands=LOADS,
        metavar="T",
    )
    arrivals: str | None = option(
        "--arrivals",
        TEXT,
        None,
        "open load instead: loops arrive at this rate (Poisson; constant:R/s evenly spaced) and do not "
        "wait for each other; latency counts from when they were due",
        group="load",
        commands=LOADS,
        metavar="R/s",
    )
    max_in_flight: int | None = option(
        "--max-in-flight",
        COUNT,
        None,
        "open load: loops at once at most; others wait",
        group="load",
        commands=LOADS,
        metavar="N",
    )
    drain_seconds: float = option(
        "--drain",
        SECONDS,
        30.0,
        "wait for loops in flight at most, then cut them off and count them",
        group="load",
        commands=LOADS,
        metavar="T",
        default_text="30s",
    )
    allow_remote: bool = option(
        "--allow-remote",
        SWITCH,
        False,
        "let the load go beyond this machine: it costs money",
        group="load",
        commands=LOADS,
    )
    share_limit: bool = option(
        "--share-limit",
        SWITCH,
        False,
        "divide all limits among the processes, instead of each having them whole",
        group="load",
        commands=LOADS,
    )
    slo: str | None = option(
        "--slo",
        TEXT,
        None,
        "what a good loop is: p95<2s,errors<1%",
        group="load",
        commands=LOADS,
        metavar="S",
    )
    abort_on: str | None = option(
        "--abort-on",
        TEXT,
        None,
        "end a hopeless run early: errors>20%",
        group="load",
        commands=LOADS,
        metavar="RULE",
    )
    agent: str | None = option(
        "--agent",
        TEXT,
        None,
        "load your own agent instead of the built-in loop",
        group="load",
        commands=LOADS,
        metavar="MODULE:FACTORY",
    )
    calibration_seconds: float = option(
        "--calibrate",
        SECONDS,
        0.5,
        "measure the client alone first, 0 to skip",
        group="load",
        commands=LOADS,
        metavar="T",
        default_text="0.5s",
    )
    metrics_port: int | None = option(
        "--metrics-port",
        PORT,
        None,
        "serve /metrics here; worker k at this port + k",
        group="load",
        commands=LOADS,
        metavar="P",
        default_text=f"{METRICS_PORT} or the next free one",
    )
    metrics_host: str = option(
        "--metrics-host",
        TEXT,
        LOOPBACK,
        "address to serve /metrics on",
        group="load",
        commands=LOADS,
        metavar="H",
        default_text=f"{LOOPBACK}, for this machine alone",
    )
    metrics: bool = option("--no-metrics", SWITCH, True, "serve no /metrics", group="load", commands=LOADS)
    linger_seconds: float = option(
        "--metrics-linger",
        SECONDS,
        0.0,
        "serve /metrics so long after the last trial",
        group="load",
        commands=("locust",),
        metavar="T",
    )
    out: str = option(
        "--out",
        TEXT,
        "runs",
        "where run directories go",
        group="load",
        commands=LOADS,
        metavar="DIR",
        default_text="runs",
    )
    levels: tuple[int, ...] = option(
        "--levels",
        LEVELS,
        (),
        "a ladder of loads: every strategy under each number of agents",
        group="turns",
        commands=("compare", "locust"),
        metavar="N,N,…",
    )
    blocks: int | None = option(
        "--blocks",
        COUNT,
        None,
        "turns that every strategy gets",
        group="turns",
        commands=("compare", "locust"),
        metavar="N",
        default_text="3 to 10",
    )
    trial_seconds: float | None = option(
        "--trial-seconds",
        Kind(SECONDS.read, SECONDS.write, least=0.1, most=LONGEST_SECONDS),
        None,
        "how long each turn measures",
        group="turns",
        commands=("locust",),
        metavar="T",
    )
    max_loops: int | None = option(
        "--max-loops", COUNT, None, "loops", group="spending", commands=LOADS, metavar="N"
    )
    max_requests: int | None = option(
        "--max-requests",
        COUNT,
        None,
        "model requests: every attempt",
        group="spending",
        commands=LOADS,
        metavar="N",
    )
    max_tokens: int | None = option(
        "--max-tokens",
        COUNT,
        None,
        "input and output tokens together",
        group="spending",
        commands=LOADS,
        metavar="N",
    )
    max_cost: float | None = option(
        "--max-cost", AMOUNT, None, "cost of the tokens", group="spending", commands=LOADS, metavar="USD"
    )
    price: str | None = option(
        "--price",
        TEXT,
        None,
        "USD per million input and output tokens",
        group="spending",
        commands=LOADS,
        metavar="IN/OUT",
        default_text="a table of some known models",
    )
    record_content: bool = option(
        "--record-content",
        SWITCH,
        False,
        "keep prompts, arguments and results in the records",
        group="content",
        commands=("run", "compare", "locust"),
    )
    redact: str | None = option(
        "--redact",
        TEXT,
        None,
        "with --record-content: a function that every text passes through, str to str",
        group="content",
        commands=("run", "compare", "locust"),
        metavar="MODULE:FUNCTION",
    )
    run_directory: str | None = option(
        "--run-directory", TEXT, None, "", group="load", commands=("locust",), hidden=True
    )

    def __post_init__(self) -> None:
        """Raises `UsageError` naming the option that cannot be used."""
        from profiler.load.plan import Arrivals
        from profiler.load.spending import Price
        from profiler.loop.limited_model import parse_model_limit
        from profiler.statistics.objectives import AbortRule, parse_objective

        self.check()
        self._check_strategies()
        if self.arrivals is not None:
            Arrivals.parse(self.arrivals)
            if self.think_seconds:
                raise UsageError("--think is for a closed load: with --arrivals nobody waits for an answer")
        elif self.max_in_flight is not None:
            raise UsageError(
                "--max-in-flight is for an open load (--arrivals): users already limit a closed one"
            )
        if len(set(self.levels)) < len(self.levels):
            raise UsageError("--levels: each level can be named once")
        if self.abort_on is not None:
            AbortRule.parse(self.abort_on)
        if self.slo is not None:
            parse_objective(self.slo, "--slo")
        if self.redact is not None and not self.record_content:
            raise UsageError("--redact is for content that is recorded: add --record-content")
        if self.price is not None:
            Price.parse(self.price)
        if self.max_cost is not None:
            if not 0 < self.max_cost < math.inf:
                raise UsageError(f"--max-cost must be an amount above 0, not {self.max_cost:g}")
            self.budget()
        if self.model_limit is not None:
            parse_model_limit(self.model_limit)

    def _check_strategies(self) -> None:
        if not self.strategies:
            raise UsageError("--strategy: name at least one strategy")
        for spec in self.strategies:
            if self.strategies.count(spec) > 1:
                raise UsageError(f"--strategy {spec}: each strategy can be named once")
            if spec.needs_stream and not self.stream:
                raise UsageError(f"--strategy {spec}: starts tools while a reply streams: add --stream")

    def budget(self, model: str = "") -> Budget:
        """What may be spent. `model` is the one the target was asked for, as far as that is known.

        Raises `UsageError` when costs are limited and the model's price is unknown.
        """
        from profiler.load.spending import Budget, price_of

        given: dict[Resource, float | None] = {
            "loops": self.max_loops,
            "requests": self.max_requests,
            "tokens": self.max_tokens,
            "cost": self.max_cost,
        }
        model = model or self.asked_model
        price = price_of(model, self.price)
        if self.max_cost is not None and price is None:
            named = f"the price of {model} is unknown" if model else "which model the agent uses is unknown"
            raise UsageError(
                f"--max-cost: {named}: say it with --price IN/OUT, USD per million input and output tokens"
            )
        return Budget({name: limit for name, limit in given.items() if limit is not None}, price)

    @property
    def asked_model(self) -> str:
        """The model's name in requests; empty where that is the affair of the user's own agent."""
        return self.model or ("" if self.agent else DEFAULT_MODELS[self.provider])

    def remote_targets(self, environment: Mapping[str, str]) -> dict[str, str]:
        """Targets that are not this machine, by what named them. `environment` may name tools too.

        Raises `UsageError` for what is no URL of a server.
        """
        targets = {
            "--base-url": self.base_url,
            "--tools-url": self.tools_url,
            "PROFILER_TOOLS_URL": environment.get("PROFILER_TOOLS_URL") if self.tools_url is None else None,
            "PROFILER_WEATHER_URL": environment.get("PROFILER_WEATHER_URL"),
        }
        return {
            name: url for name, url in targets.items() if url and not Endpoint.parse(url, name).is_loopback
        }

    def check_targets(self, environment: Mapping[str, str]) -> None:
        """A load test of anything but this machine has to be meant.

        Raises `UsageError` naming the first target that is elsewhere.
        """
        for name, url in self.remote_targets(environment).items():
            if not self.allow_remote:
                raise UsageError(
                    f"{name} {url} is not this machine: a load test of it needs --allow-remote "
                    "(real endpoints cost money and belong to somebody)"
                )


def set_tools_url(options: LoadOptions, root: str) -> None:
    """Point the worked tools of this process at their root; none given, at that of the model."""
    os.environ["PROFILER_TOOLS_URL"] = options.tools_url or Endpoint.parse(root).root


NOT_REPEATED = ("out", "run_directory", "trial_seconds", "blocks", "strategies", "linger_seconds")
"""Of options that a line to repeat a run leaves out: others say them, or nobody needs to."""


def asked(parsed: argparse.Namespace, environment: Mapping[str, str]) -> LoadOptions:
    """What Locust's parsed options ask for: those of the run directory that was made for the test, if any.

    Raises `UsageError` naming what cannot be.
    """
    from profiler.rundir import RunDirectory
    from profiler.scenarios.schema import load_scenario

    if parsed.run_directory:
        run = RunDirectory.open(parsed.run_directory).load()
        options = LoadOptions.from_json(
            run.arguments, strategies=run.strategies, run_directory=parsed.run_directory
        )
    else:
        options = LoadOptions.from_namespace(parsed)
        if options.base_url is None and parsed.host:
            options = replace(options, base_url=parsed.host)
    options.check_targets(environment)
    load_scenario(options.scenario)
    if options.run_directory is None:
        RunDirectory.check_parent(options.out)
    return options


def conditions(options: LoadOptions, users: int) -> Run:
    """What `run.json` says before anything has run, of `users` agents (the most of its `levels`)."""
    from profiler import rundir
    from profiler.load.plan import Arrivals
    from profiler.rundir import Anchor, Load, Run

    most = max(options.levels, default=users)
    load = Load("closed", most, think_seconds=options.think_seconds)
    if options.arrivals is not None:
        rate = Arrivals.parse(options.arrivals, users).expected(most, 1.0)
        load = Load("open", most, arrivals=options.arrivals, rate=rate)
    return Run(
        scenario=options.scenario,
        provider=options.provider,
        strategies=options.strategies,
        load=load,
        seed=options.seed,
        anchor=Anchor.now(),
        machine=rundir.machine(),
        versions=rundir.versions(),
        arguments=options.as_json(leave_out=("out", "run_directory")),
        model=options.model or "",
        slo=options.slo,
        repeat=("--scenario", options.scenario, *options.arguments((*NOT_REPEATED, "scenario"))),
    )
