from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest

from profiler.proxy import dialing
from profiler.testing import run_virtual

V6, V4 = socket.AF_INET6, socket.AF_INET


def test_addresses_alternate_between_their_families() -> None:
    given = [(V6, "a"), (V6, "b"), (V6, "c"), (V4, "d"), (V4, "e")]
    assert [name for _, name in dialing.alternating(given)] == ["a", "d", "b", "e", "c"]
    assert dialing.alternating([]) == []


def dialled(
    monkeypatch: pytest.MonkeyPatch, answers: dict[str, tuple[float, OSError | None]]
) -> tuple[object, float, list[tuple[str, float]], list[str]]:
    """What became of it, when, which address was tried when, and which sockets were closed."""
    tried: list[tuple[str, float]] = []
    closed: list[str] = []

    class One:
        def __init__(self, name: str) -> None:
            self.name = name

        def close(self) -> None:
            closed.append(self.name)

    async def _tried(loop: asyncio.AbstractEventLoop, address: tuple[int, str]) -> One:
        tried.append((address[1], loop.time() - began[0]))
        seconds, error = answers[address[1]]
        await asyncio.sleep(seconds)
        if error is not None:
            raise error
        return One(address[1])

    began = [0.0]
    monkeypatch.setattr(dialing, "_tried", _tried)

    async def main(clock: Callable[[], int]) -> tuple[object, float]:
        loop = asyncio.get_running_loop()
        began[0] = loop.time()
        dialling: Awaitable[socket.socket] = dialing.first_of(loop, [(V4, name) for name in answers])
        try:
            found: object = (await dialling).name  # type: ignore[attr-defined]
        except OSError as error:
            found = error
        took = loop.time() - began[0]
        await asyncio.sleep(0)
        return found, took

    found, took = run_virtual(main)
    return found, round(took, 3), [(name, round(at, 3)) for name, at in tried], closed


def test_address_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"silent": (1000.0, None), "good": (0.1, None), "third": (0.0, None)}
    found, took, tried, closed = dialled(monkeypatch, answers)
    assert (found, took, closed) == ("good", 0.35, [])
    assert tried == [("silent", 0.0), ("good", 0.25)]


def test_address_that_refuses_is_followed_by_the_next_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"refuses": (0.01, OSError("refused")), "good": (0.1, None)}
    assert dialled(monkeypatch, answers)[:2] == ("good", 0.11)


def test_first_of_two_that_answer_at_once_is_taken_and_the_other_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found, _, _, closed = dialled(monkeypatch, {"a": (0.5, None), "b": (0.25, None)})
    assert {found, *closed} == {"a", "b"}


def test_where_none_answers_the_first_failure_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    first = OSError("first")
    answers = {"a": (0.1, first), "b": (0.1, OSError("second"))}
    assert dialled(monkeypatch, answers)[:2] == (first, 0.2)
