"""Which spans make one loop: the trees of traces, and what belongs together in them.

An agent without a tool above it, up to the next agent, is a loop; agents below an agent are parts of it.
Below a tool begins a loop of its own. Where nobody wrote down an agent, the nearest span that holds a whole
loop is its root; spans whose parents are lost go to the loop of their trace that they lie in, or make one
together.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from profiler.recordings.genai_dialects import LITELLM, LITELLM_RAW
from profiler.recordings.span import Kind, Span, packed


@dataclass(slots=True, eq=False)
class Node:
    """A span in its tree. `cut`: its parent is not here. `holder`: the nearest agent or tool above it;
    `within`: the nearest model request above it with neither of them between."""

    span: Span
    kind: Kind
    above: Node | None = None
    below: list[Node] = field(default_factory=list)
    cut: bool = False
    holder: Node | None = None
    within: Node | None = None
    family: Family | None = None

    @property
    def top(self) -> Node:
        node = self
        while node.above is not None:
            node = node.above
        return node


@dataclass(slots=True, eq=False)
class Family:
    """The spans of one loop. `root` None: it has none, or not one of its own (`cut`: there was one, and it is
    lost). `spawned_in` is the tool below which it ran; `inside` the loop that it lies in, where that is all
    that is known. `orphans` are the calls that are in it for their times alone."""

    root: Node | None
    models: list[Node] = field(default_factory=list)
    tools: list[Node] = field(default_factory=list)
    agents: list[Node] = field(default_factory=list)
    cut: bool = False
    spawned_in: Node | None = None
    inside: Family | None = None
    orphans: int = 0

    def add(self, node: Node) -> None:
        node.family = self
        {"agent": self.agents, "model": self.models, "tool": self.tools}[node.kind].append(node)

    @property
    def traces(self) -> set[str]:
        nodes = [*self.models, *self.tools] if self.root is None else [self.root]
        return {node.span.trace for node in nodes}

    @property
    def conversations(self) -> set[str]:
        nodes = [*self.models, *self.tools, *self.agents]
        nodes += [] if self.root is None else [self.root]
        return {node.span.conversation for node in nodes} - {""}


@dataclass(slots=True)
class Families:
    """The loops found; `repeated` counts further tool spans of one call, `alone` tool spans without any model
    request that they could be of."""

    found: list[Family]
    repeated: int = 0
    alone: int = 0


def families(spans: Sequence[Span]) -> Families:
    """The loops of some traces. The answer is the same for any order of the spans, and any repeats."""
    return _Sorter(_forest(spans)).sort()


def when(node: Node) -> tuple[int, int, str, str]:
    """By what nodes are ordered: those that began first, of these what went on longest."""
    span = node.span
    return span.started_ns, -(span.ended_ns or 2**63), span.id, span.trace


def _forest(spans: Iterable[Span]) -> list[Node]:
    """Every span once, parents before what is below them."""
    known: dict[tuple[str, str], Span] = {}
    for span in spans:
        key = (span.trace, span.id)
        other = known.get(key)
        if other is None or (span != other and _told(span) > _told(other)):
            known[key] = span
    nodes = {key: Node(span, span.kind) for key, span in known.items()}
    ordered = sorted(nodes.values(), key=when)
    roots = []
    for node in ordered:
        span = node.span
        above = nodes.get((span.trace, span.parent)) if span.parent else None
        if above is None or above is node:
            node.cut = bool(span.parent)
            roots.append(node)
        else:
            node.above = above
            above.below.append(node)
    result: list[Node] = []
    reached: set[int] = set()
    waiting = [
        *ordered[::-1],
        *roots[::-1],
    ]  # the first is what is left after all roots: on a circle of parents
    while waiting:
        node = waiting.pop()
        if id(node) in reached:
            continue
        above = node.above
        if above is not None and id(above) not in reached:
            above.below.remove(node)
            node.above, node.cut = None, True
        reached.add(id(node))
        result.append(node)
        waiting += node.below[::-1]
    return result


def _ordered(nodes: list[Node]) -> list[Node]:
    """Parents before what is below them, again."""
    result: list[Node] = []
    waiting = [node for node in nodes if node.above is None][::-1]
    while waiting:
        node = waiting.pop()
        result.append(node)
        waiting += node.below[::-1]
    return result


def _same(outer: Node, inner: Node) -> bool:
    """Whether spans of two instrumentations, side by side, are of one request or call."""
    one, other = outer.span, inner.span
    if not (one.scope and other.scope) or one.scope == other.scope or one.clock != other.clock:
        return False
    for name in ("request_id", "call_id", "model"):
        if getattr(one, name) and getattr(other, name) and getattr(one, name) != getattr(other, name):
            return False
    if inner.kind == "tool" and not one.call_id == other.call_id != "" and one.name != other.name:
        return False
    if one.ended_ns is None or other.ended_ns is None or other.started_ns >= one.ended_ns:
        return False
    if other.ended_ns - one.ended_ns > (one.ended_ns - one.started_ns) // 10:
        return False
    # Another span of that instrumentation in it, at the same time, is the one of that request.
    return not any(
        two.kind == inner.kind
        and two.span.scope == other.scope
        and two.span.started_ns < other.ended_ns
        and other.started_ns < (two.span.ended_ns or other.ended_ns)
        for two in outer.below
    )


def _lent(node: Node) -> bool:
    """LiteLLM writes of a request on the span that was current, and makes one of its own below."""
    return node.span.name != LITELLM and any(one.span.name == LITELLM_RAW for one in node.below)


def _in_turn(node: Node) -> bool:
    """Whether several requests below it were answered, one after another: that is more than a retry."""
    answered, waiting = [], list(node.below)
    while waiting:
        one = waiting.pop()
        if one.kind != "model":
            waiting += one.below
        elif one.span.status == "ok" and one.span.ended_ns is not None:
            answered.append((one.span.started_ns, one.span.ended_ns))
    answered.sort()
    return any(before[1] <= after[0] for before, after in pairwise(answered))


def _told(span: Span) -> tuple[bool, int, str]:
    """Which of two spans with one id counts: one that ended, the later one."""
    return span.ended_ns is not None, span.ended_ns or 0, repr(packed(span))


@dataclass(slots=True)
class _Below:
    """What is below a span, up to the next tool."""

    models: int = 0
    tools: int = 0
    named: int = 0  # of these tools, those with the id of a call
    agents: int = 0


class _Sorter:
    def __init__(self, nodes: list[Node]) -> None:
        self._nodes = nodes
        self._families: list[Family] = []
        self._result = Families(self._families)
        self._asked = {id_ for node in nodes for id_, _ in node.span.calls if id_}

    def sort(self) -> Families:
        self._name_calls()
        self._settle_kinds()
        self._pair()
        self._find_holders()
        free = self._of_agents()
        self._of_the_free(free)
        self._nest()
        self._families[:] = [one for one in self._families if one.models or one.agents]
        for family in self._families:
            for members in (family.models, family.tools, family.agents):
                members.sort(key=when)
            self._once(family)
        return self._result

    def _once(self, family: Family) -> None:
        """Spans of one call at one time (of a client and its server, of two instrumentations) are one."""
        latest: dict[str, Span] = {}
        kept = []
        for node in family.tools:
            span = node.span
            before = latest.get(span.call_id) if span.call_id else None
            if before is not None and span.started_ns < (before.ended_ns or 2**63):
                self._result.repeated += 1
                continue
            latest[span.call_id] = span
            kept.append(node)
        family.tools[:] = kept

    def _name_calls(self) -> None:
        """A span that is called as a call that a request asked for, where no tool's span is: the application
        wrote down its tools in its own way."""
        asked: dict[tuple[str, str], int] = {}
        for node in self._nodes:
            for _, name in node.span.calls:
                key = (node.span.trace, name)
                asked[key] = min(asked.get(key, 2**63), node.span.started_ns)
        if not asked:
            return
        for node in self._nodes:
            if node.kind == "tool":
                asked.pop((node.span.trace, node.span.name), None)
        for node in self._nodes:
            if node.kind == "other" and node.span.started_ns >= asked.get(
                (node.span.trace, node.span.name), 2**63
            ):
                node.kind = "tool"

    def _settle_kinds(self) -> None:
        """What calls itself a model request, and has requests and tools (or an agent) in it, or several
        requests that were answered one after another, is an agent; so is an application's span on which a
        request below it was written (`_lent`). What calls itself a tool call, without an id, around calls
        that have theirs, only holds them."""
        below: dict[int, _Below] = {id(node): _Below() for node in self._nodes}
        for node in reversed(self._nodes):
            here = below[id(node)]
            if node.kind == "model" and (
                here.agents or (here.models and (here.tools or _lent(node) or _in_turn(node)))
            ):
                node.kind = "agent"
            elif node.kind == "tool" and not node.span.call_id and here.named and not here.models:
                node.kind = "other"
            if node.above is None:
                continue
            up = below[id(node.above)]
            if node.kind == "tool":
                up.tools += 1
                up.named += bool(node.span.call_id)
                continue
            up.models += here.models + (node.kind == "model")
            up.agents += here.agents + (node.kind == "agent")
            up.tools += here.tools
            up.named += here.named

    def _pair(self) -> None:
        """Two instrumentations at once, of which one does not make its span the current one: their spans of
        one request stand side by side. The one that lies in the other is put below it."""
        beside: dict[tuple[int, str], list[Node]] = defaultdict(list)
        for node in self._nodes:
            if node.kind in ("model", "tool") and node.above is not None:
                beside[id(node.above), node.kind].append(node)
        for nodes in beside.values():
            if len({node.span.scope for node in nodes}) < 2:
                continue
            nodes.sort(key=when)
            for index, inner in enumerate(nodes):
                for outer in reversed(nodes[:index]):
                    if outer.above is inner.above and _same(outer, inner):
                        assert inner.above is not None
                        inner.above.below.remove(inner)
                        inner.above = outer
                        outer.below.append(inner)
                        break
        self._nodes = _ordered(self._nodes)

    def _find_holders(self) -> None:
        for node in self._nodes:
            above = node.above
            if above is None:
                continue
            node.holder = above if above.kind in ("agent", "tool") else above.holder
            node.within = above if above.kind == "model" else above.within
            if above.kind in ("agent", "tool"):
                node.within = None

    def _of_agents(self) -> list[Node]:
        """Give what has an agent or a tool above it to its loop; returns the others."""
        free: list[Node] = []
        in_tools: dict[int, Family] = {}
        for node in self._nodes:
            holder = node.holder
            if node.kind == "agent":
                if holder is not None and holder.kind == "agent":
                    self._family(holder).add(node)
                else:
                    self._new(Family(node, spawned_in=holder)).add(node)
            elif node.kind in ("model", "tool"):
                if holder is None:
                    free.append(node)
                elif holder.kind == "agent":
                    self._family(holder).add(node)
                elif node.kind == "model":
                    family = in_tools.get(id(holder))
                    if family is None:
                        family = in_tools[id(holder)] = self._new(Family(None, spawned_in=holder))
                    family.add(node)
        for node in self._nodes:
            holder = node.holder
            if node.kind == "tool" and holder is not None and holder.kind == "tool":
                family = in_tools.get(id(holder))
                if family is not None and min(map(when, family.models)) < when(node):
                    family.add(node)  # an agent in a tool that nobody wrote down as one
                elif (
                    node.span.call_id in self._asked
                    and node.span.call_id != holder.span.call_id
                    and holder.family is not None
                ):
                    holder.family.add(node)
                else:
                    self._result.repeated += 1
        return free

    def _of_the_free(self, free: list[Node]) -> None:
        """Loops of model requests and tool calls that have no agent above them."""
        with_agents = {node.span.trace for node in self._nodes if node.kind == "agent"}
        lost: list[Node] = []
        rooted: list[Node] = []
        loose: dict[tuple[str, str], list[Node]] = defaultdict(list)
        for node in free:
            top = node.top
            if top.cut or top is node or top.kind == "model":
                if node.span.trace in with_agents:
                    lost.append(node)
                else:
                    loose[node.span.trace, node.span.conversation].append(node)
            else:
                rooted.append(node)
        groups = self._grow(rooted, lost)
        for trace in sorted({trace for trace, conversation in loose if not conversation}):
            named = [one for one in loose if one[0] == trace and one[1]]
            if len(named) == 1:
                loose[named[0]] += loose.pop((trace, ""))  # the trace has one conversation: they are of it
        groups += [self._group(nodes) for _, nodes in sorted(loose.items(), key=lambda one: one[0])]
        self._join(groups, lost)
        self._attach(sorted(lost, key=when))

    @staticmethod
    def _group(nodes: list[Node]) -> Family:
        family = Family(None, cut=any(node.top.cut for node in nodes))
        for node in nodes:
            family.add(node)
        return family

    def _grow(self, rooted: list[Node], lost: list[Node]) -> list[Family]:
        """The loops below roots that are no agents: each from the nearest span that holds all of it."""
        events: dict[int, list[Node]] = {}

        def of(node: Node) -> list[Node]:
            """The requests and calls below it, those below tools left out."""
            if id(node) not in events:
                found, waiting = [], list(node.below)
                while waiting:
                    one = waiting.pop()
                    if one.kind in ("model", "tool"):
                        found.append(one)
                    if one.kind != "tool":
                        waiting += one.below
                events[id(node)] = sorted(found, key=when)
            return events[id(node)]

        summaries: dict[int, tuple[tuple[int, int, str, str] | None, bool]] = {}

        def summary(node: Node) -> tuple[tuple[int, int, str, str] | None, bool]:
            """Of what is below it: the first request, and whether an agent has calls of its own."""
            if id(node) not in summaries:
                first = next((when(one) for one in of(node) if one.kind == "model"), None)
                summaries[id(node)] = (
                    first,
                    any(one.kind == "tool" and one.holder is not None for one in of(node)),
                )
            return summaries[id(node)]

        roots: dict[int, Node] = {}
        homeless: list[Node] = []
        for tool in rooted:
            if tool.kind != "tool":
                continue
            home = tool.above
            while home is not None:
                first = summary(home)[0]
                if first is not None and first < when(tool):
                    break
                home = home.above
            if home is None or summary(home)[1]:
                homeless.append(tool)
                continue
            # A loop ends with a request that asks for nothing: where a call comes last it goes on elsewhere.
            higher = home
            while of(home)[-1].kind == "tool" and higher.above is not None:
                higher = higher.above
                if when(of(higher)[-1]) > when(of(home)[-1]):
                    home = higher
            roots[id(home)] = home
        lost += homeless
        without = set(map(id, homeless))
        result: dict[int, Family] = {}
        for node in rooted:
            if id(node) in without:
                continue
            root = None
            above = node.above
            while above is not None:
                root = roots.get(id(above), root)
                above = above.above
            root = node.top if root is None else root
            if id(root) not in result:
                result[id(root)] = Family(root)
            result[id(root)].add(node)
        for family in list(result.values()):
            assert family.root is not None
            if id(family.root) not in roots:
                continue
            for event in of(family.root):
                if event.holder is not None and event.family is not None and event.family is not family:
                    other = event.family
                    for node in [*other.agents, *other.models, *other.tools]:
                        family.add(node)
                    self._families.remove(other)
            if family.agents:
                self._families.append(family)
                del result[id(family.root)]
        return list(result.values())

    def _join(self, groups: list[Family], lost: list[Node]) -> None:
        """Groups of one conversation in several traces are one sequence: cut it at its answers."""
        together: dict[str, list[Family]] = defaultdict(list)
        for group in groups:
            conversations = group.conversations
            if len(conversations) == 1:
                together[next(iter(conversations))].append(group)
            else:
                self._keep(group, lost)
        for _, parts in sorted(together.items()):
            if len(set[str]().union(*(part.traces for part in parts))) == 1:
                for part in parts:
                    self._keep(part, lost)
                continue
            whole = {frozenset(map(id, [*part.models, *part.tools])): part for part in parts}
            for piece in _answers([node for part in parts for node in (*part.models, *part.tools)]):
                family = whole.get(frozenset(map(id, piece)))
                self._keep(self._group(piece) if family is None else family, lost)

    def _keep(self, family: Family, lost: list[Node]) -> None:
        if family.models:
            for node in [*family.models, *family.tools]:
                node.family = family
            self._families.append(family)
        else:
            lost += family.tools

    def _attach(self, lost: list[Node]) -> None:
        """Give spans without a parent to the loops that they most likely are of: that which asked for the
        call, else one of the agent that the span names, else that which the span lies in."""
        asked: dict[tuple[str, str], list[Family]] = defaultdict(list)
        places: dict[tuple[str, ...], list[Family]] = defaultdict(list)
        for family in self._families if lost else ():
            for trace in family.traces:
                for id_ in {id_ for model in family.models for id_, _ in model.span.calls}:
                    asked[trace, id_].append(family)
            names = {agent.span.agent for agent in family.agents} | {""}
            wheres = [("trace", one) for one in family.traces]
            wheres += [("conversation", one) for one in family.conversations]
            for where in wheres:
                for name in names:
                    places[*where, name].append(family)
        found = {key: _Places(some) for key, some in places.items()}
        for node in lost:
            span = node.span
            asking = asked.get((span.trace, span.call_id), []) if span.call_id else []
            if len(asking) == 1:
                asking[0].add(node)
                continue
            keys = [("trace", span.trace, span.agent), ("trace", span.trace, "")]
            if span.conversation:
                keys += [
                    ("conversation", span.conversation, span.agent),
                    ("conversation", span.conversation, ""),
                ]
            place = next((found[key] for key in keys if key in found), None)
            if place is not None:
                family = place.at(span.started_ns)
                family.add(node)
                family.orphans += node.kind == "tool"
            elif node.kind == "model":
                family = self._new(self._group([node]))
                for key in keys[1::2]:
                    found[key] = _Places([family])
            else:
                self._result.alone += 1

    def _nest(self) -> None:
        """An agent whose parent is lost, in a trace with a loop around it, ran inside that one."""
        whole = [one for one in self._families if one.root is not None and not one.root.cut]
        for family in self._families:
            root = family.root
            if root is None or not root.cut or root.kind != "agent":
                continue
            around = [
                one
                for one in whole
                if one.root is not None
                and one.root.span.trace == root.span.trace
                and one.spawned_in is None
                and _contains(one.root.span, root.span)
            ]
            if len(around) == 1:
                family.inside = around[0]

    def _family(self, node: Node) -> Family:
        assert node.family is not None
        return node.family

    def _new(self, family: Family) -> Family:
        self._families.append(family)
        return family


def _contains(outer: Span, inner: Span) -> bool:
    ended_ns = outer.ended_ns
    return outer.started_ns <= inner.started_ns and (
        ended_ns is None or (inner.ended_ns or inner.started_ns) <= ended_ns
    )


class _Places:
    """Loops by their starts, to find that in which a time lies."""

    def __init__(self, some: list[Family]) -> None:
        spans = []
        for family in some:
            nodes = [family.root] if family.root is not None else [*family.models, *family.tools]
            started_ns = min(node.span.started_ns for node in nodes)
            ended_ns = max(node.span.ended_ns or 2**63 for node in nodes)
            spans.append((started_ns, ended_ns, min(when(node) for node in nodes), family))
        spans.sort(key=lambda one: one[:3])
        self._spans = spans
        self._starts = [one[0] for one in spans]

    def at(self, time_ns: int) -> Family:
        """The last to start of those that it lies in, else of those before it, else the first."""
        index = bisect_right(self._starts, time_ns) - 1
        for _, ended_ns, _, family in reversed(self._spans[max(0, index - _LOOKED_BACK) : index + 1]):
            if time_ns <= ended_ns:
                return family
        return self._spans[max(0, index)][3]


_LOOKED_BACK = 100
"""Loops that began since one that a span is taken to lie in: with more at once nobody could tell."""


def _answers(nodes: list[Node]) -> list[list[Node]]:
    """Cut a sequence after every request that asked for no call."""
    told = any(node.kind == "tool" or node.span.finish_reason for node in nodes)
    ordered = sorted(nodes, key=when)
    heads = [node for node in ordered if node.within is None]
    before_request = {id(one) for one, after in pairwise(heads) if after.kind == "model"}
    pieces: list[list[Node]] = [[]]
    done = False
    for node in ordered:
        if done and node.kind == "model" and node.within is None:
            pieces.append([])
        pieces[-1].append(node)
        if node.within is None:
            done = (
                told
                and node.kind == "model"
                and node.span.status == "ok"
                and not asks(node.span)
                and id(node) in before_request
            )
    return pieces


def asks(span: Span) -> bool:
    """Whether a reply says that it asks for calls."""
    reason = (span.finish_reason or "").lower()
    return bool(span.calls) or "tool" in reason or "function" in reason
