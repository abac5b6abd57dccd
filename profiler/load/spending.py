"""What a load test may spend, and how its workers keep to that together. Pure.

The process that leads grants loops: a worker begins one only when it has been granted it, and asks
for more when it has none left. What is granted and has not ended counts as if it will spend what
loops have spent on average so far, attempts and warm-up included. So the total ends near the limit,
and past it by at most

    (loops under way at the end) × (what the most expensive of them spends - the average)

since a worker is granted at most as many loops as it has under way, one at least. No loop is cut
off for it. Loops themselves (`--max-loops`) are counted as they begin: never one too many.
"""

from __future__ import annotations

import functools
import math
import re
import tomllib
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from importlib import resources
from typing import Literal

from profiler.errors import UsageError
from profiler.records import LoopRecord
from profiler.rundir import Spent

Resource = Literal["loops", "requests", "tokens", "cost"]

OPTIONS: dict[Resource, str] = {
    "loops": "--max-loops",
    "requests": "--max-requests",
    "tokens": "--max-tokens",
    "cost": "--max-cost",
}


@dataclass(frozen=True, slots=True)
class Budget:
    """The most that may be spent, of each resource that is limited. Costs are in USD, at `price`."""

    limits: dict[Resource, float] = field(default_factory=dict)
    price: Price | None = None

    def used(self, spent: Spent, resource: Resource) -> float:
        """How much of a resource that was."""
        if resource == "loops":
            return spent.loops
        if resource == "requests":
            return spent.requests
        if resource == "tokens":
            return spent.input_tokens + spent.output_tokens
        return 0.0 if self.price is None else self.price.cost(spent.input_tokens, spent.output_tokens)

    def room(self, spent: Spent, under_way: int) -> tuple[int, Resource | None]:
        """How many more loops may begin, and which limit says so; `under_way` are granted and not ended.

        While it is unknown what a loop spends, one may be under way.
        """
        least, which = 1_000_000_000, None
        for resource, limit in self.limits.items():
            used = self.used(spent, resource)
            each = used / spent.loops if spent.loops else 0.0
            if resource == "loops":
                each = 1.0
            if each > 0:
                room = math.floor((limit - used) / each + 1e-9) - under_way
            else:
                room = 1 - under_way if used < limit else 0
            if room < least:
                least, which = room, resource
        return max(0, least), which

    def stopped(self, resource: Resource, spent: Spent) -> str:
        """In words: which limit ended the run, and what was spent by then."""
        used = self.used(spent, resource)
        if resource == "cost":
            return f"stopped at {self.limit(resource)}: ${used:.4g} spent"
        word = {"loops": "begun", "requests": "sent", "tokens": "used"}[resource]
        return f"stopped at {self.limit(resource)}: {used:.0f} {word}"

    def describe(self, spent: Spent) -> str:
        """In words, with its cost where the price is known."""
        text = (
            f"{spent.loops:,} loops, {spent.requests:,} requests, {spent.input_tokens:,} tokens in, "
            f"{spent.output_tokens:,} out"
        )
        return text if self.price is None else f"{text}: ${self.used(spent, 'cost'):.4g} at {self.price}"

    def limit(self, resource: Resource) -> str:
        """As the user said it: `--max-requests 500`."""
        limit = self.limits[resource]
        return f"{OPTIONS[resource]} {f'{limit:g}' if resource == 'cost' else f'{limit:.0f}'}"


def spent_by(record: LoopRecord) -> Spent:
    """What a loop's model requests came to: every attempt counts, tokens are those that replies name."""
    requests = given = taken = 0
    for round_ in record.rounds:
        model = round_.model
        requests += model.attempt_count
        given += model.input_tokens or 0
        taken += model.output_tokens or 0
    return Spent(0, requests, given, taken)


@dataclass(slots=True)
class Account:
    """One worker's part in the trial under way: loops granted, begun and ended, and what ended ones spent."""

    granted: int = 0
    begun: int = 0
    ended: int = 0
    spent: Spent = field(default_factory=Spent)
    asks: bool = False


