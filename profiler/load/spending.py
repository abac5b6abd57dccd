"""The spending of a load test, and how its workers keep to its limits together. Pure.

The leader grants loops: a worker begins only loops that it was granted, and asks for more when it has none
left. Loops that were granted and have not ended count as if each will spend what loops have spent on average
so far, retries and warm-up included. So the total ends near the limit, and past it by at most

    (loops under way at the end) × (what the most expensive of them spends - the average)

because a worker is granted at most as many loops as it has under way, and at least one. No loop is cut off to
keep a limit. Loops themselves (`--max-loops`) are counted as they begin: never one too many.

Where some replies do not say their tokens, those are taken to be as many as the others', and that is said.
"""

from __future__ import annotations

import functools
import math
import re
import tomllib
from collections.abc import Collection
from dataclasses import dataclass, field, fields, replace
from importlib import resources
from typing import Literal, get_args

from profiler.errors import UsageError
from profiler.loop.ledger import Ledger
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
        """How much of a resource `spent` is; a reply that does not say its tokens counts as the average."""
        if resource == "loops":
            return spent.loops
        if resource == "requests":
            return spent.requests
        if resource == "tokens":
            known: float = spent.input_tokens + spent.output_tokens
        else:
            known = 0.0 if self.price is None else self.price.cost(spent)
        said = spent.replies - spent.unknown_replies
        return known * spent.replies / said if spent.unknown_replies and said else known

    @property
    def by_spending(self) -> bool:
        """Whether a limit is on what loops spend, which is not known before one has run."""
        return any(resource != "loops" for resource in self.limits)

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
        guessed = ""
        if spent.unknown_replies and resource in ("tokens", "cost"):
            guessed = (
                f", if the {spent.unknown_replies} of {spent.replies} replies that do not say their tokens "
                "were like the others"
            )
        if resource == "cost":
            return f"stopped at {self.limit(resource)}: ${used:.4g} spent{guessed}"
        word = {"loops": "begun", "requests": "sent", "tokens": "used"}[resource]
        return f"stopped at {self.limit(resource)}: {used:.0f} {word}{guessed}"

    def describe(self, spent: Spent) -> str:
        """The spending in words, with its cost where the price is known."""
        text = f"{spent.loops:,} loops, {spent.asked}"
        if self.price is None:
            return text
        least = "at least " if spent.unknown_replies else ""
        return f"{text}: {least}${self.price.cost(spent):.4g} at {self.price}"

    def limit(self, resource: Resource) -> str:
        """A limit as the user wrote it: `--max-requests 500`."""
        limit = self.limits[resource]
        return f"{option_of(resource)} {f'{limit:g}' if resource == 'cost' else f'{limit:.0f}'}"


def spent_by(record: LoopRecord) -> Spent:
    """The spending of a loop's model requests: every attempt counts, tokens are those that replies name.

    Its `loops` are 0: loops count as spent when they begin.
    """
    requests = given = taken = cached = written = reasoning = replies = unknown = hour = 0
    for round_ in record.rounds:
        model = round_.model
        if not model.asked:
            continue
        requests += model.attempt_count
        given += model.input_tokens or 0
        taken += model.output_tokens or 0
        cached += model.cached_tokens or 0
        written += model.cache_written_tokens or 0
        hour += model.cache_written_1h_tokens or 0
        reasoning += model.reasoning_tokens or 0
        if model.replied:
            replies += 1
            unknown += not model.tokens_known
    return Spent(0, requests, given, taken, cached, written, reasoning, replies, unknown, hour)


@dataclass(slots=True, eq=False)
class LoopAccount(Ledger):
    """The spending of a loop: counted as it happens, or as its records say where these tell of more.

    Records may be lost. The count misses what an agent asks for in threads that carry no context.
    """

    recorded: Spent = field(default_factory=Spent)

    def record(self, record: LoopRecord) -> None:
        """A record of the loop, or of one inside it."""
        self.recorded += spent_by(record)

    @property
    def spent(self) -> Spent:
        """The spending, of no loops: they count as spent when they begin."""
        told = self.recorded
        counts = {one.name: max(getattr(told, one.name), getattr(self, one.name, 0)) for one in fields(Spent)}
        known = max(self.known_replies, told.replies - told.unknown_replies)
        replies = max(counts["replies"], known)
        return Spent(**{**counts, "loops": 0, "replies": replies, "unknown_replies": replies - known})


