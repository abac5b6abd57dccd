"""The spending of a load test, and how its workers keep to its limits together. Pure.

The leader grants loops: a worker begins only loops that it was granted, and asks for more when it has none
left. Loops that were granted and have not ended count as if each will spend what loops have spent on average
so far, retries and warm-up included. So the total ends near the limit, and past it by at most

    (loops under way at the end) × (what the most expensive of them spends - the average)

because a worker is granted at most as many loops as it has under way, and at least one. No loop is cut off to
keep a limit. Loops themselves (`--max-loops`) are counted as they begin: never one too many.
"""

from __future__ import annotations

import functools
import math
import re
import tomllib
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from importlib import resources
from typing import Literal, get_args

from profiler.errors import UsageError
from profiler.records import LoopRecord
from profiler.rundir import Spent

Resource = Literal["loops", "requests", "tokens", "cost"]

MANY = 1_000_000_000
"""More loops than any test has."""

RESOURCES: tuple[Resource, ...] = get_args(Resource)


def option_of(resource: Resource) -> str:
    """The option that limits it."""
    return f"--max-{resource}"


@dataclass(frozen=True, slots=True)
class Budget:
    """The most that may be spent of each resource that is limited. Costs are in USD, at `price`."""

    limits: dict[Resource, float] = field(default_factory=dict)
    price: Price | None = None

    def used(self, spent: Spent, resource: Resource) -> float:
        """How much of a resource `spent` is."""
        if resource == "loops":
            return spent.loops
        if resource == "requests":
            return spent.requests
        if resource == "tokens":
            return spent.input_tokens + spent.output_tokens
        return 0.0 if self.price is None else self.price.cost(spent.input_tokens, spent.output_tokens)

    def room(self, spent: Spent, under_way: int) -> tuple[int, Resource | None]:
        """How many more loops may begin, and the limit that allows the fewest (None without limits).

        `under_way` loops are granted and have not ended. While it is unknown what a loop spends, one may be
        under way.
        """
        fewest, which = MANY, None
        for resource, limit in self.limits.items():
            used = self.used(spent, resource)
            each = 1.0 if resource == "loops" else used / spent.loops if spent.loops else 0.0
            if each > 0:
                room = math.floor((limit - used) / each + 1e-9) - under_way  # since 0.3 / 0.1 is 2.99…
            else:
                room = 1 - under_way if used < limit else 0
            if room < fewest:
                fewest, which = room, resource
        return max(0, fewest), which

    def stopped(self, resource: Resource, spent: Spent) -> str:
        """Which limit ended the run, and what was spent by then, in words."""
        used = self.used(spent, resource)
        if resource == "cost":
            return f"stopped at {self.limit(resource)}: ${used:.4g} spent"
        word = {"loops": "begun", "requests": "sent", "tokens": "used"}[resource]
        return f"stopped at {self.limit(resource)}: {used:.0f} {word}"

    def describe(self, spent: Spent) -> str:
        """The spending in words, with its cost where the price is known."""
        text = (
            f"{spent.loops:,} loops, {spent.requests:,} requests, {spent.input_tokens:,} tokens in, "
            f"{spent.output_tokens:,} out"
        )
        return text if self.price is None else f"{text}: ${self.used(spent, 'cost'):.4g} at {self.price}"

    def limit(self, resource: Resource) -> str:
        """A limit as the user wrote it: `--max-requests 500`."""
        limit = self.limits[resource]
        return f"{option_of(resource)} {f'{limit:g}' if resource == 'cost' else f'{limit:.0f}'}"


def spent_by(record: LoopRecord) -> Spent:
    """The spending of a loop's model requests: every attempt counts, tokens are those that replies name.

    Its `loops` are 0: loops count as spent when they begin.
    """
    requests = given = taken = 0
    for round_ in record.rounds:
        model = round_.model
        requests += model.attempt_count
        given += model.input_tokens or 0
        taken += model.output_tokens or 0
    return Spent(0, requests, given, taken)


