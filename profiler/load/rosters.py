"""Locust's runners as rosters: who works, and how to reach them."""

from __future__ import annotations

from typing import Any


class LocalRoster:
    """The only process, as its own single worker."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner

    def workers(self) -> list[str]:
        return ["local"]

    def users(self) -> int:
        return int(self._runner.user_count)

    def send(self, kind: str, data: dict[str, Any], worker: str) -> None:
        self._runner.send_message(kind, data)


class MasterRoster:
    """The workers of a Locust master, as far as they have said that they listen to us."""

    def __init__(self, runner: Any, greeted: set[str]) -> None:
        self._runner = runner
        self._greeted = greeted

    def workers(self) -> list[str]:
        clients = self._runner.clients
        alive = [client.id for client in (*clients.ready, *clients.spawning, *clients.running)]
        return sorted((id for id in alive if id in self._greeted), key=self._runner.get_worker_index)

    def users(self) -> int:
        return int(self._runner.user_count)

    def send(self, kind: str, data: dict[str, Any], worker: str) -> None:
        self._runner.send_message(kind, data, worker)