def extrapolated(spent: Spent, loops: int) -> Spent:
    """The spending of `loops` loops at the average of those in `spent`, which has some."""
    share = loops / spent.loops
    each = {one.name: round(getattr(spent, one.name) * share) for one in fields(Spent)}
    return Spent(**{**each, "loops": loops})


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
# A cost is what is billed: input by what the provider's cache did with it, output with the reasoning that is
# part of it. Where a server does not say what came from its cache, nothing is taken to have.

_SNAPSHOT = re.compile(r"-(\d{4}-\d{2}-\d{2}|\d{8}|latest)$")
"""The end of a model's name that says which snapshot of it is meant; all of them cost the same."""


@dataclass(frozen=True, slots=True)
class Price:
    """USD per million tokens of `input` that is in no cache, and of `output`, reasoning included.

    `cached`, `written` and `written_1h` are factors of `input`: for tokens read from the provider's cache,
    and for those written to it, the last for an hour.
    """

    input: float
    output: float
    cached: float = 1.0
    written: float = 1.0
    written_1h: float = 1.0

    @classmethod
    def parse(cls, spec: str, otherwise: Price | None = None) -> Price:
        """`2.50/10`: input, output; `3/15/0.30/3.75`: cached and written input too. Raises `UsageError`.

        The cache factors that `spec` leaves out are those of `otherwise`.
        """
        try:
            prices = [float(part) for part in spec.split("/")]
        except ValueError:
            prices = []
        if not 2 <= len(prices) <= 4 or not all(0 <= price < math.inf for price in prices):
            raise UsageError(
                f"--price {spec}: expected IN/OUT, or IN/OUT/CACHED/WRITTEN, USD per million tokens, such as "
                "2.50/10 or 3/15/0.30/3.75"
            )
        plain, output, *cache = prices
        if cache and not plain:
            raise UsageError(f"--price {spec}: cached input cannot have a price where input has none")
        usual = otherwise if otherwise is not None else cls(0.0, 0.0)
        cached = cache[0] / plain if cache else usual.cached
        written = cache[1] / plain if len(cache) > 1 else usual.written
        # An hour's has no price of its own here: it is as much dearer as it usually is.
        return cls(plain, output, cached, written, written * usual.written_1h / usual.written)

    def cost(self, spent: Spent) -> float:
        """USD, of the tokens that are known."""
        billed = (
            spent.uncached_tokens
            + self.cached * spent.cached_tokens
            + self.written * (spent.cache_written_tokens - spent.cache_written_1h_tokens)
            + self.written_1h * spent.cache_written_1h_tokens
        )
        return (self.input * billed + self.output * spent.output_tokens) / 1e6

    def __str__(self) -> str:
        factors = {"cached": self.cached, "written to the cache": self.written}
        others = [f"${self.input * one:g} {words}" for words, one in factors.items() if one != 1]
        return ", ".join([f"${self.input:g}/${self.output:g} per million tokens in/out", *others])


def price_of(model: str, spec: str | None = None, sdk: str = "openai") -> Price | None:
    """The price that `--price` gives, else the table's price of the model or of what it is a snapshot of.

    Cache factors that `spec` leaves out are the model's, else the usual ones of the API that `sdk` speaks.
    None: unknown. Raises `UsageError` for a `spec` that is no price.
    """
    prices, usual = _table()
    known = prices.get(model) or prices.get(_SNAPSHOT.sub("", model))
    return known if spec is None else Price.parse(spec, known or usual[sdk])


@functools.cache
def _table() -> tuple[dict[str, Price], dict[str, Price]]:
    """(price by model, what is usual by SDK: a price of nothing with its cache factors)."""
    text = (resources.files("profiler.load") / "prices.toml").read_text(encoding="utf-8")
    providers = tomllib.loads(text)
    usual = {
        name: Price(
            *(0.0, 0.0, float(provider["cached"]), float(provider["written"])),
            float(provider.get("written_1h", provider["written"])),
        )
        for name, provider in providers.items()
    }
    return {
        name: Price(
            float(price["input"]),
            float(price["output"]),
            float(price.get("cached", usual[provider].cached)),
            float(price.get("written", usual[provider].written)),
            float(price.get("written_1h", price.get("written", usual[provider].written_1h))),
        )
        for provider, listed in providers.items()
        for name, price in listed["models"].items()
    }, usual
