"""PromQL from the metric table: a query can only name a metric that exists, and labels that it has.

Ratios and quantiles of nothing are absent here, not NaN: `a / (b > 0)` and `quantile >= 0` leave
a gap in the graph where there was no traffic.
"""

from __future__ import annotations

from dataclasses import dataclass

from profiler.metrics import Metric

INTERVAL = "$__rate_interval"
RANGE = "$__range"

_VARIABLES = ("strategy", "tool")


@dataclass(frozen=True, slots=True)
class Scope:
    """Which series a query looks at, and over which window.

    On a dashboard the matchers are its variables; in a rule there are none.
    """

    variables: bool = True
    window: str = INTERVAL

    def over(self, window: str) -> Scope:
        return Scope(self.variables, window)

    def select(self, metric: Metric, suffix: str = "", **matchers: str) -> str:
        """A selector. A matcher's value is `=value`, `!=value`, `=~value` or `!~value`.

        Raises ValueError for a label that the metric does not have.
        """
        labels = {*metric.labels, *(["le"] if suffix == "_bucket" else [])}
        unknown = matchers.keys() - labels - {"testid", "job", "instance"}
        if unknown:
            raise ValueError(f"{metric.name} has no label {', '.join(sorted(unknown))}")
        parts = {}
        if self.variables:
            parts = {name: f"=~${name}" for name in ("job", "instance", "testid")}
            parts |= {name: f"=~${name}" for name in _VARIABLES if name in metric.labels}
        parts |= matchers
        inside = ",".join(f"{label}{_quoted(value)}" for label, value in parts.items())
        return f"{metric.name}{suffix}" + (f"{{{inside}}}" if inside else "")

    def rate(self, metric: Metric, suffix: str = "", *, by: str = "", **matchers: str) -> str:
        """Per second, summed by labels."""
        return summed(f"rate({self.select(metric, suffix, **matchers)}[{self.window}])", by)

    def increase(self, metric: Metric, suffix: str = "", *, by: str = "", **matchers: str) -> str:
        """How much it grew over the window, summed by labels."""
        return summed(f"increase({self.select(metric, suffix, **matchers)}[{self.window}])", by)

    def quantile(self, q: float, metric: Metric, *, by: str = "", **matchers: str) -> str:
        """Quantile of a histogram; absent where nothing was observed."""
        buckets = self.rate(metric, "_bucket", by=f"{by}, le" if by else "le", **matchers)
        return f"histogram_quantile({q:g}, {buckets}) >= 0"

    def mean(self, metric: Metric, *, by: str = "", **matchers: str) -> str:
        """Mean observation of a histogram."""
        return ratio(
            self.rate(metric, "_sum", by=by, **matchers), self.rate(metric, "_count", by=by, **matchers)
        )

    def gauge(self, metric: Metric, *, by: str = "", how: str = "sum", **matchers: str) -> str:
        return summed(self.select(metric, **matchers), by, how)


def ratio(a: str, b: str, join: str = "") -> str:
    """a / b, absent where b is zero. `join` is a vector-matching clause."""
    return f"{a} / {join + ' ' if join else ''}({b} > 0)"


def summed(expression: str, by: str = "", how: str = "sum") -> str:
    return f"{how} by ({by}) ({expression})" if by else f"{how}({expression})"


def _quoted(matcher: str) -> str:
    for operator in ("=~", "!~", "!=", "="):
        if matcher.startswith(operator):
            return f'{operator}"{matcher.removeprefix(operator)}"'
    raise ValueError(f"not a matcher: {matcher}")
