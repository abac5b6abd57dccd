"""The loops of the spans of a trace: which spans are one request, and which call is of which round.

`loops_of` takes all spans of one trace, or of several that belong to one conversation, in any order and with
any repeats, and returns the drafts of their loops. It is pure, keeps nothing, and raises nothing for whatever
spans it is given. A trace of which some spans have not come yet may be given as it is: what is missing then
(a root, parents, ends) is treated as lost.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from profiler.recordings.drafts import CallDraft, LoopDraft, ModelDraft, RoundDraft
from profiler.recordings.formats import Skipped
from profiler.recordings.sampling import agreed
from profiler.recordings.span import Span as Span
from profiler.recordings.span import below
from profiler.recordings.span import packed as packed
from profiler.recordings.span import unpacked as unpacked
from profiler.recordings.span_trees import Family, Node, asks, families, when
from profiler.records import Attempt, Status

APART = "spans inside guardrails and evaluators, which are no part of a loop"

_STATUS_OF_ERRORS = {"RateLimitError": 429, "OverloadedError": 529}
"""Exceptions of the providers' SDKs that stand for one status."""


def loops_of(spans: Sequence[Span], source: str, content: bool = False) -> list[LoopDraft | Skipped]:
    """The loops of the spans of a trace or a conversation, by their starts; `Skipped` for what is in none.

    `source` is `LoopRecord.source`. `content`: keep arguments, results, prompt and answer, where the spans
    have them."""
    inside = below({(one.trace, one.id) for one in spans if one.kind == "apart"}, spans)
    sorted_ = families([one for one in spans if (one.trace, one.id) not in inside])
    result: list[LoopDraft | Skipped] = []
    drafts = {id(family): _loop(family, source, content) for family in sorted_.found}
    sampled = agreed(span.sampled for span in spans)
    for family in sorted_.found:
        draft = drafts[id(family)]
        draft.sampled = sampled
        parent = family.inside
        if family.spawned_in is not None:
            draft.spawned_by = _key(family.spawned_in.span)
            parent = family.spawned_in.family
        if parent is not None and id(parent) in drafts:
            draft.parent = drafts[id(parent)].id
        result.append(draft)
    result.sort(key=lambda one: (_began(one), one.id) if isinstance(one, LoopDraft) else (0, ""))
    apart = sum((one.trace, one.id) in inside and one.kind in ("agent", "model", "tool") for one in spans)
    if apart:
        result.append(Skipped(APART, apart))
    if sorted_.repeated:
        result.append(Skipped("a second span of the same tool call", sorted_.repeated))
    alone = sorted_.alone + sum(len(one.tools) for one in sorted_.found if not one.models)
    if alone:
        result.append(Skipped("a tool call of which no model request is recorded", alone))
    return result


def _began(loop: LoopDraft) -> int:
    if loop.started_ns is not None:
        return loop.started_ns
    return min((one.model.started_ns or 0 for one in loop.rounds), default=0)


def _key(span: Span) -> str:
    return f"{span.trace}/{span.id}"


@dataclass(slots=True, eq=False)
class _Round:
    requests: list[Node]  # the failed ones before, and the one that counts
    scope: Node | None
    calls: list[Node] = field(default_factory=list)

    @property
    def began_ns(self) -> int:
        return self.requests[-1].span.started_ns

    @property
    def _spans(self) -> list[Span]:
        return [self.requests[-1].span, *(node.span for node in _inner(self.requests[-1]))]

    @property
    def asked(self) -> list[tuple[str, str]]:
        return list(next((span.calls for span in self._spans if span.calls), ()))

    @property
    def asks(self) -> bool:
        """Whether its reply says that it asks for calls."""
        return any(asks(span) for span in self._spans)