class Grants:
    """Who may begin how many loops. `spent` is what is over: warm-ups and earlier trials."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.spent = Spent()
        self._accounts: dict[str, Account] = {}

    @property
    def limited(self) -> bool:
        return bool(self.budget.limits)

    @property
    def total(self) -> Spent:
        """Everything that is known to be spent."""
        total = self.spent
        for account in self._accounts.values():
            total += replace(account.spent, loops=account.ended)
        return total

    def begin(self) -> None:
        """A trial begins: nobody is granted anything yet."""
        self._accounts = {}

    def heard(self, worker: str, begun: int, under_way: int, spent: Spent, asks: bool) -> int | None:
        """A worker says how it stands; the loops it is granted from now on (in this trial), None: no more."""
        account = self._accounts.setdefault(worker, Account())
        account.begun, account.ended = begun, begun - under_way
        account.spent, account.asks = spent, asks
        if not asks or not self.limited:
            return None
        if account.granted > begun:
            return account.granted  # it has not heard of that yet
        room, _ = self._room()
        if not room:
            return None
        account.granted += min(max(1, under_way), max(1, room // (2 * len(self._accounts))))
        account.asks = False
        return account.granted

    def closed(self, worker: str, begun: int, spent: Spent) -> None:
        """A worker has drained: what it says now is final."""
        self._accounts.pop(worker, None)
        self.spent += replace(spent, loops=begun)

    def lost(self, worker: str) -> None:
        """A worker is gone: what it had under way is taken to have spent the average."""
        account = self._accounts.pop(worker, None)
        if account is None:
            return
        known, gone = self.total, max(account.granted, account.begun) - account.ended
        self.spent += replace(account.spent, loops=account.ended)
        if known.loops and gone:
            share = gone / known.loops
            self.spent += Spent(
                gone,
                round(known.requests * share),
                round(known.input_tokens * share),
                round(known.output_tokens * share),
            )

    def only(self, alive: Collection[str]) -> None:
        """Workers that are not among these are lost: nobody waits for what they were granted."""
        for worker in [worker for worker in self._accounts if worker not in alive]:
            self.lost(worker)

    def exhausted(self) -> Resource | None:
        """The limit at which the test has come to its end: there is no room, and no grant left to use."""
        if not self.limited:
            return None
        room, which = self._room()
        waiting = [a for a in self._accounts.values() if a.asks]
        unused = any(a.granted > a.begun for a in self._accounts.values())
        return which if not room and not unused and (waiting or not self._accounts) else None

    def _room(self) -> tuple[int, Resource | None]:
        under_way = sum(max(a.granted, a.begun) - a.ended for a in self._accounts.values())
        return self.budget.room(self.total, under_way)


# What tokens cost: `prices.toml` beside this file, or what the user says.
#
# Only plain input and output tokens: what the providers' caches save is not in the records, so a cost
# computed here is an upper bound where prompts are cached.

_SNAPSHOT = re.compile(r"-(\d{4}-\d{2}-\d{2}|\d{8}|latest)$")
"""How a model's name says which snapshot of it is meant: all of them cost the same."""


@dataclass(frozen=True, slots=True)
class Price:
    """USD per million tokens."""

    input: float
    output: float

    @classmethod
    def parse(cls, spec: str) -> Price:
        """`2.50/10`: input, output. Raises `UsageError`."""
        try:
            given, taken = (float(part) for part in spec.split("/"))
        except ValueError:
            given = taken = -1.0
        if not (0 <= given < float("inf") and 0 <= taken < float("inf")):
            raise UsageError(
                f"--price {spec}: expected IN/OUT, USD per million input and output tokens, such as 2.50/10"
            )
        return cls(given, taken)

    def cost(self, input_tokens: float, output_tokens: float) -> float:
        """USD."""
        return (self.input * input_tokens + self.output * output_tokens) / 1e6

    def __str__(self) -> str:
        return f"${self.input:g}/${self.output:g} per million tokens in/out"


def price_of(model: str, spec: str | None = None) -> Price | None:
    """What `--price` says, else the table's for the model, or what it is a snapshot of; None: unknown."""
    if spec is not None:
        return Price.parse(spec)
    known = _table()
    return known.get(model) or known.get(_SNAPSHOT.sub("", model))


@functools.cache
def _table() -> dict[str, Price]:
    text = (resources.files("profiler.load") / "prices.toml").read_text(encoding="utf-8")
    return {
        name: Price(float(price["input"]), float(price["output"]))
        for provider in tomllib.loads(text).values()
        for name, price in provider["models"].items()
    }
