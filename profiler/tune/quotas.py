"""From servers' quotas to arrival rates without 429s, and to limiters of ours that keep to them. Pure.

Loops that take q requests and t tokens each can arrive min(rpm / 60q, tpm / 60t) times a second without
end; above that rate the server's bucket runs dry, since what a burst takes is missing later.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from profiler.limits.known import OPTION, KnownQuota, limit_of
from profiler.limits.quotas import MINUTE_NS, Quota, window_words
from profiler.records import LoopRecord, ModelCall


@dataclass(frozen=True, slots=True)
class Demand:
    """The average use of one loop; `tools` are calls of each tool, `models` their shares of the tokens.

    Tokens are those that count against the provider's limits (`ModelCall.limited_input_tokens`), on average
    over the requests of which they are known: of `unknown` in `asked` requests they are not. They are None
    where they are known of none. `requests` leaves out those that a quota refused, of which there are none
    within it.
    """

    requests: float
    input_tokens: float | None
    output_tokens: float | None
    tools: Mapping[str, float]
    models: Mapping[str, float]
    unknown: int = 0
    asked: int = 0

    def of(self, resource: str) -> float | None:
        """How much of a resource of `KnownQuota.limits`; None where it is not known."""
        if resource == "tokens":
            if self.input_tokens is None or self.output_tokens is None:
                return None
            return self.input_tokens + self.output_tokens
        taken: float | None = getattr(self, resource)
        return taken


@dataclass(frozen=True, slots=True)
class RateAdvice:
    """The largest rate of loops without 429s, and the limit that it is bound by.

    `shares`: how much of each limit that rate uses. `tools`: calls a second of each tool at that rate.
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
        used = ", ".join(f"{share:.0%} of {name}" for name, share in self.shares.items())
        a_minute = 60 * self.loops_per_second
        return (
            f"{self.quota.provider} ({self.quota.source}): up to {self.loops_per_second:.3g} loops/s "
            f"({a_minute:{'.3g' if a_minute < 10 else '.0f'}}/min) without a 429, bound by {self.bound_by}; "
            f"that uses {used}"
        )


def demand(records: Iterable[LoopRecord]) -> Demand | None:
    """The average use of the loops that came to an answer; None without any."""
    loops = requests = unknown = 0
    read: list[int] = []
    written: list[int] = []
    asked: list[ModelCall] = []
    tools: Counter[str] = Counter()
    models: Counter[str] = Counter()
    for record in records:
        if not record.answered:
            continue
        loops += 1
        for round_ in record.rounds:
            model = round_.model
            asked.append(model)
            requests += max(1, model.attempt_count - len(model.refusals))
            given, taken = model.limited_input_tokens, model.output_tokens
            read += [] if given is None else [given]
            written += [] if taken is None else [taken]
            unknown += given is None or taken is None
            models[model.model] += (given or 0) + (taken or 0)
            for call in round_.tool_calls:
                tools[call.name] += call.attempt_count
    if not loops:
        return None
    total = sum(models.values()) or 1

    def per_loop(tokens: list[int]) -> float | None:
        return len(asked) / loops * sum(tokens) / len(tokens) if tokens else None

    return Demand(
        requests / loops,
        per_loop(read),
        per_loop(written),
        {name: count / loops for name, count in tools.items()},
        {name: count / total for name, count in models.items() if count},
        unknown,
        len(asked),
    )


def advise(quota: KnownQuota, taken: Demand) -> RateAdvice | None:
    """The advice for a quota; None when loops take nothing that it limits, or nothing that is known."""
    rates: dict[Quota, float] = {}
    for limit in quota.limits:
        allowed, each = limit.per_second, taken.of(limit.resource)
        if allowed and each:
            rates[limit] = allowed / each
    if not rates:
        return None
    bound_by = min(rates, key=lambda limit: rates[limit])
    rate = rates[bound_by]
    requests, tokens = [], []
    for limit in rates:
        a_minute = 60 * (limit.per_second or 0.0)
        if limit.resource == "requests":
            requests.append(a_minute)
        elif (all_tokens := taken.of("tokens")) and (of_these := taken.of(limit.resource)):
            # Our limiter knows one kind of tokens: limits of input and output are scaled by their share.
            tokens.append(a_minute * (all_tokens / of_these))
    specs = [f"rate:{f'{min(requests):.9f}'.rstrip('0').rstrip('.')}/min"] if requests else []
    # A whole number that came out of floats a little too low is that number.
    specs += [f"tokens:{max(1, int(min(tokens) * (1 + 1e-12)))}/min"] if tokens else []
    return RateAdvice(
        quota=quota,
        loops_per_second=rate,
        bound_by=_name(bound_by),
        shares={_name(limit): rate / most for limit, most in rates.items()},
        tools={name: rate * calls for name, calls in taken.tools.items()},
        models=dict(taken.models),
        limits="+".join(specs),
    )


def unsaid(quota: KnownQuota, taken: Demand) -> list[str]:
    """What the advice for a quota cannot take into account, a sentence each."""
    said = [
        f"{quota.provider} ({quota.source}): {limit.words}, but its window cannot be told, so that no rate "
        f"follows; --quota {OPTION[limit.resource]}m={limit_of(limit):.12g} says that it is a minute, "
        f"{OPTION[limit.resource]}d that it is a day"
        for limit in quota.untold
    ]
    limited = [one for one in quota.limits if one.resource != "requests"]
    nothing = [_name(limit) for limit in limited if taken.of(limit.resource) is None]
    if nothing:
        said.append(
            f"{quota.provider}: what loops take of {', '.join(nothing)} is not known: the server did not say "
            "its tokens, and the rate leaves that limit out"
        )
    elif limited and taken.unknown:
        said.append(
            f"{quota.provider}: of {taken.unknown} of {taken.asked} requests the tokens are not known; they "
            "are taken to be like the others"
        )
    return said


WORTH_SAYING = 0.01
"""The share of model requests from which on it is said that the server refused them."""


def refused(records: Iterable[LoopRecord], limits: str | None, *, held: bool) -> str | None:
    """What the model's server refused, and what helps; None where that was next to nothing.

    `limits` is the spec of a limiter that keeps to its quota, if that is known; `held`: one was on already.
    """
    tries = 0
    reasons: Counter[str] = Counter()
    for record in records:
        for round_ in record.rounds:
            tries += round_.model.attempt_count if round_.model.asked else 0
            reasons.update(refusal.reason for refusal in round_.model.refusals)
    refusals = reasons.total()
    if refusals == 0 or refusals < WORTH_SAYING * tries:
        return None
    remedy = f"--model-limit {limits} keeps to its quota" if limits else "--model-limit holds requests back"
    if held:
        remedy = f"--model-limit has to be lower{f', such as {limits}' if limits else ''}"
    return (
        f"the model's server refused {refusals} of {tries} requests ({', '.join(sorted(reasons))}), and no "
        f"limit on tool calls changes that: {remedy}"
    )


def _name(limit: Quota) -> str:
    """`input tokens`, of another window than a minute `requests a day`."""
    name = limit.resource.replace("_", " ")
    window_ns = limit.window_ns or MINUTE_NS
    return name if window_ns == MINUTE_NS else f"{name} {window_words(window_ns)}"
