"""The most that was used of a quota in any window as long as its own. Pure."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import numpy as np

from profiler.records import ModelCall, limited_input_tokens


@dataclass(frozen=True, slots=True)
class QuotaShare:
    """The most that was used of a limit in any window as long as its own, in this recording alone.

    `resource` and `window_ns` as in `limits.quotas.Quota`; `source` says where the limit is known from. Input
    tokens are those that the provider counts; `cached` are the ones read from its cache in the same window,
    which some providers leave out. Of `unknown` requests the tokens are not known. Of `models` that have
    such a limit each, `model` came nearest to its own.
    """

    provider: str
    model: str
    resource: str
    limit: float
    window_ns: int
    peak: int
    cached: int
    source: str
    unknown: int = 0
    models: int = 1

    @property
    def share(self) -> float:
        return self.peak / self.limit


class Usage:
    """Model requests of one model: 32 bytes each."""

    def __init__(self) -> None:
        self.at, self.read, self.written, self.cached = (array("q") for _ in range(4))
        self.unknown = 0

    def add(self, model: ModelCall) -> None:
        at = model.started_ns
        if model.attempts:
            at = model.attempts[-1].started_ns
            for one in model.attempts[:-1]:
                self._add(one.started_ns, 0, 0, 0)
        if model.input_tokens is None or model.output_tokens is None:
            self.unknown += model.replied
        counted = limited_input_tokens(model.provider, model.input_tokens, model.cached_tokens)
        self._add(at, counted or 0, model.output_tokens or 0, model.cached_tokens or 0)

    def _add(self, at: int, read: int, written: int, cached: int) -> None:
        self.at.append(at)
        self.read.append(read)
        self.written.append(written)
        self.cached.append(cached)

    def peak(self, resource: str, window_ns: int) -> tuple[int, int]:
        """(the most of a resource in any window, the cached tokens in that one)."""
        at = np.frombuffer(self.at, dtype=np.int64)
        order = np.argsort(at, kind="stable")
        at = at[order]
        read, written = (np.frombuffer(column, dtype=np.int64) for column in (self.read, self.written))
        taken = {
            "requests": np.ones(at.size, dtype=np.int64),
            "input_tokens": read,
            "output_tokens": written,
            "tokens": read + written,
        }[resource][order]
        total = np.concatenate([[0], np.cumsum(taken)])
        cached = np.concatenate([[0], np.cumsum(np.frombuffer(self.cached, dtype=np.int64)[order])])
        begins = np.searchsorted(at, at - window_ns, side="right")
        ends = np.arange(1, at.size + 1)
        sums = total[ends] - total[begins]
        most = int(np.argmax(sums))
        return int(sums[most]), int(cached[ends[most]] - cached[begins[most]])
