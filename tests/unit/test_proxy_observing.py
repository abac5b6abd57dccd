"""The queue to the observer: its order, its bounds, and that nothing that an observer does reaches others."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from profiler.proxy.observing import DELAY_SECONDS, Watching
from profiler.proxy.seen import Exchange
from profiler.testing import run_virtual


class Told:
    def __init__(self, fail: bool = False) -> None:
        self.events: list[tuple[str, int, bytes]] = []
        self._fail = fail

    def _add(self, name: str, exchange: Exchange) -> None:
        self.events.append((name, exchange.number, exchange.response.whole()))
        if self._fail:
            raise ValueError("what was being read")

    def requested(self, exchange: Exchange) -> None:
        self._add("requested", exchange)

    def responding(self, exchange: Exchange) -> None:
        self._add("responding", exchange)
        exchange.response.pieces.clear()

    def ended(self, exchange: Exchange) -> None:
        self._add("ended", exchange)

    def tick(self, now_ns: int) -> None:
        if self._fail:
            raise ValueError("what was being read")


def exchange(number: int) -> Exchange:
    headers = [(b"Authorization", b"Bearer sk"), (b"X-Api-Key", b"k"), (b"Accept", b"a"), (b"accept", b"b")]
    headers += [(b"Cookie", b"c"), (b"X-Goog-Api-Key", b"k"), (b"Mcp-Session-Id", b"s")]
    return Exchange(number, 1, "model", "http://a", b"POST", b"/x", number, raw_request=headers)


def watching(told: Told | None, said: list[str], **bounds: int) -> Watching:
    return Watching(told, asyncio.get_running_loop(), said.append, **bounds)


def test_watching_tells_events_in_their_order_after_the_turn_in_which_they_happened() -> None:
    async def main(clock: object) -> None:
        told = Told()
        seen = watching(told, [])
        first, second = exchange(1), exchange(2)
        seen.requested(first)
        seen.keep(first.response, 5, b"one")
        seen.responding(first)
        assert told.events == []
        await asyncio.sleep(2 * DELAY_SECONDS)
        assert told.events == [("requested", 1, b"one")]  # what goes on is told at the tick
        seen.tick(0)
        seen.keep(first.response, 6, b"two")
        seen.responding(first)
        await asyncio.sleep(2 * DELAY_SECONDS)
        seen.ended(first, "complete", 7)
        seen.ended(first, "client gone", 8)
        seen.requested(second)
        await asyncio.sleep(2 * DELAY_SECONDS)
        seen.tick(0)  # nothing more of what has ended
        await asyncio.sleep(2 * DELAY_SECONDS)
        assert told.events[1:] == [("responding", 1, b"onetwo"), ("ended", 1, b""), ("requested", 2, b"")]
        assert (first.outcome, first.ended_ns, first.response.size) == ("complete", 7, 6)
        assert seen.held == 0

    run_virtual(main)


def test_what_an_mcp_server_has_answered_is_told_before_the_request_that_may_hold_it() -> None:
    async def main(clock: object) -> None:
        told = Told()
        seen = watching(told, [])
        call, model = replace(exchange(1), kind="mcp"), exchange(2)
        seen.requested(call)
        seen.keep(call.response, 5, b"the result")
        seen.responding(call)  # its stream stays open
        seen.requested(model)
        seen.ended(model, "complete", 6)
        await asyncio.sleep(2 * DELAY_SECONDS)
        assert told.events == [
            ("requested", 1, b"the result"),
            ("responding", 1, b"the result"),
            ("requested", 2, b""),
            ("ended", 2, b""),
        ]

    run_virtual(main)


def test_watching_catches_up_with_what_waits_and_not_with_what_comes_meanwhile() -> None:
    async def main(clock: object) -> None:
        told = Told()
        seen = watching(told, [])
        for number in (1, 2, 3):
            seen.requested(exchange(number))

        async def on() -> None:
            while True:
                seen.requested(exchange(4))
                await asyncio.sleep(0)

        going_on = asyncio.create_task(on())
        await seen.catch_up()
        going_on.cancel()
        assert [number for _, number, _ in told.events[:3]] == [1, 2, 3]
        await seen.catch_up()
        await seen.catch_up()  # nothing waits
        assert seen.held == 0

    run_virtual(main)


def test_watching_tells_no_header_that_may_hold_a_credential() -> None:
    async def main(clock: object) -> None:
        one = exchange(1)
        one.raw_response = [(b"Set-Cookie", b"c"), (b"X-RateLimit-Remaining-Tokens", b"5")]
        seen = watching(Told(), [])
        seen.requested(one)
        await asyncio.sleep(2 * DELAY_SECONDS)
        assert one.request_headers == [(b"accept", b"a"), (b"accept", b"b"), (b"mcp-session-id", b"s")]
        assert one.response_headers == [(b"x-ratelimit-remaining-tokens", b"5")]
        assert one.header(b"accept") == b"b"
        assert one.header(b"authorization") is None
        assert (one.raw_request, one.raw_response) == ((), ())

    run_virtual(main)


def test_watching_keeps_bodies_only_up_to_its_bounds() -> None:
    async def main(clock: object) -> None:
        seen = watching(Told(), [], most_body=10, most_held=15)
        first, second = exchange(1), exchange(2)
        seen.keep(first.request, 1, b"x" * 10)
        seen.keep(second.request, 1, b"y" * 5)
        assert seen.held == 15
        seen.keep(second.request, 1, b"y")  # all together
        assert (second.request.kept, second.request.pieces, second.request.size) == (False, [], 6)
        seen.keep(first.request, 1, b"x")  # of one
        assert (first.request.kept, first.request.pieces, first.request.size) == (False, [], 11)
        seen.keep(first.request, 1, b"x")
        assert (first.request.size, seen.held) == (12, 0)

    run_virtual(main)


def test_watching_leaves_out_and_counts_what_its_queue_cannot_take() -> None:
    async def main(clock: object) -> None:
        told = Told()
        seen = watching(told, [], most_events=2)
        many = [exchange(number) for number in range(4)]
        for one in many:
            seen.keep(one.response, 1, b"data")
            seen.requested(one)
        for one in many:
            seen.ended(one, "complete", 1)
        await asyncio.sleep(2 * DELAY_SECONDS)
        assert told.events == [
            ("requested", 0, b""),
            ("requested", 1, b""),
            ("ended", 0, b""),
            ("ended", 1, b""),
        ]
        assert seen.dropped == 4
        assert seen.held == 0

    run_virtual(main)


def test_watching_swallows_what_an_observer_raises_and_says_once_where() -> None:
    async def main(clock: object) -> None:
        said: list[str] = []
        seen = watching(Told(fail=True), said)
        one = exchange(1)
        seen.requested(one)
        seen.ended(one, "complete", 1)
        seen.tick(0)
        seen.flush()
        assert seen.failures == 3
        assert len(said) == 1
        assert "ValueError, test_proxy_observing.py:" in said[0]
        assert "what was being read" not in said[0]

    run_virtual(main)


def test_watching_without_an_observer_keeps_nothing() -> None:
    async def main(clock: object) -> None:
        seen = watching(None, [])
        one = exchange(1)
        seen.keep(one.request, 1, b"x")
        seen.requested(one)
        seen.ended(one, "complete", 1)
        seen.tick(0)
        assert (one.request.pieces, one.request.size, seen.held) == ([], 1, 0)

    run_virtual(main)
