"""What runs the loops of one process in a load test: made once for every strategy, and warmed up.

The first use of a client costs 110 to 230 ms: each runs one loop that is recorded nowhere.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from profiler.errors import ProviderError, TargetError
from profiler.load.agents import (
    AgentContext,
    AgentFactory,
    BuiltInAgent,
    CustomAgent,
    LoopPosition,
    LoopRunner,
    load_redact,
)
from profiler.load.messages import Ready
from profiler.load.options import LoadOptions
from profiler.load.spending import spent_by
from profiler.loop.recorder import Sink
from profiler.records import LoopRecord
from profiler.redaction import guard_logs
from profiler.rundir import Spent
from profiler.scenarios.schema import Scenario

if TYPE_CHECKING:
    from profiler.limits.gate import Gate
    from profiler.strategies import Strategy

FirstLoops = Callable[[], Awaitable[None]]

HOPELESS_STATUS = (400, 401, 403, 404)
"""Answers to the very first request that no later request would change."""


class LoopRunners:
    """A runner for each Locust user class and strategy. On the event loop's thread."""

    def __init__(self, options: LoadOptions, root: str, tools_root: str, scenario: Scenario) -> None:
        self._model = ""
        self._spent = Spent()
        self._first_failure: str | None = None
        self._options = options
        self._root = root
        self._tools_root = tools_root
        self._scenario = scenario
        self._redact = None if options.redact is None else load_redact(options.redact)
        self._runners: dict[tuple[str, str], LoopRunner] = {}
        self._model_gate: Gate | None = None

    def __getitem__(self, key: tuple[str, str]) -> LoopRunner:
        return self._runners[key]

    async def make(
        self,
        factories: Mapping[str, AgentFactory | None],
        strategies: Mapping[str, Strategy],
        sinks: Sequence[Sink],
        share: int = 1,
    ) -> Ready:
        """Make and warm up all of them; the answer says what that took.

        `factories`: by Locust user class, None for the built-in loop. `strategies`: by their text. `share`:
        how many processes share the limits. Raises `ProfilerError` when the target refuses, or cannot be
        reached.
        """
        from profiler.limits.gate import Gate
        from profiler.loop.limited_model import parse_model_limit

        if self._options.model_limit is not None:
            self._model_gate = Gate(parse_model_limit(self._options.model_limit), share=share)
        guard_logs()  # an agent's module may have set up logging of its own
        slowest = 0.0
        for user_class, factory in factories.items():
            if factory is None:
                first = self._make_built_in(user_class, strategies, sinks)
            else:
                first = await self._make_custom(user_class, factory, strategies, sinks)
            began = time.monotonic()
            await first()
            slowest = max(slowest, time.monotonic() - began)
        return Ready(
            loop_seconds=slowest, model=self._model, spent=self._spent, first_failure=self._first_failure
        )

    async def close(self) -> None:
        """Close what was made of them."""
        for runner in self._runners.values():
            await runner.close()

    def _make_built_in(
        self, user_class: str, strategies: Mapping[str, Strategy], sinks: Sequence[Sink]
    ) -> FirstLoops:
        from profiler.loop.eventloop import NativeThreads
        from profiler.loop.limited_model import LimitedModel
        from profiler.loop.loop import ToolLoop
        from profiler.providers import make_provider
        from profiler.scenarios.tools import scenario_tools

        options, prompt = self._options, self._scenario.prompt
        model = make_provider(options.provider, base_url=self._root, model=options.model)
        if self._model_gate is not None:
            model = LimitedModel(model, self._model_gate)
        self._model = model.model
        # All of them share one client, one set of tools and one pool of threads.
        loop = partial(
            ToolLoop,
            model,
            scenario_tools(self._scenario, self._tools_root),
            max_rounds=options.max_rounds,
            tool_choice=options.tool_choice,
            parallel_tool_calls=options.parallel_tool_calls,
            stream=options.stream,
            record_content=options.record_content,
            redact=self._redact,
            threads=NativeThreads(),
        )
        for spec, strategy in strategies.items():
            self._runners[user_class, spec] = BuiltInAgent(loop(strategy=strategy, sinks=sinks), prompt)
        first = loop(strategy=warm_up_strategy(list(strategies.values())), sinks=[self._warmed_up])
        self._spent += Spent(1)

        async def warm_up() -> None:
            try:
                await first.run(prompt.replace("{number}", "0"))
            except ProviderError as error:
                if error.status is None or error.status in HOPELESS_STATUS:
                    raise TargetError(str(error)) from error

        return warm_up

    async def _make_custom(
        self,
        user_class: str,
        factory: AgentFactory,
        strategies: Mapping[str, Strategy],
        sinks: Sequence[Sink],
    ) -> FirstLoops:
        self._model = self._options.model or ""
        made = []
        for spec, strategy in strategies.items():
            agent = await CustomAgent.make(factory, self._context(strategy, sinks), sinks)
            self._runners[user_class, spec] = agent
            made.append(agent)
        self._spent += Spent(len(made))

        async def warm_up() -> None:
            nowhere = LoopPosition(0, "", None, "")
            await asyncio.gather(*(agent.warm(nowhere, [self._warmed_up]) for agent in made))

        return warm_up

    def _context(self, strategy: Strategy, sinks: Sequence[Sink]) -> AgentContext:
        options = self._options
        return AgentContext(
            provider=options.provider,
            base_url=self._root,
            tools_url=self._tools_root,
            model=options.model,
            strategy=strategy,
            prompt=self._scenario.prompt,
            sinks=sinks,
            record_content=options.record_content,
            redact=self._redact,
            model_gate=self._model_gate,
        )

    def _warmed_up(self, record: LoopRecord) -> None:
        self._spent += spent_by(record)
        if record.status == "error":
            self._first_failure = record.error_type


def warm_up_strategy(strategies: Sequence[Strategy]) -> Strategy:
    """A strategy for the loop before the test that lets no more run at once than the test will."""
    from profiler.strategies import Gathered, Sequential

    if any(strategy.limit is None and strategy.gate is None for strategy in strategies):
        return Gathered()
    return next((strategy for strategy in strategies if strategy.gate is not None), Sequential())
