"""The options of a load test, each declared once: on the field of `LoadOptions` that holds its value.

`profiler run`, `compare` and `tune`, Locust files, `run.json` and the README's table all come from here.
`profiler --help` imports this module, so slow imports (pydantic, the records) wait until they are used.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from profiler.arrivals import Arrivals
from profiler.errors import UsageError, did_you_mean
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
from profiler.load.endpoints import (
    FIELD,
    HEADER,
    OBJECT,
    PARAMETER,
    SERVER,
    SERVER_HEADER,
    URL,
    check_tls,
    endpoint_of,
    fields_of,
    tls_of,
)
from profiler.load.plan import MOST_DRAIN_SECONDS
from profiler.providers import CLIENTS, DIALECTS, PROVIDERS, ClientName
from profiler.providers.endpoint import LOOPBACK, Endpoint, check_trusted, shown_url
from profiler.redaction import keep_secret
from profiler.redaction.keys import REDACTED
from profiler.statistics.objectives import AbortRule, parse_objective
from profiler.strategies import StrategySpec, crossed, parse_strategies, split_specs
from profiler.variants import MOST as MOST_VARIANTS
from profiler.variants import parse_grid, variant_text

if TYPE_CHECKING:
    from profiler.load.spending import Budget, Price
    from profiler.mcp.servers import ServerSpec
    from profiler.rundir import Run

DEFAULT_STRATEGIES = (
    StrategySpec("sequential", "sequential"),
    StrategySpec("gathered"),
    StrategySpec("semaphore:32", "limited", (Rule("semaphore:32", "semaphore", limit=32),)),
)
"""A limit of 32 slows 20 agents down a little: it shows what a shared semaphore costs."""

AS_THE_SCENARIO = "scenario"
"""The value of `--dialect` that leaves it to the scenario."""

METRICS_PORT = 9464
"""The first port that is tried for /metrics."""

LINGER_SECONDS = 6.0
"""How long /metrics stays up after the last trial: Prometheus scrapes it every 5 s."""

DRAIN_SECONDS = 30.0
"""How long a trial drains at most, unless something else is asked for."""

STRATEGY_FORMS = (
    "sequential, gathered, semaphore:N (one for the process; @agent, @tool, @server: one for each), "
    "semaphore:TOOL=N,…, semaphore:SERVER/*=N,…, rate:R/s or R/min[,burst=B], adaptive, "
    "eager (with --stream), or several joined by + (eager+semaphore:8)"
)
"""How strategies are named, for help texts."""

MCP_FLAG = "--mcp"

GROUPS = {
    "target": "",
    "mcp": "tools of MCP servers, instead of the scenario's",
    "load": "",
    "turns": "",
    "spending": "end the run early; warm-up and retries count, loops under way are let finish",
    "content": "",
}
"""Groups of options in their order: title → what the help says below it."""


def _levels(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise ValueError("expected numbers of users, such as 10,20,40") from None


STRATEGIES = Kind(parse_strategies, lambda specs: ",".join(map(str, specs)), metavar="S")
VARIANTS = Kind(parse_grid, ",".join, metavar="NAME=V[,V…]")
LEVELS = Kind(_levels, lambda levels: ",".join(map(str, levels)), 1, MOST, "N,N,…")
NAMES = Kind(lambda text: tuple(filter(None, map(str.strip, text.split(",")))), ",".join, metavar="TOOL,…")
MEASURED = Kind(SECONDS.read, SECONDS.write, 0.1, LONGEST_SECONDS, "T")

DIRECT = ("mcp load", "mcp tune")
SEARCHES = ("compare", "tune", *DIRECT)
PREDICTED = (*SEARCHES, "predict")
target = partial(option, group="target", commands=("run", "compare", "tune", "locust"))
load = partial(option, group="load", commands=("compare", "tune", "locust", *DIRECT))
predicted = partial(option, group="load", commands=("compare", "tune", "locust", *DIRECT, "predict"))
closed = partial(option, group="load", commands=("compare", "tune", "locust", "mcp load"))
closed_predicted = partial(closed, commands=("compare", "tune", "locust", "mcp load", "predict"))
strategies_too = partial(option, group="load", commands=("compare", "tune", "locust", "predict"))
own = partial(option, group="load", commands=("run", "compare", "tune", "locust"))
turns = partial(option, group="turns", commands=("compare", "locust", "mcp load", "predict"))
spending = partial(option, group="spending", commands=("compare", "tune", "locust"))
tool_server = partial(option, group="mcp", commands=("run", "compare", "tune", "locust"))
any_tools = partial(option, group="mcp", commands=("run", "compare", "tune", "locust", *DIRECT))
direct = partial(option, group="mcp", commands=("locust", *DIRECT))
content = partial(option, group="content", commands=("run", "compare", "locust", "mcp load"))

_MODELS = ", ".join(dict.fromkeys(one.default_model for one in PROVIDERS.values()))


@dataclass(frozen=True, slots=True)
class Size(Options):
    """How many agents, in how many processes, for how long. Locust has options of its own for these."""

    users: int = option(
        "--users", COUNT, 20, "agents; each starts its next loop when the last one ends", "load", PREDICTED
    )
    workers: int = option("--workers", COUNT, 1, "processes that run agents", "load", PREDICTED)
    seconds: float = option(
        "--duration",
        MEASURED,
        15.0,
        "measuring time per strategy (and level)",
        "turns",
        ("compare", "mcp load", "predict"),
    )
    for_prediction: bool = option(
        "--for-prediction",
        SWITCH,
        False,
        "a recording to predict from: levels from 1/8 to twice --users, under gathered (and "
        "sequential, where nothing is paid for), unless --levels or --strategy name others; says at the end "
        "which servers it took past their capacity",
        "turns",
        ("compare",),
    )

    def __post_init__(self) -> None:
        self.check()


@dataclass(frozen=True, slots=True)
class LoadOptions(Options):
    """The options of a load test, beside its size.

    `variants` are crossed with `strategies`, and are in them from then on (`StrategySpec.variant`): without
    strategies of their own the agent runs its calls its own way under each.
    `base_url` None: the embedded emulator. `trial_seconds` and `blocks` None: as `plan.timing` chooses.
    `run_directory`: one that was made for this test beforehand. `metrics_port` None: the first that is free.
    `direct`: calls of the one server of `mcp`, without a model; `expected_agents` is how many agents a
    process is about to have there, where each has a session of its own.
    `until_seconds`: by then, on the monotonic clock of this machine, the last turn has drained; what does not
    fit is left out. `window_loops`: in a closed load with such an end a turn measures at least so many loops
    of each agent. `climb`: all strategies but the first run on the highest of the levels only. `own_work`:
    each turn does work of its own, not that of the others of its block, which says more about the work and
    less about the strategies.
    """

    provider: str = target(
        "--provider", TEXT, "openai", "whose SDK and wire format", choices=tuple(PROVIDERS)
    )
    client: ClientName = target(  # noqa: RUF009  # as the others: an alias is not known to be immutable
        "--client",
        TEXT,
        "sdk",
        "client of the model's server: the provider's SDK, or our own, which costs a small part of that",
        choices=CLIENTS,
    )
    scenario: str = target("--scenario", TEXT, "cities", "what the work is", metavar="NAME|FILE")
    base_url: str | None = target(
        "--base-url",
        URL,
        None,
        "the model server: its root, or a URL with a path and query of its own, which is taken as it is "
        "(default: the emulator)",
        secret=True,
    )
    header: tuple[str, ...] = target(
        "--header", HEADER, (), "sent with every model request; may be repeated", repeats=True, secret=True
    )
    query: tuple[str, ...] = target(
        "--query",
        PARAMETER,
        (),
        "in the URL of every model request; may be repeated",
        repeats=True,
        secret=True,
    )
    body: tuple[str, ...] = target(
        "--body",
        FIELD,
        (),
        "a field of every model request, or with null one to leave out (thinking, reasoning_effort, "
        "stream_options=null); may be repeated",
        repeats=True,
    )
    ca: str | None = target(
        "--ca", TEXT, None, "certificates (PEM) to trust beside the system's", metavar="FILE"
    )
    client_cert: str | None = target(
        "--client-cert",
        TEXT,
        None,
        "this client's certificate for the model server (PEM, with its key or --client-key)",
        metavar="FILE",
    )
    client_key: str | None = target(
        "--client-key", TEXT, None, "the key of --client-cert, without a password", metavar="FILE"
    )
    insecure: bool = target("--insecure", SWITCH, False, "trust whatever certificate the model server shows")
    dialect: str = target(
        "--dialect",
        TEXT,
        AS_THE_SCENARIO,
        "whose Chat Completions the emulator speaks; scenario: what that says, else openai",
        choices=(AS_THE_SCENARIO, *DIALECTS),
    )
    tools_url: str | None = target(
        "--tools-url", TEXT, None, "root of the tools' server (default: the emulator)", metavar="URL"
    )
    model: str | None = target("--model", TEXT, None, f"model name (default: {_MODELS})", metavar="M")
    seed: int = option(
        "--seed",
        SEED,
        1,
        "seed of the emulated work",
        "target",
        ("run", "compare", "tune", "locust", *DIRECT),
    )
    max_rounds: int = target("--max-rounds", COUNT, 5, "rounds with calls at most")
    tool_choice: str = target(
        "--tool-choice", TEXT, "auto", "auto, none, required, or a tool's name", metavar="C"
    )
    parallel_tool_calls: bool = target(
        "--no-parallel-tool-calls", SWITCH, True, "ask for one call per response: a baseline"
    )
    model_limit: str | None = target(
        "--model-limit",
        TEXT,
        None,
        "limiters of ours in front of the model: rate:500/min,burst=10+tokens:30000/min, semaphore:8",
        metavar="SPEC",
    )
    stream: bool = target("--stream", SWITCH, False, "ask for streamed responses")
    loop_timeout: float = option(
        "--loop-timeout",
        MEASURED,
        900.0,
        "a loop that takes longer is ended, and has failed (`loop_timeout`)",
        "target",
        ("run", "compare", "tune", "locust", *DIRECT),
    )

    mcp: tuple[str, ...] = tool_server(
        MCP_FLAG,
        SERVER,
        (),
        "an MCP server whose tools the loop gets: its URL, or the command that starts it (with a small, safe "
        "environment; more by `env NAME=VALUE command`); may be repeated",
        repeats=True,
        secret=True,
    )
    mcp_headers: tuple[str, ...] = tool_server(
        "--mcp-header",
        SERVER_HEADER,
        (),
        "a header for requests to this MCP server; may be repeated",
        repeats=True,
        secret=True,
    )
    mcp_per_agent: bool = any_tools(
        "--mcp-per-agent",
        SWITCH,
        False,
        "every agent has MCP sessions, and server processes, of its own; else those of a process share them",
    )
    mcp_client: str = any_tools(
        "--mcp-client",
        TEXT,
        "lean",
        "client of the MCP servers: our own, or the official SDK, which costs several times as much",
        choices=("lean", "sdk"),
    )
    allow_writes: tuple[str, ...] = any_tools(
        "--allow-writes",
        NAMES,
        (),
        "call these tools too although they do not declare themselves read-only",
    )
    call: tuple[str, ...] = direct(
        "--call",
        NAMES,
        (),
        "load the MCP server directly, without a model: call these tools in turn (default: every read-only "
        "one), with arguments drawn from their schemas",
    )
    call_arguments: str | None = direct(
        "--args", OBJECT, None, "the arguments of the one tool of --call", metavar="JSON", secret=True
    )
    calls_from: str | None = direct(
        "--args-from",
        TEXT,
        None,
        'calls, one a line: {"tool": "search", "arguments": {…}}; cycled in an order that --seed decides',
        metavar="FILE",
    )
    strategies: tuple[StrategySpec, ...] = option(
        "--strategy",
        STRATEGIES,
        DEFAULT_STRATEGIES,
        f"{STRATEGY_FORMS}; may be repeated; the first is what the others are compared with",
        "load",
        ("compare", "locust", "predict"),
        repeats=True,
    )
    variants: tuple[str, ...] = option(
        "--variant",
        VARIANTS,
        (),
        "a setting that the function of --agent is called with (max_concurrent_calls=2,8); each value, and "
        "each combination of several settings, is compared as a strategy is, under each --strategy where one "
        f"is given; may be repeated; {MOST_VARIANTS} at most",
        "load",
        ("compare", "locust"),
        repeats=True,
    )
    think_seconds: float = predicted("--think", SECONDS, 0.0, "closed load: wait between an agent's loops")
    arrivals: str | None = closed_predicted(
        "--arrivals",
        TEXT,
        None,
        "open load instead: loops arrive at this rate (Poisson; constant:R/s evenly spaced) and do not "
        "wait for each other; latency counts from when they were due",
        metavar="R/s",
    )
    max_in_flight: int | None = closed_predicted(
        "--max-in-flight", COUNT, None, "open load: loops at once at most; others wait"
    )
    drain_seconds: float = closed_predicted(
        "--drain",
        SECONDS,
        DRAIN_SECONDS,
        "wait for loops in flight at most, then cut them off and count them; of an open mcp load: until the "
        f"last call has ended, {MOST_DRAIN_SECONDS / 60:.0f} min at most",
    )
    allow_remote: bool = option(
        "--allow-remote",
        SWITCH,
        False,
        "let the load go beyond this machine: it costs money (`run`: needed for MCP servers alone)",
        "load",
        ("run", "compare", "tune", "locust", *DIRECT),
    )
    share_limit: bool = strategies_too(
        "--share-limit",
        SWITCH,
        False,
        "divide all limits among the processes; else each has them whole",
    )
    slo: str | None = predicted("--slo", TEXT, None, "what a good loop is: p95<2s,errors<1%", metavar="S")
    abort_on: str | None = closed(
        "--abort-on", TEXT, None, "end a hopeless run early: errors>20%", metavar="RULE"
    )
    agent: str | None = own(
        "--agent",
        TEXT,
        None,
        "your own agent instead of the built-in loop: a function that takes the prompt, or a factory of "
        "one (make_…, or one with a parameter ctx)",
        metavar="MODULE:FUNCTION",
    )
    factory: bool = own("--factory", SWITCH, False, "what --agent names makes the agent, whatever its name")
    calibration_seconds: float = load(
        "--calibrate", SECONDS, 0.5, "measure the client alone first, 0 to skip"
    )
    metrics_port: int | None = load(
        "--metrics-port",
        PORT,
        None,
        f"serve /metrics here; worker k at this port + k (default: {METRICS_PORT} or the next free one)",
    )
    metrics_host: str = load(
        "--metrics-host",
        TEXT,
        LOOPBACK,
        "address to serve /metrics on, by default for this machine alone",
        metavar="H",
    )
    metrics: bool = load("--no-metrics", SWITCH, True, "serve no /metrics")
    linger_seconds: float = option(
        "--metrics-linger", SECONDS, 0.0, "serve /metrics so long after the last trial", "load", ("locust",)
    )
    out: str = load("--out", TEXT, "runs", "where run directories go", metavar="DIR")

    levels: tuple[int, ...] = turns(
        "--levels", LEVELS, (), "a ladder of loads: every strategy under each number of agents"
    )
    blocks: int | None = turns(
        "--blocks",
        COUNT,
        None,
        "turns that every strategy gets (default: 3 to 10; 1 of calls that arrive without a model)",
    )
    trial_seconds: float | None = option(
        "--trial-seconds", MEASURED, None, "how long each turn measures", "turns", ("locust",)
    )

    max_loops: int | None = spending("--max-loops", COUNT, None, "loops")
    max_requests: int | None = spending("--max-requests", COUNT, None, "model requests: every attempt")
    max_tokens: int | None = spending("--max-tokens", COUNT, None, "all tokens, in and out, cached or not")
    max_cost: float | None = spending(
        "--max-cost", AMOUNT, None, "what the tokens cost, by what the cache did with them", metavar="USD"
    )
    price: str | None = spending(
        "--price",
        TEXT,
        None,
        "USD per million tokens in and out, and of cached and cache-written ones as in 3/15/0.30/3.75 "
        "(default: a table of some known models)",
        metavar="IN/OUT",
    )

    record_content: bool = content(
        "--record-content", SWITCH, False, "keep prompts, arguments and results in the records"
    )
    redact: str | None = content(
        "--redact",
        TEXT,
        None,
        "with --record-content: a function that every text passes through, str to str",
        metavar="MODULE:FUNCTION",
    )

    direct: bool = option("--direct", SWITCH, False, "", "mcp", ("locust",), hidden=True)
    expected_agents: int | None = option(
        "--expected-agents", COUNT, None, "", "mcp", ("locust",), hidden=True
    )
    run_directory: str | None = option("--run-directory", TEXT, None, "", "load", ("locust",), hidden=True)
    window_loops: float = option("--window-loops", SECONDS, 0.0, "", "turns", ("locust",), hidden=True)
    until_seconds: float | None = option(
        "--until-seconds", AMOUNT, None, "", "turns", ("locust",), hidden=True
    )
    climb: bool = option("--climb", SWITCH, False, "", "turns", ("locust",), hidden=True)
    own_work: bool = option("--own-work", SWITCH, False, "", "turns", ("locust",), hidden=True)

    def __post_init__(self) -> None:
        """Raises `UsageError` naming the option that cannot be used."""
        self.check()
        self._check_direct()
        if self.variants:
            specs = (
                () if self.strategies is DEFAULT_STRATEGIES else self.strategies
            )  # as long as nobody names any
            object.__setattr__(self, "strategies", crossed(specs, self.variants))
            object.__setattr__(self, "variants", ())
        self._check_strategies()
        self._check_servers()
        tls_of(self)
        check_load(self.arrivals, self.think_seconds, self.max_in_flight, self.levels)
        if self.abort_on is not None:
            AbortRule.parse(self.abort_on)
        if self.slo is not None:
            parse_objective(self.slo, "--slo")
        if self.factory and self.agent is None:
            raise UsageError("--factory says what --agent is: add --agent MODULE:FUNCTION")
        if self.redact is not None and not self.record_content:
            raise UsageError("--redact is for content that is recorded: add --record-content")
        if self.max_cost is not None and not 0 < self.max_cost < math.inf:
            raise UsageError(f"--max-cost must be an amount above 0, not {self.max_cost:g}")
        self.budget()  # refuses a price that is none, and a limited cost without a price
        if self.model_limit is not None:
            from profiler.loop.model import parse_model_limit

            parse_model_limit(self.model_limit)

    def _check_direct(self) -> None:
        """Raises `UsageError` for calls that cannot be made without a model."""
        if not self.direct:
            for flag, value in (("--call", self.call), ("--args-from", self.calls_from)):
                if value:
                    raise UsageError(
                        f"{flag} is for calls without a model: use profiler mcp load, or an MCPUser in a "
                        "Locust file"
                    )
            return
        if len(self.mcp) != 1:
            raise UsageError(
                "--mcp: name the one server whose tools are called without a model (--direct): "
                f"{len(self.mcp)} were named"
            )
        if self.strategies is DEFAULT_STRATEGIES:  # there is one call in a loop, and nothing to compare
            object.__setattr__(self, "strategies", (StrategySpec("gathered"),))
        if self.calls_from is not None and (self.call or self.call_arguments is not None):
            raise UsageError("--args-from says which tools are called: leave out --call and --args")
        if self.call_arguments is not None and len(self.call) != 1:
            raise UsageError("--args are those of one tool: name it with --call")
        if self.agent is not None:
            raise UsageError("--agent asks a model, and mcp load calls tools without one: leave one out")

    def _check_strategies(self) -> None:
        if not self.strategies:
            raise UsageError("--strategy: name at least one strategy")
        for spec in self.strategies:
            if self.strategies.count(spec) > 1:
                raise UsageError(f"--strategy {spec}: each strategy can be named once")
            if spec.needs_stream and not self.stream:
                raise UsageError(f"--strategy {spec}: starts tools while a reply streams: add --stream")
        if sum(bool(spec.variant) for spec in self.strategies) > MOST_VARIANTS:
            raise UsageError(f"--strategy: {MOST_VARIANTS} settings of an agent at most can be compared")
        written = list(map(str, self.strategies))
        if split_specs(",".join(written)) != written:  # as run.json and messages have them
            own = next(spec for spec in self.strategies if spec.kind == "own")
            raise UsageError(f"--strategy {own}: name it before any strategy with limits of tools")

    def _check_servers(self) -> None:
        servers = self.servers
        if not servers:
            switches = {"--mcp-per-agent": self.mcp_per_agent, "--allow-writes": self.allow_writes}
            lone = next((flag for flag, given in switches.items() if given), None)
            if lone is not None and self.agent is None:
                raise UsageError(f"{lone} is about MCP servers: name them with --mcp")
        known = [server.name for server in servers]
        for spec in self.strategies:
            for rule in spec.rules:
                if rule.scope != "server" or self.agent is not None:
                    continue  # which servers an agent of the user's own asks nobody knows yet
                if not servers:
                    raise UsageError(f"--strategy {spec}: a limit of MCP servers: name them with --mcp")
                if rule.server is not None and rule.server not in known:
                    raise UsageError(
                        f"--strategy {spec}: there is no MCP server {rule.server!r}"
                        f"{did_you_mean(rule.server, known)}; known: {', '.join(known)}"
                    )

    @property
    def other_client(self) -> ClientName:
        """The one that the built-in loops do not use."""
        return next(client for client in CLIENTS if client != self.client)

    @property
    def servers(self) -> tuple[ServerSpec, ...]:
        """The MCP servers whose tools the loops get; this process shows none of their secrets from now on.

        Raises `UsageError`.
        """
        if not (self.mcp or self.mcp_headers):
            return ()
        from profiler.mcp.servers import parse_servers

        found = parse_servers(self.mcp, self.mcp_headers)
        keep_secret(value for server in found for value in server.secrets)
        return found

    def check_variants(self) -> None:
        """Raises `UsageError` for settings of an agent where there is none of the user's own."""
        chosen = next((spec for spec in self.strategies if spec.variant), None)
        if chosen is not None and self.agent is None:
            raise UsageError(
                f"--variant {variant_text(chosen.variant[:1])}: settings are those of an agent of your own: "
                "name the function that takes them with --agent MODULE:FUNCTION"
            )

    def budget(self, model: str = "") -> Budget:
        """The limits on spending. `model`: the one that requests name, where that is known by now.

        Raises `UsageError` when costs are limited and the model's price is unknown.
        """
        from profiler.load.spending import RESOURCES, Budget

        model = model or self.asked_model
        price = self.model_price(model)
        if self.max_cost is not None and price is None:
            named = f"the price of {model} is unknown" if model else "which model the agent uses is unknown"
            raise UsageError(
                f"--max-cost: {named}: say it with --price IN/OUT, USD per million input and output tokens"
            )
        limits = {resource: getattr(self, f"max_{resource}") for resource in RESOURCES}
        return Budget({name: limit for name, limit in limits.items() if limit is not None}, price)

    def model_price(self, model: str = "") -> Price | None:
        """The price of a model's tokens, None where it is unknown. `model`: as in `budget`."""
        from profiler.load.spending import price_of

        return price_of(model or self.asked_model, self.price, PROVIDERS[self.provider].sdk)

    @property
    def asked_model(self) -> str:
        """The model's name in requests; empty where the user's own agent decides it."""
        return self.model or ("" if self.agent else PROVIDERS[self.provider].default_model)

    def endpoint(self, root: str) -> Endpoint:
        """The model server at `root`, asked as these options say."""
        return endpoint_of(self, root)

    @property
    def server(self) -> ServerSpec:
        """The server that is loaded without a model."""
        (found,) = self.servers
        return found

    @property
    def uninterrupted(self) -> bool:
        """Whether calls arrive, without a model: a queue that is let run empty between blocks never gets as
        long as it would, so there is one block unless more are asked for."""
        return self.direct and self.arrivals is not None

    @property
    def watched_url(self) -> str | None:
        """The server that the user named, which may go away in the middle; None for what we start."""
        return self.server.url if self.direct else self.base_url

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of `--body`: to be set in every request, or with None to be left out."""
        return fields_of(self.body)

    def remote_targets(self, environment: Mapping[str, str]) -> dict[str, str]:
        """Targets that are not this machine: the option or variable that named each → its URL.

        `environment` may name tools too. Raises `UsageError` for what is no URL of a server.
        """
        if self.direct:
            return self.remote_servers
        targets = {
            "--base-url": self.base_url,
            "--tools-url": self.tools_url,
            "PROFILER_TOOLS_URL": environment.get("PROFILER_TOOLS_URL") if self.tools_url is None else None,
            "PROFILER_WEATHER_URL": environment.get("PROFILER_WEATHER_URL"),
        }
        remote = {
            name: url for name, url in targets.items() if url and not Endpoint.parse(url, name).is_loopback
        }
        return remote | self.remote_servers

    @property
    def remote_servers(self) -> dict[str, str]:
        """MCP servers that are not on this machine, as `remote_targets` names targets."""
        return {f"{MCP_FLAG} {one.name}": one.url for one in self.servers if one.url and not one.is_loopback}

    def check_targets(self, environment: Mapping[str, str]) -> None:
        """Raises `UsageError` naming a target that is not this machine, without `--allow-remote`.

        And for certificates that cannot be used, those that the environment names included.
        """
        check_trusted(environment)
        check_tls(self)
        self.check_servers()
        remote = self.remote_targets(environment)  # asked in any case: it refuses what is no URL
        if not self.allow_remote:
            _refuse_remote(remote)

    def check_servers(self) -> None:
        """Raises `UsageError` naming an MCP server that is not on this machine, without `--allow-remote`.

        And for servers beside an agent of the user's own.
        """
        if self.agent is not None and self.mcp:
            raise UsageError(
                f"{MCP_FLAG} gives tools to the built-in loop, and --agent has its own: let the agent ask "
                "the servers itself"
            )
        if not self.allow_remote:
            _refuse_remote(self.remote_servers)


def check_load(
    arrivals: str | None, think_seconds: float, max_in_flight: int | None, levels: Sequence[int]
) -> None:
    """Raises `UsageError` naming the option that is of another kind of load than the others, or is wrong."""
    if arrivals is not None:
        Arrivals.parse(arrivals)
        if think_seconds:
            raise UsageError("--think is for a closed load: with --arrivals nobody waits for an answer")
    elif max_in_flight is not None:
        raise UsageError("--max-in-flight is for an open load (--arrivals): users already limit a closed one")
    if len(set(levels)) < len(levels):
        raise UsageError("--levels: each level can be named once")


def _refuse_remote(targets: Mapping[str, str]) -> None:
    for name, url in targets.items():
        what = "to call its tools" if name.startswith(MCP_FLAG) else "a load test of it"
        raise UsageError(
            f"{name} {shown_url(url)} is not this machine: {what} needs --allow-remote "
            "(real endpoints cost money and belong to somebody)"
        )


class Asked(NamedTuple):
    """The load test asked for. `run`: the conditions in its run directory, where that was made beforehand."""

    options: LoadOptions
    run: Run | None = None


SECRETS = "PROFILER_SECRETS"
"""Environment variable of Locust's process: the options that are secrets, as JSON; `run.json` has none."""

