"""Whatever a server sends, a program sees through a watched client what it sees through an unwatched one."""

from __future__ import annotations

import asyncio
import logging
import random
import sys
from collections import Counter
from copy import deepcopy

import pytest

from profiler.watch.profiler import Profiler
from tests.generated_replies import APIS, WAYS, Served, clients, generated, raised, seen, seen_async

SEED = 20261129
pytestmark = pytest.mark.filterwarnings("ignore")  # of the SDKs, about what is generated


@pytest.fixture(autouse=True)
def quiet():
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


async def compare(count: int, seed: int) -> tuple[Counter[str], Counter[str], Profiler]:
    """(replies, those in which the bare SDK raised) by API, and the profiler; asserts that all are alike."""
    prof = Profiler(sinks=[])
    plain, watched = Served(), Served()
    pairs = {}
    for asynchronous in (False, True):
        for retries in (0, 1):
            bare = clients(plain, asynchronous=asynchronous, max_retries=retries)
            mine = clients(watched, asynchronous=asynchronous, max_retries=retries)
            for client in mine.values():
                prof.instrument(client)
            pairs[asynchronous, retries] = bare, mine
    replies: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    for number in range(count):
        rng = random.Random(f"{seed} {number}")
        api, streamed, asynchronous = rng.choice(APIS), rng.random() < 0.6, rng.random() < 0.5
        way, enough = rng.choice(WAYS), rng.randint(0, 5)
        wires = [generated(rng, api, streamed)]
        retries = 0
        if wires[0].status >= 429 and rng.random() < 0.5:
            retries = 1
            wires.append(generated(rng, api, streamed))
            wires[1].before = None
        plain.wires, watched.wires = deepcopy(wires), deepcopy(wires)
        bare, mine = pairs[asynchronous, retries]
        if asynchronous:
            expected = await seen_async(api, bare[api], way, streamed, enough)
            with prof.loop():
                found = await seen_async(api, mine[api], way, streamed, enough)
        else:
            expected = seen(api, bare[api], way, streamed, enough)
            with prof.loop():
                found = seen(api, mine[api], way, streamed, enough)
        kind = f"{api}, {'async' if asynchronous else 'sync'}, {'streamed' if streamed else 'whole'}"
        assert found == expected, f"reply {number} of seed {seed}, {kind}, {way}: {wires}"
        replies[kind] += 1
        failed[kind] += raised(expected)
    return replies, failed, prof


def say(replies: Counter[str], failed: Counter[str], prof: Profiler, seed: int) -> None:
    lines = [f"{kind:36} {replies[kind]:6,} replies, {failed[kind]:6,} raised" for kind in sorted(replies)]
    total, raising = sum(replies.values()), sum(failed.values())
    alike = f"{total:,} replies of seed {seed}: {raising:,} raised, all alike"
    sys.stdout.write("\n".join([*lines, f"{alike}; watching failed: {prof.failures}", ""]))


def test_every_reply_is_seen_as_it_is_without_watching():
    replies, failed, prof = asyncio.run(compare(150, SEED))
    say(replies, failed, prof, SEED)
    assert set(prof.failures.values()) == {0}
    assert sum(replies.values()) == 150
    assert 0.2 < sum(failed.values()) / 150 < 0.5


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ten_thousand_replies_are_seen_as_they_are_without_watching():
    replies, failed, prof = asyncio.run(compare(10_000, SEED + 1))
    say(replies, failed, prof, SEED + 1)
    assert set(prof.failures.values()) == {0}
    assert sum(replies.values()) == 10_000
    assert sum(failed.values()) > 10_000 * 0.28
