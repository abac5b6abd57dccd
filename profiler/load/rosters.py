"""Locust's runners as rosters: who works, and how to reach them."""

from __future__ import annotations

from typing import Any

from locust.runners import WorkerNode, WorkerNodes


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


class LeavableNodes(WorkerNodes):  # type: ignore[misc]
    """Locust's table of workers, which one may leave while it is gone through.

    Locust's (2.47) looks each worker up as it gets there. Its master spawns users anew in the middle of
    going through them, when one was lost: where another quits meanwhile, since the test is over, the
    master failed with a `KeyError` and exit code 2.
    """

    @property
    def all(self) -> list[WorkerNode]:
        return list(self.values())


def let_workers_leave(master: Any) -> None:
    """At any moment of a Locust master's; see `LeavableNodes`."""
    master.clients.__class__ = LeavableNodes
