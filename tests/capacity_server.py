"""A model and several tools with capacities and quotas of their own, that shares no code with the emulator.

    python -m tests.capacity_server --tool search=0.5,refuse=20 --tool fetch=0.25 --loop-share 0.3 --seed 2

Predictions are held against what agents meet here. It prints its port and keeps the log of `other_server`
(`GET /log`, with the tool's name). A loop (by the client's header `x-toolloop-loop`) is a number of rounds of
calls to some of the tools, then an answer. What it is and how long each of its parts takes follow from seed,
trial, loop, round and call: as with a real server, no trial of a run meets what another one met.

How long a call takes: its tool's median × exp(sigma × z), where z is normal and made up of a part that all
calls of a loop share (`--loop-share` of its variance), one that the calls of a round share (`--round-share`)
and one of its own; so calls of a loop are alike, and loops are not. The size of a loop goes with its part of
z. `--drift FACTOR:SECONDS`: tools are now FACTOR times slower, now as much faster, for SECONDS on average.

What a server does with much at once (`none` by default; of each tool, of the model by `--model-capacity`):
`refuse=C` answers 429 above C, `queue=C` serves C in order of arrival, `share=C` divides the speed of C among
all, `rate=R/B` takes R a second with a bucket of B and answers 429 with Retry-After beyond.

The model takes `--first-token` seconds (median; σ = 0.3) and a time for each token; a reply has `--tokens`
(median; σ = 0.6, and longer in large loops), and says how many. `--quota N/B`: N requests a minute with a
bucket of B; more get 429 with Retry-After, and all answers OpenAI's headers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from tests.other_server import REFUSED, Answer, Entry, Server, Sharing, serve

_LONGEST = 20.0
"""Of a call, in medians."""
_NORMAL = NormalDist()


class Bucket:
    """`rate` tokens a second, `size` at most, full at first."""

    def __init__(self, rate: float, size: float) -> None:
        self.rate, self.size = rate, size
        self.level, self._at = size, 0.0

    def take(self) -> float:
        """Seconds until there will be one; 0: it has been taken."""
        now = asyncio.get_running_loop().time()
        self.level = min(self.size, self.level + (now - self._at) * self.rate)
        self._at = now
        if self.level < 1:
            return (1 - self.level) / self.rate
        self.level -= 1
        return 0.0


class Capacity:
    """What a server does with much at once."""

    def __init__(self, rule: str = "none", amount: str = "1") -> None:
        rate, _, burst = amount.partition("/")
        self._rule = rule
        self._most = 0 if rule == "rate" else int(amount)
        self._running = 0
        self._room = asyncio.Semaphore(self._most or 1)
        self._sharing = Sharing(self._most or 1)
        self._bucket = Bucket(float(rate), float(burst or 1))

    async def serve(self, seconds: float) -> float | None:
        """None when it has been served, else the wait that the refusal announces (0: none)."""
        if self._rule == "queue":
            async with self._room:
                await asyncio.sleep(seconds)
        elif self._rule == "share":
            await self._sharing.serve(seconds)
        elif self._rule == "rate" and (wait := self._bucket.take()):
            return wait
        elif self._rule == "refuse" and self._running >= self._most:
            return 0.0
        else:
            self._running += 1
            try:
                await asyncio.sleep(seconds)
            finally:
                self._running -= 1
        return None


@dataclass(frozen=True)
class Tool:
    """`weight`: how often it is called, beside the others."""

    name: str
    median: float
    weight: float
    capacity: Capacity

    @classmethod
    def parse(cls, text: str) -> Tool:
        """Raises `ValueError`."""
        name, _, rest = text.partition("=")
        median, *options = rest.split(",")
        weight, capacity = 1.0, Capacity()
        for option in options:
            key, _, value = option.partition("=")
            if key == "weight":
                weight = float(value)
            elif key in ("refuse", "queue", "share", "rate"):
                capacity = Capacity(key, value)
            else:
                raise ValueError(f"{option}: expected weight, refuse, queue, share or rate")
        return cls(name, float(median), weight, capacity)


@dataclass(frozen=True)
class Shape:
    """What loops are; see the module's docstring."""

    seed: str
    tools: Sequence[Tool]
    sigma: float
    loop_share: float
    round_share: float
    rounds: tuple[int, int]
    fan_out: tuple[int, int]
    first_token: float
    tokens: float
    tokens_per_second: float

    def _normal(self, *place: int | str) -> float:
        return random.Random(f"{self.seed}/{place}").gauss(0.0, 1.0)

    def _between(self, bounds: tuple[int, int], loop: str, *place: int | str) -> int:
        """A whole number within `bounds`, each as likely as the others; larger in slow loops."""
        share = self.loop_share
        z = math.sqrt(share) * self._normal(loop) + math.sqrt(1 - share) * self._normal(loop, *place)
        low, high = bounds
        return min(high, low + int(_NORMAL.cdf(z) * (high - low + 1)))

    def calls(self, loop: str, round_: int) -> list[Tool]:
        """The calls of a round; none in the last."""
        if round_ >= self._between(self.rounds, loop, "rounds"):
            return []
        count = self._between(self.fan_out, loop, round_, "fan-out")
        draws = random.Random(f"{self.seed}/{loop}/{round_}/tools")
        return draws.choices(self.tools, [tool.weight for tool in self.tools], k=count)

    def tool_seconds(self, tool: Tool, loop: str, round_: int, call: int) -> float:
        own = math.sqrt(max(0.0, 1 - self.loop_share - self.round_share))
        z = (
            math.sqrt(self.loop_share) * self._normal(loop)
            + math.sqrt(self.round_share) * self._normal(loop, round_, "calls")
            + own * self._normal(loop, round_, call)
        )
        return tool.median * min(_LONGEST, math.exp(self.sigma * z))

    def reply(self, loop: str, round_: int) -> tuple[float, int]:
        """Seconds and output tokens of a reply."""
        share = self.loop_share
        z = math.sqrt(share) * self._normal(loop) + math.sqrt(1 - share) * self._normal(
            loop, round_, "tokens"
        )
        tokens = max(1, round(self.tokens * math.exp(0.6 * z)))
        first = self.first_token * math.exp(0.3 * self._normal(loop, round_, "first"))
        return first + tokens / self.tokens_per_second, tokens