def _loop(family: Family, source: str, content: bool) -> LoopDraft:
    root = family.root
    first = min(
        [*family.models, *family.agents, *family.tools] if root is None else [root],
        key=when,
    )
    span = first.span
    timed = [first, *family.models, *family.tools]
    rounds = _rounds(family)
    draft = LoopDraft(
        id=f"{span.trace}-{span.id}" if root is not None else f"{span.trace}-{span.id}-",
        source=source,
        name=_name(family),
        process=span.process,
        clocks=tuple(sorted({node.span.clock or node.span.process for node in timed})),
        resolution_ns=max(node.span.resolution_ns for node in timed),
        ambiguous_calls=_place(family, rounds),
        orphan_calls=family.orphans,
    )
    draft.rounds = [_round(one, span.clock, content) for one in rounds]
    if root is not None:
        draft.started_ns = root.span.started_ns
        draft.ended_ns = root.span.ended_ns
    draft.status, draft.error_type = _ending(family, draft, rounds[-1] if rounds else None)
    if draft.status == "cancelled":
        for call in (call for one in draft.rounds for call in one.calls):
            if call.ended_ns is None and call.status == "ok":
                call.status = "cancelled"
    if content:
        told = [node.span for node in [*([root] if root else []), *family.agents, *family.models]]
        draft.prompt = next((one.prompt for one in told if one.prompt), None)
        told[-len(family.models) :] = told[-len(family.models) :][::-1] if family.models else []
        draft.text = next((one.text for one in told if one.text), None)
    return draft


def _name(family: Family) -> str:
    """The agent's: the outermost that has one says its name, else its requests do."""
    agents = sorted({node.span for node in family.agents}, key=lambda one: (one.started_ns, one.id))
    named = [one.agent for one in agents if one.agent]
    named += [node.span.agent for node in family.models if node.span.agent]
    named += [one.name for one in agents]
    if family.root is not None:
        named.append(family.root.span.name)
    return named[0] if named else ""


def _ending(family: Family, draft: LoopDraft, last_round: _Round | None) -> tuple[Status, str | None]:
    last = draft.rounds[-1].model if draft.rounds else None
    if family.root is not None:
        span = family.root.span
        if span.ended_ns is None:
            return "cancelled", span.error_type
        if span.status == "cancelled":
            return "cancelled", span.error_type
        if span.status != "ok":
            return "error", span.error_type
    elif family.cut:
        return "cancelled", None
    if last is not None and last.status != "ok":
        return last.status, last.error_type
    if family.root is None and last_round is not None and (last_round.calls or last_round.asks):
        return "cancelled", None  # nobody came back with what was asked for
    return "ok", None


def _rounds(family: Family) -> list[_Round]:
    """Requests by the agent that made them; one that follows a failed one, without a call between, is its
    next try. A request inside another's span is the same one."""
    result: list[_Round] = []
    latest: dict[int, _Round] = {}
    for node in family.models:
        if node.within is not None and node.within.family is family:
            continue
        scope = _scope(node)
        before = latest.get(id(scope))
        if before is not None and _fails(before.requests[-1]):
            failed = before.requests[-1].span
            ended_ns = failed.ended_ns
            if (
                ended_ns is not None
                and ended_ns <= node.span.started_ns
                and not any(
                    failed.started_ns <= tool.span.started_ns <= node.span.started_ns
                    and _scope(tool) is scope
                    for tool in family.tools
                )
            ):
                before.requests.append(node)
                continue
        round_ = latest[id(scope)] = _Round([node], scope)
        result.append(round_)
    return result


def _fails(node: Node) -> bool:
    return node.span.status in ("error", "timeout")


def _scope(node: Node) -> Node | None:
    holder = node.holder
    return holder if holder is not None and holder.kind == "agent" else None


class _Before:
    """The rounds of an agent by their starts, to find the last one before a time."""

    def __init__(self, rounds: list[_Round]) -> None:
        self.rounds = sorted(rounds, key=lambda one: one.began_ns)
        self._starts = [one.began_ns for one in self.rounds]
        ends = (one.requests[-1].span.ended_ns or 0 for one in self.rounds)
        self._latest = list(accumulate(ends, max))

    def at(self, time_ns: int) -> tuple[_Round, bool] | None:
        """The round, and whether one before it was still being asked for when it began."""
        index = bisect_right(self._starts, time_ns) - 1
        if index < 0:
            return None
        return self.rounds[index], index > 0 and self._latest[index - 1] > self._starts[index]


