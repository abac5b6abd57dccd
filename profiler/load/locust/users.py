"""The parts of a Locust file: a user, which is one agent, and load shapes."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from locust import LoadTestShape, User, constant, events, task
from locust.user.task import LOCUST_STATE_STOPPING

from profiler.load.context import AgentFactory
from profiler.load.locust.quirks import forget_user
from profiler.load.locust.session import Session, install
from profiler.load.plan import agent_name
from profiler.load.trial import RunningTrial

DEFAULT_USERS = 20
"""Users of a load shape without `-u`."""

_ordinals = itertools.count()


class AgentUser(User):  # type: ignore[misc]
    """An agent that runs loops, one after another or as they arrive, whenever a trial is open.

    For a Locust file of your own, a subclass with `agent` is all it takes: a factory (`AgentContext` → async
    callable, one call is one loop). Defining the subclass registers our options and listeners with Locust.
    `--agent` on the command line takes precedence over `agent`.
    """

    abstract = True
    agent: ClassVar[AgentFactory | None] = None
    wait_time = constant(0)

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if not cls.__dict__.get("abstract", False):
            install(events, cls.defaults())

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Values of our options that hold where the command line, and the web form, name no others."""
        return {}

    def on_start(self) -> None:
        self._ordinal = next(_ordinals)
        self._last: RunningTrial | None = None
        self._in_trial = False

    @task  # type: ignore[untyped-decorator]
    def take_part(self) -> None:
        """Run loops in the next trial, until it is over."""
        worker = Session.of(self.environment).worker
        self._last = worker.next_trial(self._last)
        self._in_trial = True
        try:
            worker.take_part(
                type(self).__name__, agent_name(self._ordinal), self._ordinal, self._last, self._leaving
            )
        finally:
            self._in_trial = False

    def stop(self, force: bool = False) -> bool:
        """Let an agent that Locust takes away in the middle of a trial finish its loop first (`_leaving`).

        So no loop is cut off when the load shrinks, or moves to a worker that joined.
        """
        if not getattr(self, "_in_trial", False):  # Locust may stop a user before its `on_start`
            return bool(super().stop(force))
        if self._state != LOCUST_STATE_STOPPING:
            super().stop(force=False)
        forget_user(self)  # the end of the trial waits for its loop in any case
        return False

    def _leaving(self) -> bool:
        stopping: bool = self._state == LOCUST_STATE_STOPPING
        return stopping


class MCPUser(AgentUser):
    """An agent that calls the tools of an MCP server, without a model.

    For a Locust file of your own: `server` is the URL or the command (as `--mcp` names it), `call` the tools,
    `arguments` those of the one tool in it. All may be left to the command line, which takes precedence.
    """

    abstract = True
    server: ClassVar[str] = ""
    call: ClassVar[str | Sequence[str]] = ()
    arguments: ClassVar[Mapping[str, Any] | None] = None

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        tools = cls.call if isinstance(cls.call, str) else ",".join(cls.call)
        return {
            "direct": True,
            **({"mcp": [cls.server]} if cls.server else {}),
            **({"call": tools} if tools else {}),
            **({} if cls.arguments is None else {"args": json.dumps(dict(cls.arguments))}),
        }


class LoadShape(LoadTestShape):  # type: ignore[misc]
    """Users as a function of the share of the time that has passed.

    It reads Locust's own `-u` (the most users), `-r` and `-t` (the whole time). While a shape changes the
    number of users, strategies go on taking turns, and every trial belongs to one number of users. With
    `--arrivals` the rate asked for is that of `-u` users, and follows the shape.
    """

    abstract = True
    use_common_options = True
    seconds: ClassVar[float] = 120.0

    def tick(self) -> tuple[int, float] | None:
        """The users to have now and the rate to spawn them at; Locust asks every second. None: the end."""
        parsed = self.runner.environment.parsed_options
        most = int(parsed.num_users or DEFAULT_USERS)
        total = float(parsed.run_time or self.seconds)
        passed = self.get_run_time() / total
        if passed >= 1:
            return None
        return self.users(most, passed), float(parsed.spawn_rate or most)

    @staticmethod
    def users(most: int, passed: float) -> int:
        """How many of `most` users there are when the share `passed` of the time has passed."""
        raise NotImplementedError


class Steps(LoadShape):
    """Four equal steps up to all users."""

    abstract = True

    @staticmethod
    def users(most: int, passed: float) -> int:
        return math.ceil(most * (int(passed * 4) + 1) / 4)


class Spike(LoadShape):
    """A fifth of the users, for the third fifth of the time all of them, then a fifth again."""

    abstract = True

    @staticmethod
    def users(most: int, passed: float) -> int:
        return most if 0.4 <= passed < 0.6 else math.ceil(most / 5)


class Soak(LoadShape):
    """All users for a long time: leaks and drifts show late."""

    abstract = True
    seconds = 1800.0

    @staticmethod
    def users(most: int, passed: float) -> int:
        return most