class Drift:
    """A factor that is now above 1, now as much below, for exponential times of `mean` seconds."""

    def __init__(self, factor: float, mean: float, seed: str) -> None:
        self._factor, self._mean, self._random = factor, mean, random.Random(seed)
        self._until: float | None = None

    def now(self) -> float:
        time = asyncio.get_running_loop().time()
        if self._until is None:
            self._until = time
        while self._factor != 1 and time >= self._until:
            self._factor = 1 / self._factor
            self._until += self._random.expovariate(1 / self._mean)
        return self._factor


class CapacityServer(Server):
    """Tools and model by a `Shape`; the rest is `other_server`'s."""

    def __init__(self, shape: Shape, model: Capacity, quota: Bucket | None, drift: Drift) -> None:
        self.log: list[Entry] = []
        self.late: list[int] = []
        self._shape, self._model, self._quota, self._drift = shape, model, quota, drift
        self._tools = {tool.name: tool for tool in shape.tools}
        self._loops = 0

    async def answer(self, entry: Entry, body: bytes) -> Answer:
        headers = ""
        if entry.kind == "tool":
            tool = self._tools.get(entry.name)
            if tool is None or entry.call is None:
                entry.status = 404
                return Answer(b"{}")
            loop, round_, call = _place(entry.call)
            seconds = self._shape.tool_seconds(tool, loop, round_, call) * self._drift.now()
            wait, answer = await tool.capacity.serve(seconds), b'{"found": "it"}'
        else:
            said = json.loads(body)["messages"]
            loop, round_ = self._loop(entry, said), sum(one["role"] == "assistant" for one in said)
            wait = None
            if self._quota is not None:
                wait = self._quota.take() or None
                headers = _quota_headers(self._quota)
            seconds, tokens = self._shape.reply(loop, round_)
            if wait is None:
                wait = await self._model.serve(seconds)
            answer = self._completion(loop, round_, tokens, len(body) // 4)
        if wait is None:
            return Answer(answer, headers)
        entry.status = 429
        if wait > 0:
            headers += f"retry-after: {math.ceil(wait)}\r\nretry-after-ms: {math.ceil(1000 * wait)}\r\n"
        return Answer(REFUSED.body, headers)

    def _loop(self, entry: Entry, said: Sequence[Any]) -> str:
        """By its calls, or by the client's headers; else a new one."""
        for one in said:
            for call in one.get("tool_calls") or ():
                return _place(call["id"])[0]
        self._loops += 1
        return f"new{self._loops}" if entry.loop is None else f"{entry.trial}.{entry.loop}"

    def _completion(self, loop: str, round_: int, tokens: int, asked: int) -> bytes:
        message: dict[str, Any] = {"role": "assistant", "content": "It is done."}
        calls = [
            {
                # Where it belongs, and a number, since a request may be sent again.
                "id": f"call_{loop}_{round_}_{number}_{len(self.log)}",
                "type": "function",
                "function": {"name": tool.name, "arguments": json.dumps({"query": f"q{number}"})},
            }
            for number, tool in enumerate(self._shape.calls(loop, round_))
        ]
        if calls:
            message |= {"content": None, "tool_calls": calls}
        choice = {"index": 0, "finish_reason": "tool_calls" if calls else "stop", "message": message}
        usage = {"prompt_tokens": asked, "completion_tokens": tokens, "total_tokens": asked + tokens}
        completion = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
        return json.dumps(completion | {"usage": usage}).encode()


def _place(call: str) -> tuple[str, int, int]:
    """Loop, round and number of a call, by its id."""
    _, loop, round_, number, _ = call.split("_")
    return loop, int(round_), int(number)


def _quota_headers(bucket: Bucket) -> str:
    full = (bucket.size - bucket.level) / bucket.rate
    return (
        f"x-ratelimit-limit-requests: {round(60 * bucket.rate)}\r\n"
        f"x-ratelimit-remaining-requests: {int(bucket.level)}\r\n"
        f"x-ratelimit-reset-requests: {full:.3f}s\r\n"
    )


def _range(text: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    return int(low), int(high or low)


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--port", type=int, default=0)
    options.add_argument(
        "--tool", action="append", required=True, metavar="NAME=MEDIAN[,refuse=C][,weight=W]"
    )
    options.add_argument("--sigma", type=float, default=0.8)
    options.add_argument("--loop-share", type=float, default=0.0)
    options.add_argument("--round-share", type=float, default=0.0)
    options.add_argument("--drift", default="1:1", metavar="FACTOR:SECONDS")
    options.add_argument("--rounds", type=_range, default=(1, 3), metavar="LOW-HIGH")
    options.add_argument("--fan-out", type=_range, default=(2, 6), metavar="LOW-HIGH")
    options.add_argument("--first-token", type=float, default=0.3, metavar="SECONDS")
    options.add_argument("--tokens", type=float, default=40)
    options.add_argument("--tokens-per-second", type=float, default=100)
    options.add_argument("--model-capacity", default="none=1", metavar="RULE=C")
    options.add_argument("--quota", metavar="PER_MINUTE/BURST")
    options.add_argument("--seed", type=int, default=1)
    return options


async def _main(arguments: argparse.Namespace) -> None:
    rate, _, burst = (arguments.quota or "").partition("/")
    factor, _, mean = arguments.drift.partition(":")
    shape = Shape(
        seed=str(arguments.seed),
        tools=[Tool.parse(text) for text in arguments.tool],
        sigma=arguments.sigma,
        loop_share=arguments.loop_share,
        round_share=arguments.round_share,
        rounds=arguments.rounds,
        fan_out=arguments.fan_out,
        first_token=arguments.first_token,
        tokens=arguments.tokens,
        tokens_per_second=arguments.tokens_per_second,
    )
    server = CapacityServer(
        shape,
        Capacity(*arguments.model_capacity.split("=")),
        Bucket(float(rate) / 60, float(burst or 1)) if rate else None,
        Drift(float(factor), float(mean), f"{arguments.seed}/drift"),
    )
    await serve(server, arguments.port)


if __name__ == "__main__":
    try:
        asyncio.run(_main(parser().parse_args()))
    except KeyboardInterrupt:
        sys.exit(0)