def _place(family: Family, rounds: list[_Round]) -> int:
    """Give every call to its round; returns how many could be of another."""
    if not rounds:
        return 0
    asked = {id_: one for one in rounds for id_, _ in one.asked if id_}
    scopes: dict[int, list[_Round]] = defaultdict(list)
    for one in rounds:
        scopes[id(one.scope)].append(one)
    before = {scope: _Before(some) for scope, some in scopes.items()}
    whole = _Before(rounds)
    ambiguous = 0
    for tool in family.tools:
        round_ = asked.get(tool.span.call_id)
        is_open = False
        if round_ is None:
            found = None
            scope = _scope(tool)
            while found is None:
                some = before.get(id(scope))
                found = some.at(tool.span.started_ns) if some is not None else None
                if scope is None:
                    break
                scope = _scope(scope)
            found = found or whole.at(tool.span.started_ns) or (whole.rounds[0], False)
            round_, is_open = found
        request = round_.requests[-1]
        if tool.within is request and not _fails(request) and before[id(round_.scope)].rounds[-1] is round_:
            is_open = True  # the answer to this call is in the same span, and so are perhaps further rounds
        ambiguous += is_open
        round_.calls.append(tool)
    return ambiguous


def _round(round_: _Round, clock: str, content: bool) -> RoundDraft:
    left = round_.asked
    places = {id_: place for place, (id_, _) in enumerate(left) if id_}
    calls = []
    unnamed = []
    # In the order asked for, where that is told: clocks have no word on calls of one instant.
    told = all(node.span.call_id in places for node in round_.calls)

    def order(node: Node) -> tuple[int, int, str]:
        place = places[node.span.call_id] if told else 0
        return place, node.span.started_ns, node.span.id

    for node in sorted(round_.calls, key=order):
        call = _call(node, clock, content)
        calls.append(call)
        match = next((one for one in left if one[0] and one[0] == node.span.call_id), None)
        if match is not None:
            left.remove(match)
        else:
            unnamed.append(call)
    for call in unnamed:
        match = next((one for one in left if one[1] == call.name), None)
        if match is not None:
            left.remove(match)
    model = _model(round_, clock)
    return RoundDraft(model, calls, unobserved=tuple(name for _, name in left))


def _call(node: Node, clock: str, content: bool) -> CallDraft:
    span = node.span
    runs = [one.span for one in node.below if one.kind == "run"]
    waits = [one.span for one in node.below if one.kind == "wait"]
    told = runs[0] if len(runs) == 1 else span
    refused = not runs and any(one.status == "cancelled" for one in waits)
    failed = span if span.status != "ok" else told
    return CallDraft(
        name=span.name,
        id=span.call_id or span.id,
        asked_ns=span.started_ns if runs or waits else None,
        # With a wait in it, and no word of when the tool itself began, its duration is an upper bound.
        started_ns=told.started_ns if told is not span or not waits else None,
        ended_ns=told.ended_ns,
        status="cancelled" if refused else failed.status,
        error_type=None if refused else failed.error_type,
        refused=refused,
        ended_late=bool(clock and span.clock and clock != span.clock),
        arguments=span.arguments if content else None,
        result=span.result if content else None,
        key=_key(span),
    )


