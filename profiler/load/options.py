"""The options of a load test: added to Locust's own, and checked."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from profiler import rundir
from profiler.errors import UsageError
from profiler.load import defaults
from profiler.load.plan import Arrivals
from profiler.load.spending import Budget, Price, Resource, price_of
from profiler.loop.limited_model import parse_model_limit
from profiler.providers import DEFAULT_MODELS, PROVIDERS
from profiler.providers.endpoint import LOOPBACK, Endpoint
from profiler.rundir import Anchor, Load, Run, RunDirectory
from profiler.scenarios.schema import load_scenario
from profiler.statistics.objectives import AbortRule, parse_objective
from profiler.strategies import parse_strategy, split_specs

MOST = 1_000_000_000
"""Of whatever is counted, and of seconds."""


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """What is asked of a load test, beside Locust's users, spawn rate and run time.

    `base_url` None: the embedded emulator. `trial_seconds` and `blocks` None: as the plan sees
    fit. `drain_seconds`: how long loops in flight at the end of a trial are waited for. `out` is
    where a run directory is made, `run_directory` one that exists already and is to be used.
    `linger_seconds`: how long /metrics is served after the last trial, for a last scrape;
    `metrics_port` None: the first that is free. `agent` (`module:factory`) replaces the built-in loop.

    `arrivals` makes the load open, at that rate with the users asked for; `levels` are numbers of
    users, each a load of its own. At most `max_in_flight` loops run at once, later arrivals wait.
    `calibration_seconds`: how long the client is measured against `instant` before the run.
    `max_loops`, `max_requests`, `max_tokens` and `max_cost` (USD) end the run when so much is spent
    (`profiler.load.spending`); `record_content` keeps what was said, passed through `redact`
    (`module:function`); `price`, IN/OUT in USD per million tokens, comes before the table's.
    `share_limit`: each worker process takes its part of all limits, instead of all of them.
    `model_limit`: limiters in front of the model, of each process.
    """

    strategies: tuple[str, ...] = defaults.STRATEGIES
    provider: str = "openai"
    scenario: str = "cities"
    base_url: str | None = None
    tools_url: str | None = None
    model: str | None = None
    allow_remote: bool = False
    tool_choice: str = "auto"
    parallel_tool_calls: bool = True
    stream: bool = False
    max_rounds: int = 5
    trial_seconds: float | None = None
    blocks: int | None = None
    seed: int = 1
    drain_seconds: float = defaults.DRAIN_SECONDS
    out: str = "runs"
    run_directory: str | None = None
    metrics_port: int | None = None
    metrics: bool = True
    metrics_host: str = LOOPBACK
    linger_seconds: float = 0.0
    agent: str | None = None
    arrivals: str | None = None
    think_seconds: float = 0.0
    levels: tuple[int, ...] = ()
    max_in_flight: int | None = None
    abort_on: str | None = None
    slo: str | None = None
    calibration_seconds: float = defaults.CALIBRATION_SECONDS
    share_limit: bool = False
    max_loops: int | None = None
    max_requests: int | None = None
    max_tokens: int | None = None
    max_cost: float | None = None
    price: str | None = None
    record_content: bool = False
    redact: str | None = None
    model_limit: str | None = None

    def __post_init__(self) -> None:
        """Raises `UsageError` naming the option that cannot be used."""
        if not self.strategies:
            raise UsageError("--strategy: name at least one strategy")
        for spec in self.strategies:
            try:
                eager = parse_strategy(spec).eager
            except UsageError as error:
                raise UsageError(f"--strategy: {error}") from error
            if eager != "no" and not self.stream:
                raise UsageError(f"--strategy {spec}: starts tools while a reply streams: add --stream")
        if len(set(self.strategies)) < len(self.strategies):
            twice = next(spec for spec in self.strategies if self.strategies.count(spec) > 1)
            raise UsageError(f"--strategy {twice}: each strategy can be named once")
        if self.provider not in PROVIDERS:
            raise UsageError(f"--provider {self.provider}: expected one of {', '.join(PROVIDERS)}")
        for name, value, least in (
            ("--trial-seconds", self.trial_seconds, 0.1),
            ("--blocks", self.blocks, 1),
            ("--drain", self.drain_seconds, 0),
            ("--max-rounds", self.max_rounds, 1),
            ("--metrics-linger", self.linger_seconds, 0),
            ("--think", self.think_seconds, 0),
            ("--max-in-flight", self.max_in_flight, 1),
            ("--levels", min(self.levels, default=1), 1),
            ("--levels", max(self.levels, default=1), 1),
            ("--calibrate", self.calibration_seconds, 0),
            ("--max-loops", self.max_loops, 1),
            ("--max-requests", self.max_requests, 1),
            ("--max-tokens", self.max_tokens, 1),
            ("--metrics-port", self.metrics_port, 0),
        ):
            most = 65535 if name == "--metrics-port" else MOST
            if value is not None and not least <= value <= most:  # NaN is neither
                bound = f"at most {most}" if value > most else f"at least {least}"
                raise UsageError(f"{name} must be {bound}, not {value}")
        if not -(2**63) <= self.seed < 2**63:
            raise UsageError(f"--seed must be a whole number of 64 bits, not {self.seed}")
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

    def budget(self, model: str = "") -> Budget:
        """What may be spent. `model` is the one the target was asked for, as far as that is known.

        Raises `UsageError` when costs are limited and the model's price is unknown.
        """
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

    def as_arguments(self) -> list[str]:
        """Command-line arguments for Locust; `from_namespace` of what it parses is the inverse."""
        arguments = [f"--strategy={','.join(self.strategies)}"]
        for option, value in (
            ("--provider", self.provider),
            ("--scenario", self.scenario),
            ("--base-url", self.base_url),
            ("--tools-url", self.tools_url),
            ("--model", self.model),
            ("--tool-choice", self.tool_choice),
            ("--max-rounds", self.max_rounds),
            ("--trial-seconds", self.trial_seconds),
            ("--blocks", self.blocks),
            ("--seed", self.seed),
            ("--drain", self.drain_seconds),
            ("--out", self.out),
            ("--run-directory", self.run_directory),
            ("--metrics-port", self.metrics_port),
            ("--metrics-host", self.metrics_host),
            ("--metrics-linger", self.linger_seconds),
            ("--agent", self.agent),
            ("--arrivals", self.arrivals),
            ("--think", self.think_seconds),
            ("--levels", ",".join(map(str, self.levels)) or None),
            ("--max-in-flight", self.max_in_flight),
            ("--abort-on", self.abort_on),
            ("--slo", self.slo),
            ("--calibrate", self.calibration_seconds),
            ("--max-loops", self.max_loops),
            ("--max-requests", self.max_requests),
            ("--max-tokens", self.max_tokens),
            ("--max-cost", self.max_cost),
            ("--price", self.price),
            ("--redact", self.redact),
            ("--model-limit", self.model_limit),
        ):
            if value is not None:
                arguments.append(f"{option}={value}")
        flags = {
            "--allow-remote": self.allow_remote,
            "--no-parallel-tool-calls": not self.parallel_tool_calls,
            "--stream": self.stream,
            "--no-metrics": not self.metrics,
            "--share-limit": self.share_limit,
            "--record-content": self.record_content,
        }
        return arguments + [flag for flag, on in flags.items() if on]

    @classmethod
    def from_namespace(cls, parsed: argparse.Namespace) -> LoadOptions:
        """From Locust's parsed options.

        What comes from the web form is text where the default is None, and a list of strategies
        may be text with commas. Raises `UsageError`.
        """
        return cls(
            strategies=split_strategies(parsed.strategy),
            provider=parsed.provider,
            scenario=parsed.scenario,
            base_url=parsed.base_url or parsed.host or None,
            tools_url=parsed.tools_url or None,
            model=parsed.model or None,
            allow_remote=parsed.allow_remote,
            tool_choice=parsed.tool_choice,
            parallel_tool_calls=not parsed.no_parallel_tool_calls,
            stream=parsed.stream,
            max_rounds=parsed.max_rounds,
            trial_seconds=_number("--trial-seconds", parsed.trial_seconds, float),
            blocks=_number("--blocks", parsed.blocks, int),
            seed=parsed.seed,
            drain_seconds=parsed.drain,
            out=parsed.out,
            run_directory=parsed.run_directory or None,
            metrics_port=_number("--metrics-port", parsed.metrics_port, int),
            metrics=not parsed.no_metrics,
            metrics_host=parsed.metrics_host or LOOPBACK,
            linger_seconds=parsed.metrics_linger,
            agent=parsed.agent or None,
            arrivals=parsed.arrivals or None,
            think_seconds=parsed.think,
            levels=split_levels(parsed.levels),
            max_in_flight=_number("--max-in-flight", parsed.max_in_flight, int),
            abort_on=parsed.abort_on or None,
            slo=parsed.slo or None,
            calibration_seconds=parsed.calibrate,
            share_limit=parsed.share_limit,
            max_loops=_number("--max-loops", parsed.max_loops, int),
            max_requests=_number("--max-requests", parsed.max_requests, int),
            max_tokens=_number("--max-tokens", parsed.max_tokens, int),
            max_cost=_number("--max-cost", parsed.max_cost, float),
            price=parsed.price or None,
            record_content=parsed.record_content,
            redact=parsed.redact or None,
            model_limit=parsed.model_limit or None,
        )


def asked(parsed: argparse.Namespace, environment: Mapping[str, str]) -> LoadOptions:
    """What Locust's parsed options ask for. Raises `UsageError` naming what cannot be."""
    options = LoadOptions.from_namespace(parsed)
    options.check_targets(environment)
    load_scenario(options.scenario)
    if options.run_directory is None:
        RunDirectory.check_parent(options.out)
    return options