NOT_REPEATED = ("out", "run_directory", "trial_seconds", "blocks", "strategies", "linger_seconds", "variants")
"""Options that the line to repeat a run leaves out: others imply them, or they do not matter."""


def asked(
    parsed: argparse.Namespace, environment: Mapping[str, str], command_line: LoadOptions | None = None
) -> Asked:
    """The load test that Locust's parsed options ask for; where they name a run directory, its options count.

    `command_line`: the options that were given there, whose secrets the web form shows in part. Raises
    `UsageError` naming the option that cannot be used.
    """
    from profiler.rundir import RunDirectory
    from profiler.scenarios import load_scenario

    run = None
    if parsed.run_directory:
        run = RunDirectory.open(parsed.run_directory).load()
        options = LoadOptions.from_json(
            {**run.arguments, **json.loads(environment.get(SECRETS, "{}"))},
            strategies=run.strategies,
            run_directory=parsed.run_directory,
        )
    else:
        hidden = {} if command_line is None else command_line.given_back(parsed)
        options = LoadOptions.from_namespace(without_default_strategies(parsed), **hidden)
        if options.base_url is None and parsed.host:
            options = replace(options, base_url=parsed.host)
    options.check_targets(environment)
    load_scenario(options.scenario)
    if options.run_directory is None:
        RunDirectory.check_parent(options.out)
    return Asked(options, run)


