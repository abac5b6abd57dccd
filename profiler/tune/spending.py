"""What a search may spend, over all its experiments: each gets what those before it left. Pure."""

from __future__ import annotations

import math
from dataclasses import replace

from profiler.load.budget import Resource
from profiler.load.options import LoadOptions
from profiler.rundir import Run, Spent


class Spending:
    """The limits of `options`, and what is spent of them. `limit` is the one that ended the search."""

    def __init__(self, options: LoadOptions) -> None:
        self.spent = Spent()
        self.limit: Resource | None = None
        self._options = options
        self._budget = options.budget()

    def add(self, run: Run) -> None:
        """An experiment is over, and may have come to a limit."""
        self.spent += run.spent or Spent()
        self._budget = self._options.budget(run.model)
        if any(incident.kind == "limited" for incident in run.incidents):
            _, self.limit = self._budget.room(self.spent, 0)

    def allows(self, first_loops: int) -> bool:
        """Whether another experiment may begin, whose clients spend `first_loops` on getting ready."""
        if self.limit is None and self.spent.loops:
            room, which = self._budget.room(self.spent, 0)
            if room <= first_loops:
                self.limit = which
        return self.limit is None

    def left(self, options: LoadOptions) -> LoadOptions:
        """`options` with what is left as its limits."""

        def rest(limit: int | None, resource: Resource) -> int | None:
            return (
                None if limit is None else max(1, math.floor(limit - self._budget.used(self.spent, resource)))
            )

        max_cost = self._options.max_cost
        if max_cost is not None:
            max_cost = max(1e-9, max_cost - self._budget.used(self.spent, "cost"))
        return replace(
            options,
            max_loops=rest(self._options.max_loops, "loops"),
            max_requests=rest(self._options.max_requests, "requests"),
            max_tokens=rest(self._options.max_tokens, "tokens"),
            max_cost=max_cost,
        )

    @property
    def stopped(self) -> str | None:
        """In words: which limit ended the search, None when none did."""
        return None if self.limit is None else self._budget.stopped(self.limit, self.spent)

    @property
    def described(self) -> str:
        """What was spent, in words, with its cost where the price is known."""
        return self._budget.describe(self.spent)
