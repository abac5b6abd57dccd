"""From servers' quotas to arrival rates without 429s, and to limiters of ours that keep to them. Pure.

Loops that take q requests and t tokens each can arrive min(rpm / 60q, tpm / 60t) times a second without
end; above that rate the server's bucket runs dry, since what a burst takes is missing later.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from profiler.errors import UsageError
from profiler.limits.refusals import stated
from profiler.records import LoopRecord

_QUOTA = re.compile(
    r"(?:([\w./-]+):)?((?:rpm|tpm|itpm|otpm)=\d+(?:\.\d+)?(?:,(?:rpm|tpm|itpm|otpm)=\d+(?:\.\d+)?)*)"
)

_RESOURCE = {"rpm": "requests", "tpm": "tokens", "itpm": "input_tokens", "otpm": "output_tokens"}

UNBOUNDED = {"requests": 1e6, "tokens": 1e8, "input_tokens": 1e8, "output_tokens": 1e8}
"""Stated limits from this many a minute on limit nobody: servers without a quota state such numbers."""


@dataclass(frozen=True, slots=True)
class KnownQuota:
    """The server's limits per minute of `requests`, `tokens`, `input_tokens` or `output_tokens`."""

    provider: str
    limits: Mapping[str, float]
    source: str


@dataclass(frozen=True, slots=True)
class Demand:
    """The average use of one loop; `tools` are calls of each tool, `models` their shares of the tokens."""

    requests: float
    input_tokens: float
    output_tokens: float
    tools: Mapping[str, float]
    models: Mapping[str, float]

    def of(self, resource: str) -> float:
        """How much of a resource of `KnownQuota.limits`."""
        if resource == "tokens":
            return self.input_tokens + self.output_tokens
        taken: float = getattr(self, resource)
        return taken


@dataclass(frozen=True, slots=True)
class RateAdvice:
    """The largest rate of loops without 429s, and the resource that it is bound by.

    `shares`: how much of each resource that rate uses. `tools`: calls a second of each tool at that rate.
    `models`: their shares of the tokens. `limits`: the spec of a limiter of model requests that keeps to it.
    """

    quota: KnownQuota
    loops_per_second: float
    bound_by: str
    shares: Mapping[str, float]
    tools: Mapping[str, float]
    models: Mapping[str, float]
    limits: str

    @property
    def sentence(self) -> str:
        """The rate, its bound, and what it uses, in one line."""
        used = ", ".join(f"{share:.0%} of {name.replace('_', ' ')}" for name, share in self.shares.items())
        return (
            f"{self.quota.provider} ({self.quota.source}): up to {self.loops_per_second:.3g} loops/s "
            f"({60 * self.loops_per_second:.0f}/min) without a 429, "
            f"bound by {self.bound_by.replace('_', ' ')}; that uses {used}"
        )


def parse_quota(spec: str) -> KnownQuota:
    """`openai:rpm=500,tpm=30000`; also itpm and otpm. Raises `UsageError`."""
    match = _QUOTA.fullmatch(spec.strip())
    if match is None:
        raise UsageError(
            f"--quota {spec}: expected PROVIDER:rpm=N,tpm=N (also itpm, otpm), such as openai:rpm=500"
        )
    limits: dict[str, float] = {}
    for part in match[2].split(","):
        name, value = part.split("=")
        if float(value) <= 0:
            raise UsageError(f"--quota {spec}: {name} must be above 0")
        limits[_RESOURCE[name]] = float(value)
    return KnownQuota(match[1] or "model", limits, "as given")


def seen_quota(records: Iterable[LoopRecord]) -> KnownQuota | None:
    """The smallest limits that any response stated in its headers; None when none of them limits anything."""
    limits: dict[str, float] = {}
    provider = ""
    for record in records:
        for round_ in record.rounds:
            for attempt in round_.model.attempts:
                for word, resource, value in stated(attempt.rate_limits or {}):
                    if word == "limit" and 0 < value < UNBOUNDED[resource]:
                        limits[resource] = min(value, limits.get(resource, value))
                        provider = round_.model.provider
    return KnownQuota(provider, limits, "from its headers") if limits else None


def demand(records: Iterable[LoopRecord]) -> Demand | None:
    """The average use of the loops that came to an answer; None without any."""
    loops = requests = read = written = 0
    tools: Counter[str] = Counter()
    models: Counter[str] = Counter()
    for record in records:
        if not record.answered:
            continue
        loops += 1
        for round_ in record.rounds:
            model = round_.model
            given, taken = model.input_tokens or 0, model.output_tokens or 0
            requests += model.attempt_count
            read += given
            written += taken
            models[model.model] += given + taken
            for call in round_.tool_calls:
                tools[call.name] += call.attempt_count
    if not loops:
        return None
    total = sum(models.values()) or 1
    return Demand(
        requests / loops,
        read / loops,
        written / loops,
        {name: count / loops for name, count in tools.items()},
        {name: count / total for name, count in models.items()},
    )


def advise(quota: KnownQuota, taken: Demand) -> RateAdvice | None:
    """The advice for a quota; None when loops take nothing of what it limits."""
    rates = {
        resource: limit / 60 / taken.of(resource)
        for resource, limit in quota.limits.items()
        if taken.of(resource) > 0
    }
    if not rates:
        return None
    bound_by = min(rates, key=lambda resource: rates[resource])
    rate = rates[bound_by]
    specs = []
    if "requests" in quota.limits:
        specs.append(f"rate:{quota.limits['requests']:.12g}/min")
    # Our limiter knows one kind of tokens: limits of input and output are scaled by their share of a loop.
    tokens = [
        limit if name == "tokens" else limit * taken.of("tokens") / taken.of(name)
        for name, limit in quota.limits.items()
        if name == "tokens" or (name.endswith("_tokens") and taken.of(name) > 0)
    ]
    if tokens:
        specs.append(f"tokens:{int(min(tokens))}/min")
    return RateAdvice(
        quota=quota,
        loops_per_second=rate,
        bound_by=bound_by,
        shares={resource: rate / most for resource, most in rates.items()},
        tools={name: rate * calls for name, calls in taken.tools.items()},
        models=dict(taken.models),
        limits="+".join(specs),
    )
