"""What tokens cost: `prices.toml` beside this file, or what the user says.

Only plain input and output tokens: what the providers' caches save is not in the records, so a cost
computed here is an upper bound where prompts are cached.
"""

from __future__ import annotations

import functools
import re
import tomllib
from dataclasses import dataclass
from importlib import resources

from profiler.errors import UsageError

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
