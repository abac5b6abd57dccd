"""What watching, or a recording, has missed: calls not seen or outside every loop, replies not understood."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Self

from profiler.anatomy import server_tool_runs
from profiler.records import LoopRecord
from profiler.report.text import clean, counted
from profiler.statistics.caveats import replied, watching

MOST_NAMED = 8
"""Tools that are named; a model may invent a new name in every call."""


class Unseen:
    """Counts over loops of what their records do not hold; `sentences` says it, with what to do."""

    def __init__(self) -> None:
        self._asked: Counter[str] = Counter()
        self._unseen: Counter[str] = Counter()
        self._given_up: Counter[str] = Counter()  # after the last reply of a loop nothing was asked any more
        self._unnamed = self._orphans = self._ambiguous = self._failures = 0
        self._unreadable = self._untimed = self._dropped = 0
        self._recorded: Counter[str] = Counter()  # what is missing in recordings, by what it is

    @classmethod
    def of(cls, records: Iterable[LoopRecord]) -> Self:
        found = cls()
        for record in records:
            found.add(record)
        return found

    def add(self, record: LoopRecord) -> None:
        if record.source:
            self._add_recorded(record)
            return
        self._orphans += record.orphan_calls
        self._ambiguous += record.ambiguous_calls
        self._failures += record.watch_failures
        self._dropped += record.rounds_dropped
        for round_ in record.rounds:
            model = round_.model
            self._unreadable += model.unreadable
            self._untimed += len(model.server_tools) - len(server_tool_runs(model))
            if round_ is record.rounds[-1] and not round_.tool_calls and round_.unobserved_tools:
                self._given_up.update(round_.unobserved_tools)
                continue
            self._asked.update(call.name for call in round_.tool_calls if call.id)
            if round_.unobserved_calls:
                self._unseen.update(round_.unobserved_tools)
                self._unnamed += max(0, round_.unobserved_calls - len(round_.unobserved_tools))

    def _add_recorded(self, record: LoopRecord) -> None:
        self._dropped += record.rounds_dropped
        missing = self._recorded
        missing["orphan"] += record.orphan_calls
        missing["ambiguous"] += record.ambiguous_calls
        missing["unobserved"] += record.unobserved_calls
        for round_ in record.rounds:
            self._unreadable += round_.model.unreadable
            missing["untimed"] += len(round_.model.server_tools) - len(server_tool_runs(round_.model))
            missing.update(untimed for call in round_.tool_calls if (untimed := call.untimed) is not None)

    def sentences(self) -> list[str]:
        """Each with what to do about it; none where everything was seen."""
        return list(self._sentences())

    def _sentences(self) -> Iterator[str]:
        for tool, missing in self._unseen.most_common(MOST_NAMED):
            asked = self._asked[tool] + missing
            name = clean(tool)
            seen = "and none was seen" if missing == asked else f"and {missing} {_were(missing)} not seen"
            yield (
                f"{counted(asked, 'call')} of {name} {_were(asked)} asked for {seen}: name the function that "
                f"runs it, prof.tool(function, name={name!r}), or the one that runs all tools, "
                "prof.dispatcher(function, name=its parameter); a framework's own handoffs have none"
            )
        others = self._unseen.most_common()[MOST_NAMED:]
        if others:
            yield f"calls of {len(others)} more tools were not seen, {sum(n for _, n in others)} in all"
        given_up = sum(self._given_up.values())
        if given_up:
            names = ", ".join(map(clean, [*self._given_up][:MOST_NAMED]))
            yield (
                f"{counted(given_up, 'call')} ({names}) {_were(given_up)} asked for by the last reply of a "
                "loop, and none was seen: did it end there on purpose, as with a limit of rounds?"
            )
        for caveat in (
            *watching(self._unnamed, self._orphans, self._ambiguous, self._failures),
            *replied(self._unreadable, self._untimed),
        ):
            yield f"{caveat.detail}; {caveat.remedy}"
        for what, words in _RECORDED.items():
            if count := self._recorded[what]:
                yield words.format(counted(count, "call"), _were(count))
        if self._dropped:
            yield f"{counted(self._dropped, 'round')} at the start of loops that were too long are not here"


_RECORDED = {
    "upper_bound": "of {} only an upper bound is known (≤), any wait and approval inside: "
    "no start was recorded",
    "never_ended": "of {} no end was recorded, and so no duration",
    "never_started": "{} never started",
    "wait": "{} only waited for what other calls had begun: they are in no latency",
    "unobserved": "{} {} asked for, and nothing more was recorded",
    "ambiguous": "{} may be others than they are taken for",
    "orphan": "{} {} recorded without the request that asked for them",
    "untimed": "of {} of tools that the model's server ran itself no times are known: they are part of model",
}
"""What a recording lacks: in words about so many calls."""


def _were(count: int) -> str:
    return "was" if count == 1 else "were"