def extrapolated(spent: Spent, loops: int) -> Spent:
    """The spending of `loops` loops at the average of those in `spent`, which has some."""
    share = loops / spent.loops
    return Spent(
        loops,
        round(spent.requests * share),
        round(spent.input_tokens * share),
        round(spent.output_tokens * share),
    )


@dataclass(slots=True)
class Account:
    """One worker's part in the trial under way: its loops, and what those that ended spent.

    `asks`: it waits for a grant.
    """

    granted: int = 0
    begun: int = 0
    ended: int = 0
    spent: Spent = field(default_factory=Spent)
    asks: bool = False

    @property
    def under_way(self) -> int:
        """Loops that may have begun and have not ended, so far as the leader knows."""
        return max(self.granted, self.begun) - self.ended

    @property
    def over(self) -> Spent:
        """All spending that is known."""
        return replace(self.spent, loops=self.ended)


class Grants:
    """Who may begin how many loops. `spent` is what warm-ups and earlier trials spent."""

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
        return sum((account.over for account in self._accounts.values()), self.spent)

    def begin(self) -> None:
        """A trial begins: nobody is granted anything yet."""
        self._accounts = {}

    def heard(self, worker: str, begun: int, under_way: int, spent: Spent, asks: bool) -> int | None:
        """How many loops of this trial a worker may begin in all, after it said how it stands.

        None: it did not ask, or gets no more now.
        """
        account = self._accounts.setdefault(worker, Account())
        account.begun, account.ended = begun, begun - under_way
        account.spent, account.asks = spent, asks
        if not asks or not self.limited:
            return None
        if account.granted > begun:
            return account.granted  # the grant and this pulse crossed
        room, _ = self._room()
        if not room:
            return None
        # At most half of a fair share, so that something is left for others that ask at the same time.
        account.granted += min(max(1, under_way), max(1, room // (2 * len(self._accounts))))
        account.asks = False
        return account.granted

    def closed(self, worker: str, begun: int, spent: Spent) -> None:
        """A worker has drained: these figures are final."""
        self._accounts.pop(worker, None)
        self.spent += replace(spent, loops=begun)

    def lost(self, worker: str) -> None:
        """A worker is gone: the loops it had under way are taken to have spent the average."""
        account = self._accounts.pop(worker, None)
        if account is None:
            return
        known = self.total
        self.spent += account.over
        if known.loops and account.under_way:
            self.spent += extrapolated(known, account.under_way)

    def only(self, alive: Collection[str]) -> None:
        """Workers that are not among these are lost: nobody waits for what they were granted."""
        for worker in [worker for worker in self._accounts if worker not in alive]:
            self.lost(worker)

    def exhausted(self) -> Resource | None:
        """The limit that ends the test: there is no room, no grant left to use, and somebody waits for one.

        None while loops may still begin.
        """
        accounts = self._accounts.values()
        if not self.limited or any(account.granted > account.begun for account in accounts):
            return None
        room, which = self._room()
        waiting = not accounts or any(account.asks for account in accounts)
        return which if waiting and not room else None

    def _room(self) -> tuple[int, Resource | None]:
        under_way = sum(account.under_way for account in self._accounts.values())
        return self.budget.room(self.total, under_way)


# What tokens cost: by `prices.toml` beside this file, or by what the user says.
#
# Only plain input and output tokens count: what the providers' caches save is not in the records, so a cost
# computed here is an upper bound where prompts are cached.

_SNAPSHOT = re.compile(r"-(\d{4}-\d{2}-\d{2}|\d{8}|latest)$")
"""The end of a model's name that says which snapshot of it is meant; all of them cost the same."""


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
    """The price that `--price` gives, else the table's price of the model or of what it is a snapshot of.

    None: unknown. Raises `UsageError` for a `spec` that is no price.
    """
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