def add_options(parser: Any) -> None:
    """Add ours to Locust's parser; they appear in its web form too."""
    add = parser.add_argument
    add(
        "--strategy",
        action=StrategyAction,
        default=list(defaults.STRATEGIES),
        metavar="S",
        help=f"how the calls of a round run: {defaults.STRATEGY_FORMS}; "
        "several with commas, or repeat the option",
    )
    add("--provider", choices=list(PROVIDERS), default="openai", help="API that the agents speak")
    add("--scenario", default="cities", help="the emulator's scenario: a name, or a TOML file")
    add("--base-url", default=None, help="root URL of the model API; none: the embedded emulator")
    add("--tools-url", default=None, help="root URL of the tools; none: the emulator")
    add("--model", default=None, help="model to ask for; none: the provider's default here")
    add("--trial-seconds", default=None, help="seconds that each trial measures")
    add("--blocks", default=None, help="how often every strategy gets its turn")
    add("--seed", type=int, default=1, help="seed of the tape and of the order of strategies")
    add(
        "--arrivals",
        default=None,
        metavar="R/s",
        help="open load: loops a second of all users, Poisson; or constant:R/s",
    )
    add("--think", type=float, default=0.0, help="closed load: seconds an agent waits between two loops")
    add("--levels", default=None, help="a ladder of loads: numbers of users, such as 10,20,40")
    add("--max-in-flight", default=None, help="open load: loops at once at most; later arrivals wait")
    add("--abort-on", default=None, metavar="RULE", help="end a hopeless run early: errors>20%%")
    add("--slo", default=None, help="what a good loop is: p95<2s,errors<1%%")
    add(
        "--drain",
        type=float,
        default=defaults.DRAIN_SECONDS,
        help="seconds to wait for loops in flight after a trial",
    )
    add("--max-rounds", type=int, default=5, help="most rounds with calls in a loop")
    add("--tool-choice", default="auto", help="auto, none, required, or the name of a tool")
    add("--no-parallel-tool-calls", action="store_true", help="ask for one call per response")
    add("--stream", action="store_true", help="ask for streamed responses")
    add("--out", default="runs", help="directory that gets the run directory")
    add(
        "--agent",
        default=None,
        metavar="MODULE:FACTORY",
        help="load your own agent instead of the built-in loop",
    )
    add(
        "--calibrate",
        type=float,
        default=defaults.CALIBRATION_SECONDS,
        help="seconds to measure the client alone before the run",
    )
    add(
        "--metrics-port",
        default=None,
        help="serve /metrics here (worker k: this port + k); none: the first free one",
    )
    add(
        "--metrics-host",
        default=LOOPBACK,
        help="address to serve /metrics on; this machine's alone by default",
    )
    add("--share-limit", action="store_true", help="divide all limits among the workers")
    add("--model-limit", default=None, metavar="SPEC", help=defaults.MODEL_LIMIT)
    add("--no-metrics", action="store_true", help="serve no /metrics")
    add("--metrics-linger", type=float, default=0.0, help="seconds to serve /metrics after the last trial")
    add("--max-loops", default=None, help="end the run after so many loops, warm-up included")
    add("--max-requests", default=None, help="end the run when so many model requests are sent, retries too")
    add("--max-tokens", default=None, help="end the run when so many tokens, in and out, are used")
    add("--max-cost", default=None, metavar="USD", help="end the run when so much is spent")
    add("--price", default=None, metavar="IN/OUT", help="USD per million input and output tokens")
    add("--record-content", action="store_true", help="keep prompts, arguments and results in the records")
    add("--redact", default=None, metavar="MODULE:FUNCTION", help="passes every text that is recorded")
    add("--allow-remote", action="store_true", help="allow targets that are not this machine")
    add("--run-directory", default=None, include_in_web_ui=False, help=argparse.SUPPRESS)


class StrategyAction(argparse.Action):
    """Collects strategies over repeated options and commas; the first use replaces the default."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        given = getattr(namespace, self.dest)
        before = [] if given is self.default else given
        setattr(namespace, self.dest, [*before, *split_strategies(values)])


def split_strategies(value: str | Sequence[Any] | None) -> tuple[str, ...]:
    """Strategy specs from text with commas or a list of such."""
    parts = [value] if isinstance(value, str) else list(value or ())
    return tuple(spec for part in parts for spec in split_specs(str(part)))


def split_levels(value: str | Sequence[int] | None) -> tuple[int, ...]:
    """`10,20,40`, or the numbers themselves. Raises `UsageError`."""
    if not isinstance(value, str):
        return tuple(value or ())
    try:
        levels = tuple(int(part) for part in value.split(",") if part.strip())
    except ValueError:
        levels = ()
    if value.strip() and not levels:
        raise UsageError(f"--levels {value}: expected numbers of users, such as 10,20,40")
    return levels


def _number(option: str, value: Any, kind: type[Any]) -> Any:
    if value is None or value == "":
        return None
    try:
        return kind(value)
    except ValueError:
        raise UsageError(f"{option} {value}: expected a number") from None


# What `run.json` says of a load test before anything has run.


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
