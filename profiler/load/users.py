"""The Locust user: one agent."""

from __future__ import annotations

import itertools

from locust import User, constant, task
from locust.user.task import LOCUST_STATE_STOPPING

from profiler.load.crew import Trial
from profiler.load.session import Session

_numbers = itertools.count()


class Agent(User):  # type: ignore[misc]
    """An agent that runs loops one after another, whenever a trial is open."""

    wait_time = constant(0)

    def on_start(self) -> None:
        self._name = f"a{next(_numbers)}"
        self._last: Trial | None = None

    @task  # type: ignore[untyped-decorator]
    def take_part(self) -> None:
        """Live through one trial."""
        crew = Session.of(self.environment).crew
        self._last = crew.take_part(self._name, self._last, self._leaving)

    def _leaving(self) -> bool:
        stopping: bool = self._state == LOCUST_STATE_STOPPING
        return stopping
