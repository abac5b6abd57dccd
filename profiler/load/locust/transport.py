"""Our messages on Locust's runners: to the workers of a master, and to itself in a single process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from locust.runners import LocalRunner

from profiler.load.messages import ToLeader, ToWorker, pack, unpack, wire_name

M = TypeVar("M", bound=ToWorker | ToLeader)


def send(runner: Any, message: ToWorker | ToLeader, worker: str | None = None) -> None:
    """To a worker, or from one to its leader."""
    # In a single process the message itself is passed on; nothing is packed, nor read again.
    data = message if isinstance(runner, LocalRunner) else pack(message)
    runner.send_message(wire_name(type(message)), data, worker)


def receive(
    runner: Any, kind: type[M], handle: Callable[[str, M], object], *, concurrent: bool = False
) -> None:
    """Have `handle(node, message)` called for every message of that kind; if `concurrent`, it may wait."""

    def listen(environment: Any, msg: Any, **_: Any) -> None:
        handle(msg.node_id, msg.data if isinstance(msg.data, kind) else unpack(kind, msg.data))

    runner.register_message(wire_name(kind), listen, concurrent=concurrent)


class LocalTransport:
    """The only process, as its own single worker."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner

    def workers(self) -> list[str]:
        return ["local"]

    def users(self) -> int:
        return int(self._runner.user_count)

    def wanted_users(self) -> int:
        return int(self._runner.target_user_count)

    def scale(self, users: int, rate: float) -> None:
        self._runner.start(users, rate)

    def send(self, message: ToWorker, worker: str) -> None:
        send(self._runner, message, worker)


class MasterTransport(LocalTransport):
    """The workers of a Locust master, as far as they have said (`Hello`) that they listen to us."""

    def __init__(self, runner: Any, greeted: set[str]) -> None:
        super().__init__(runner)
        self._greeted = greeted

    def workers(self) -> list[str]:
        clients = self._runner.clients
        alive = [client.id for client in (*clients.ready, *clients.spawning, *clients.running)]
        return sorted((id for id in alive if id in self._greeted), key=self._runner.get_worker_index)
