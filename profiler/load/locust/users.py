"""The Locust user: one agent."""

from __future__ import annotations

import itertools
from typing import Any, ClassVar

from locust import User, constant, events, task
from locust.user.task import LOCUST_STATE_STOPPING

from profiler.load.agents import AgentFactory
from profiler.load.locust.quirks import forget_user
from profiler.load.locust.session import Session, install
from profiler.load.trial import RunningTrial

_ordinals = itertools.count()


class AgentUser(User):  # type: ignore[misc]
    """An agent that runs loops, one after another or as they arrive, whenever a trial is open.

    For Locust files of your own: a subclass with `agent`, a factory (`AgentContext` → async callable,
    one call is one loop), is all it takes. Defining one registers our options and listeners with
    Locust; `--agent` on the command line comes before it.
    """

    abstract = True
    agent: ClassVar[AgentFactory | None] = None
    wait_time = constant(0)

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        install(events)

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
                type(self).__name__, f"a{self._ordinal}", self._ordinal, self._last, self._leaving
            )
        finally:
            self._in_trial = False

    def stop(self, force: bool = False) -> bool:
        """An agent that Locust takes away within a trial finishes its loop first; see `_leaving`.

        So a load that shrinks, or moves to a worker that joined, cuts no loop off.
        """
        if not getattr(self, "_in_trial", False):
            return bool(super().stop(force))
        if self._state != LOCUST_STATE_STOPPING:
            super().stop(force=False)
        forget_user(self)  # the end of the trial waits for its loop in any case
        return False

    def _leaving(self) -> bool:
        stopping: bool = self._state == LOCUST_STATE_STOPPING
        return stopping


class Agent(AgentUser):
    """The built-in loop, or what `--agent` names."""