def _model(round_: _Round, clock: str) -> ModelDraft:
    node = round_.requests[-1]
    span = node.span
    spans = [span, *(one.span for one in _inner(node))]
    answered = [span, *(one for one in spans[:0:-1] if one.status == "ok")]
    ended_ns = span.ended_ns
    derived: tuple[str, ...] = ()
    if clock and span.clock and clock != span.clock:  # where it lies among the loop's other times is a guess
        derived = ("started_ns", "ended_ns")
    inside = [
        tool.span.started_ns
        for tool in round_.calls
        if tool.within is node and ended_ns is not None and (tool.span.ended_ns or ended_ns + 1) <= ended_ns
    ]
    if inside:  # a span around a request and its calls: the request was over before the first of them
        ended_ns, derived = min(inside), tuple(dict.fromkeys((*derived, "ended_ns")))
    tokens = next((one for one in answered if one.input_tokens is not None), None) or next(
        (one for one in answered if one.output_tokens is not None), span
    )
    attempts = _attempts(round_.requests)
    tries = sum(1 + _resends(one) for one in round_.requests)
    return ModelDraft(
        provider=next((one.provider for one in spans if one.provider), ""),
        model=next((one.model for one in spans if one.model), ""),
        started_ns=round_.requests[0].span.started_ns,
        ended_ns=ended_ns,
        derived=derived,
        status="error" if span.status == "timeout" else span.status,
        error_type=span.error_type,
        request_id=next((one.request_id for one in answered if one.request_id), None),
        finish_reason=next((one.finish_reason for one in answered if one.finish_reason), None),
        streamed=any(one.streamed or one.first_token_ns is not None for one in spans),
        first_token_ns=next(
            (
                one.first_token_ns
                for one in answered
                if one.first_token_ns is not None and one.clock == span.clock
            ),
            None,
        ),
        input_tokens=tokens.input_tokens,
        output_tokens=tokens.output_tokens,
        cached_tokens=_first(tokens.cached_tokens, *(one.cached_tokens for one in answered)),
        cache_written_tokens=_first(
            tokens.cache_written_tokens, *(one.cache_written_tokens for one in answered)
        ),
        cache_written_1h_tokens=_first(
            tokens.cache_written_1h_tokens, *(one.cache_written_1h_tokens for one in answered)
        ),
        reasoning_tokens=_first(tokens.reasoning_tokens, *(one.reasoning_tokens for one in answered)),
        attempts=attempts,
        resends=max(0, tries - (len(attempts) or 1)),
    )


def _first(*values: int | None) -> int | None:
    return next((one for one in values if one is not None), None)


def _inner(node: Node, kind: str = "model") -> list[Node]:
    """The spans of a kind inside a request's, by their starts; none of its calls'."""
    found, waiting = [], list(node.below)
    while waiting:
        one = waiting.pop()
        if one.kind == kind:
            found.append(one)
        if one.kind not in ("tool", "agent") and not (one.kind == kind == "http"):
            waiting += one.below
    return sorted(found, key=when)


def _https(node: Node) -> list[Node]:
    """The HTTP requests of a model request; of nested ones the outermost."""
    return [
        one for one in _inner(node, "http") if one.span.http_status is not None or one.span.status != "ok"
    ]


def _resends(node: Node) -> int:
    """Tries of a request beside the first, as far as anything counts them."""
    inner = _inner(node)
    told = [node.span.resends, *(one.span.resends for one in inner)]
    https = _https(node)
    told += [one.span.resends for one in https]
    told.append(len(https) - 1)
    told.append(len(_leaves(inner)) - 1)
    return max(told)


def _leaves(inner: list[Node]) -> list[Node]:
    """Of requests inside one, those that have none inside themselves."""
    return [one for one in inner if not _inner(one)]


def _attempts(requests: list[Node]) -> tuple[Attempt, ...]:
    """The tries that were seen: HTTP requests, else the model spans, where there are several."""
    seen: list[Span] = []
    told = False
    for node in requests:
        https = _https(node)
        leaves = _leaves(_inner(node))
        told = told or bool(https)
        if https:
            seen += [one.span for one in https]
        elif len(leaves) > 1:
            seen += [one.span for one in leaves]
        else:
            seen.append(node.span)
    if not told and len(seen) < 2:
        return ()
    return tuple(
        Attempt(
            started_ns=one.started_ns,
            ended_ns=max(one.started_ns, one.ended_ns or one.started_ns),
            status=_status(one),
            error_type=_error(one),
        )
        for one in sorted(seen, key=lambda one: (one.started_ns, one.id))
    )


def _error(span: Span) -> str | None:
    """Why a try failed, where no status says it; without a word it is not to look like a good one."""
    if span.http_status is not None or span.status == "ok":
        return None
    return span.error_type or span.status


def _status(span: Span) -> int | None:
    if span.http_status is not None:
        return span.http_status
    if span.status == "ok":
        return None
    error = span.error_type or ""
    if error.removeprefix("http_").isdigit() and len(error.removeprefix("http_")) == 3:
        return int(error.removeprefix("http_"))
    return _STATUS_OF_ERRORS.get(error.rpartition(".")[2])