def without_default_strategies(parsed: argparse.Namespace) -> argparse.Namespace:
    """Locust's parsed options without strategies that are only its form's, or its parser's, default."""
    strategy = getattr(parsed, "strategy", None) or ()
    given = strategy if isinstance(strategy, str) else ",".join(strategy)
    if given != STRATEGIES.write(DEFAULT_STRATEGIES):
        return parsed
    return argparse.Namespace(**{**vars(parsed), "strategy": None})


def conditions(options: LoadOptions, users: int) -> Run:
    """`run.json` before anything has run. `users`: agents, where `levels` do not say how many."""
    from profiler import rundir
    from profiler.records import NO_MODEL
    from profiler.rundir import DRAWN_ARGUMENTS, Anchor, Load, Run

    most = max(options.levels, default=users)
    load = Load("closed", most, think_seconds=options.think_seconds)
    if options.arrivals is not None:
        rate = Arrivals.parse(options.arrivals, users).expected(most, 1.0)
        load = Load("open", most, arrivals=options.arrivals, rate=rate)
    # The arguments themselves are not kept.
    drawn = {}
    if options.direct:
        drawn[DRAWN_ARGUMENTS] = options.calls_from is None and options.call_arguments is None
    return Run(
        scenario=options.server.shown if options.direct else options.scenario,
        provider=NO_MODEL if options.direct else options.provider,
        strategies=options.strategies,
        load=load,
        seed=options.seed,
        anchor=Anchor.now(),
        machine=rundir.machine(),
        versions=rundir.versions(),
        arguments=options.as_json(leave_out=("out", "run_directory")) | drawn,
        model=options.model or "",
        slo=options.slo,
        repeat=tuple(_repeat(options)),
    )


def _repeat(options: LoadOptions) -> list[str]:
    """The arguments of `profiler compare`, or `profiler mcp load`, that repeat a run."""
    written = options.arguments((*NOT_REPEATED, "scenario", *(("mcp_headers",) if options.direct else ())))
    if not options.direct:
        return ["--scenario", options.scenario, *written]
    at = written.index(MCP_FLAG)
    target = written[at + 1]
    headers = [one.split(":", 1)[1].split("=", 1)[0] for one in options.mcp_headers]
    return [
        target,
        *written[:at],
        *written[at + 2 :],
        *(part for name in headers for part in ("--header", f"{name}={REDACTED}")),
    ]
