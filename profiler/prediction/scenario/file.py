"""The emulator's scenario file from a fit: it behaves as their model and tools did, without content. Pure.

A draw of the emulator has the distribution that the file states. Where large loops are also slow ones, more
calls belong to slow loops, so that the calls' distribution is not that of a loop's: the file then states the
one from which, drawn loop by loop, that of the recorded calls comes out (`_tilted`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from profiler.prediction.scenario.fit import Counts, Fit, QuotaFit, ServerRule, Shape, Table, ToolFit

OWN_CALL_SECONDS, OWN_REPLY_SECONDS = 0.0007, 0.001
"""What a call of the emulator's tools, and a reply, takes beside what is stated and what the client is known
to have taken. In what was recorded as much came on top of what the servers took."""

MOST_TOOLS, MOST_BYTES = 100, 50_000
"""What a scenario has at most; it is of ASCII characters."""

UNBOUNDED_QUEUE = 100_000
_PARAMETERS = '{ type = "object", required = ["query"], properties = { query = { type = "string" } } }'
_LEAST_REFUSAL = 0.002
_LEAST_FAILED = 0.0005
_LEAST_LOOP = 0.03
"""The calls of a loop have to have so much in common for other things to go with it."""

FEWEST_LOOPS, FEWEST_CALLS = 20, 50
"""A recording with fewer has no distributions."""

Floats = NDArray[np.float64]


def too_small(fit: Fit) -> str | None:
    """Why there is nothing to write from so small a recording; None where there is."""
    loops, calls = fit.source.loops, sum(tool.seconds.count for tool in fit.tools)
    if loops >= FEWEST_LOOPS and calls >= FEWEST_CALLS:
        return None
    return (
        f"too small: {loops} whole loops with {calls} calls whose durations are known; {FEWEST_LOOPS} loops"
        f" and {FEWEST_CALLS} calls are the least, some hundreds are better"
    )


def written(fit: Fit) -> str:
    """The TOML of a scenario, of at most `MOST_BYTES`: of many tools those called least are left out."""
    tools = sorted(fit.tools, key=lambda one: -one.share)[:MOST_TOOLS]
    while len(text := _written(fit, tools)) > MOST_BYTES and len(tools) > 1:
        tools = tools[: len(tools) * 3 // 4]
    return text


def _written(fit: Fit, tools: Sequence[ToolFit]) -> str:
    named = dict(zip((tool.name for tool in tools), plain_names([tool.name for tool in tools]), strict=True))
    common = correlation(fit)
    tilt = _Tilt(fit.shape, common)
    parts = [_head(fit, len(fit.tools) - len(tools)), _model(fit, tilt), _loop(fit.shape, tilt)]
    if any(common.values()):
        lines = [f"{key} = {_number(value)}" for key, value in common.items() if value]
        parts.append("\n".join(("# What durations and sizes had in common.", "[correlation]", *lines)))
    shared = _shared(fit, tools)
    parts += [
        f"# Has {_listed(named[tool.name] for tool in tools if tool.server == place)}.\n"
        f"[servers.{_server_name(place)}]\n" + "\n".join(_capacity(fit.servers[place]))
        for place in shared
    ]
    parts += [_quota(fit)] if _quota_lines(fit) else []
    parts += [_tool(fit, tool, named[tool.name], tool.server in shared, tilt) for tool in tools]
    parts += [
        f'# {_kinds(tool)}\n[[faults]]\nkind = "tool_http_500"\nprobability = {_number(tool.failed_share)}\n'
        f"tools = [{json.dumps(named[tool.name])}]"
        for tool in tools
        if tool.failed_share >= _LEAST_FAILED
    ]
    return "\n\n".join(parts) + "\n"


def plain_names(names: Iterable[str]) -> list[str]:
    """The names as the providers' APIs take them: letters, digits, _ and -, at most 64, no two alike."""
    found: list[str] = []
    for name in names:
        plain = re.sub(r"[^A-Za-z0-9_-]", "_", name)[:64] or "tool"
        stem, number = plain[:60], 2
        while plain in found:
            plain, number = f"{stem}_{number}", number + 1
        found.append(plain)
    return found


def correlation(fit: Fit) -> dict[str, float]:
    """The figures of the scenario's `[correlation]`."""
    common = fit.shape.common
    loop = min(0.95, max(0.0, common.loop))
    round_ = min(0.99 - loop, max(0.0, common.round - loop))
    size, model = 0.0, max(0.0, common.model_loop)
    if loop >= _LEAST_LOOP:
        size = math.copysign(min(0.9, common.size**2 / loop), common.size)
        model = math.copysign(min(0.9, common.model_calls**2 / loop), common.model_calls)
    found = {"loop": loop, "round": round_, "size": size, "model": max(-0.9, min(0.9, model))}
    found["first_token"] = common.first_token if fit.model.first_token else 0.0
    found["output_tokens"] = common.output_tokens if fit.model.output_tokens else 0.0
    found["input_tokens"] = common.input_tokens if fit.model.input_tokens else 0.0
    return {key: round(max(-0.99, min(0.99, value)), 3) for key, value in found.items()}


# The distribution of a loop's draws from that of all calls, where sizes go with durations


class _Tilt:
    """Probabilities among calls (or replies, or rounds) → probabilities of the draw, loop by loop.

    With f the normal number that a loop has in common, a loop makes n(f) calls on average. The normal number
    z of a call has then the distribution ∫ n(f) P(z | f) φ(f) df / ∫ n(f) φ(f) df, and not Φ.
    """

    def __init__(self, shape: Shape, common: dict[str, float]) -> None:
        self._size = common["size"]
        root = math.copysign(math.sqrt(abs(self._size)), self._size)
        self._own = common
        self._at = np.linspace(-6, 6, 401)
        self._density = np.exp(-(self._at**2) / 2)
        e, weights = np.polynomial.hermite_e.hermegauss(41)
        latent = root * self._at[:, None] + math.sqrt(1 - abs(self._size)) * e[None, :]
        p = ndtr(latent)
        self._rounds = (_quantiles(shape.rounds, p) * weights).sum(axis=1) / weights.sum()
        self._calls = self._rounds * (_quantiles(shape.fan_out, p) * weights).sum(axis=1) / weights.sum()
        self._root = root

    def calls(self, p: Sequence[float]) -> Sequence[float]:
        """Of tool calls."""
        return self._of(p, self._calls, math.sqrt(self._own["loop"]))

    def replies(self, p: Sequence[float]) -> Sequence[float]:
        """Of the model's replies: one more than rounds with calls."""
        share = self._own["model"]
        return self._of(p, self._rounds + 1, math.copysign(math.sqrt(abs(share)), share))

    def rounds(self, counted: Counts) -> Counts:
        """Of what is counted round by round."""
        ends = np.cumsum(counted.shares)
        moved = np.array(self._of([0.0, *(ends / ends[-1])], self._rounds, self._root))
        return Counts(counted.values, tuple(np.diff(moved).tolist()))

    def _of(self, p: Sequence[float], number: Floats, root: float) -> Sequence[float]:
        if not self._size or not root or not number.any():
            return p
        z = np.linspace(-7, 7, 1401)
        heavy = self._density * number
        of_z = ndtr((z[:, None] - root * self._at[None, :]) / math.sqrt(1 - root * root))
        reached = (of_z * heavy).sum(axis=1) / heavy.sum()
        found = ndtr(np.interp(p, reached, z))
        found[0], found[-1] = 0.0, 1.0
        return [float(one) for one in found]


def _quantiles(counted: Counts, p: Floats) -> Floats:
    ends = np.cumsum(counted.shares)
    places = np.minimum(np.searchsorted(ends / ends[-1], p, side="right"), ends.size - 1)
    return np.asarray(counted.values, dtype=np.float64)[places]


# The parts of the file


def _head(fit: Fit, left_out: int) -> str:
    source = fit.source
    load = [f"strategies: {', '.join(source.strategies)}"] if source.strategies else []
    load += [f"agents: {', '.join(map(str, source.levels))}"] if source.levels else []
    load += [f"arrivals: {source.arrivals}"] if source.arrivals else []
    if source.door is not None:
        load.append(f"made by: profiler {source.door}")
    known = [f"{server.name}: {server.sentence}" for server in fit.servers if server.rule != "none"]
    if fit.model.server.rule != "none":
        known.append(f"the model: {fit.model.server.sentence}")
    unknown = list(fit.unknown)
    if left_out:
        unknown.append(f"{left_out} tools that were called least are left out")
    unknown += _not_emulated(fit)
    lines = [
        f"Behaves as model and tools did in a recording of {source.loops:,} loops, {source.calls:,} calls of"
        f" {len(fit.tools)} tools and {source.requests:,} model requests, in {source.seconds:g} s.",
        *load,
        *(known and ["Seen:", *(f"- {one}" for one in known)]),
        *(unknown and ["Not known:", *(f"- {one}" for one in unknown)]),
        "Times are seconds free of waiting: what waits, is refused or shared follows from the capacities.",
    ]
    said = f"as recorded: {source.loops} loops with {source.calls} calls of {len(fit.tools)} tools"
    return (
        "\n".join(f"# {_clean(line)}" for line in lines)
        + f'\ndescription = {json.dumps(said)}\nprompt = "Task {{number}} of the recorded kind."'
    )


def not_known(fit: Fit) -> list[str]:
    """What the file says that is not known, and what the emulator does not do."""
    return [_clean(one) for one in (*fit.unknown, *_not_emulated(fit))]


def _not_emulated(fit: Fit) -> list[str]:
    said = []
    if fit.model.server.rule in ("queue", "share"):
        said.append("the model's server queues or shares: the emulator's model answers any number at once")
    if fit.shape.failed >= 0.005:
        said.append(f"{fit.shape.failed:.1%} of loops ended without an answer: here all of them get one")
    bursts = {
        round(one.burst / one.amount, 4) for one in fit.quotas if one.burst and one.resource != "concurrent"
    }
    if len(bursts) > 1:
        said.append("the quotas have buckets of different sizes: here they have that of the first")
    return said


def _model(fit: Fit, tilt: _Tilt) -> str:
    model = fit.model
    lines = ["[model]", "# Whole replies, whatever their tokens."]
    lines.append(f"duration = {_table(model.seconds, OWN_REPLY_SECONDS, tilt.replies(model.seconds.p))}")
    if model.first_token is None:
        lines.append("# Replies were not streamed: a third of the median reply is made up.")
        middle = float(np.interp(0.5, model.seconds.p, model.seconds.values))
        lines.append(f"first_token = {_number(middle / 3)}")
    else:
        lines.append(f"first_token = {_table(model.first_token, OWN_REPLY_SECONDS)}")
    lines.append("tokens_per_second = 0  # follows from the two")
    for name in ("output_tokens", "input_tokens"):
        counted: Table | None = getattr(model, name)
        if counted is not None:
            lines.append(f"{name} = {_table(counted)}")
    return "\n".join(lines)


def _loop(shape: Shape, tilt: _Tilt) -> str:
    lines = [
        "[loop]",
        f"rounds = {_counts(shape.rounds)}",
        f"fan_out = {_counts(tilt.rounds(shape.fan_out))}",
    ]
    if shape.fan_out_by_round:
        each = ",\n  ".join(_counts(one) for one in shape.fan_out_by_round)
        lines.append(f"fan_out_by_round = [\n  {each},\n]")
    if shape.same_tool:
        lines.append(f"same_tool = {_number(shape.same_tool)}")
    return "\n".join(lines)


def _tool(fit: Fit, tool: ToolFit, name: str, shared: bool, tilt: _Tilt) -> str:
    weight = (
        _number(tool.share) if not tool.by_round else f"[{', '.join(_number(one) for one in tool.by_round)}]"
    )
    lines = [
        f"# {tool.calls:,} calls",
        f"[tools.{name}]",
        'description = "A tool of the recording."',
        f"weight = {weight}",
        f"duration = {_table(tool.seconds, OWN_CALL_SECONDS, tilt.calls(tool.seconds.p))}",
        f"parameters = {_PARAMETERS}",
    ]
    if name != tool.name:
        lines[0] += f", of {_clean(tool.name)}"
    capacity = _capacity(fit.servers[tool.server])
    if shared:
        lines.append(f'server = "{_server_name(tool.server)}"')
    elif capacity:
        lines.append(f"capacity = {{ {', '.join(capacity)} }}")
    return "\n".join(lines)


def _shared(fit: Fit, tools: Sequence[ToolFit]) -> list[int]:
    """The servers with a capacity that several tools have in common."""
    return [
        place
        for place, server in enumerate(fit.servers)
        if _capacity(server) and sum(tool.server == place for tool in tools) > 1
    ]


def _server_name(place: int) -> str:
    return f"server-{place + 1}"


def _capacity(server: ServerRule) -> list[str]:
    """The keys of a capacity; none where there is none."""
    lines: list[str] = []
    if server.capacity is not None and server.rule in _MODES:
        lines += [f"concurrent = {server.capacity}", f'mode = "{_MODES[server.rule]}"']
        if server.rule == "queue":
            lines.append(f"queue = {UNBOUNDED_QUEUE if server.queue is None else server.queue}")
    if server.rate is not None:
        lines.append(f"requests_per_second = {_number(server.rate)}")
        lines.append(f"burst = {max(1, round(server.burst or 1))}")
    if lines and server.refused:
        if server.retry_after is not None and server.rate is None:
            lines.append(f"retry_after = {_number(server.retry_after)}")
        took = (server.refusal_seconds or 0.0) - OWN_CALL_SECONDS
        if took >= _LEAST_REFUSAL:
            lines.append(f"refusal_seconds = {_number(took)}")
    return lines


_MODES = {"refuse": "reject", "queue": "queue", "share": "share"}


def _quota(fit: Fit) -> str:
    return "\n".join(("# Of the model's server.", "[quota]", *_quota_lines(fit)))


def _quota_lines(fit: Fit) -> list[str]:
    by_resource: dict[str, QuotaFit] = {one.resource: one for one in fit.quotas}
    server = fit.model.server
    lines: list[str] = []
    bursts: list[float] = []

    def add(key: str, amount: float, burst: float | None) -> None:
        lines.append(f"{key} = {_number(amount)}")
        if burst:
            bursts.append(burst / amount)

    if (requests := by_resource.get("requests")) is not None:
        add("requests_per_minute", requests.amount, requests.burst)
    elif server.rate is not None and not by_resource:
        add("requests_per_minute", 60 * server.rate, server.burst)
    if (tokens := by_resource.get("tokens")) is not None:
        lines += [f"{way}_tokens_per_minute = {_number(tokens.amount / 2)}" for way in ("input", "output")]
        if tokens.burst:
            bursts.append(tokens.burst / tokens.amount)
    else:
        ways = [by_resource.get(f"{way}-tokens") for way in ("input", "output")]
        if any(ways):
            for way, one in zip(("input", "output"), ways, strict=True):
                add(
                    f"{way}_tokens_per_minute",
                    1e9 if one is None else one.amount,
                    None if one is None else one.burst,
                )
    if (at_once := by_resource.get("concurrent")) is not None:
        lines.append(f"concurrent_requests = {max(1, round(at_once.amount))}")
    elif server.rule == "refuse" and server.capacity is not None and not by_resource:
        lines.append(f"concurrent_requests = {server.capacity}")
    if not lines:
        return []
    if bursts:
        lines.append(f"burst = {_number(max(bursts[0], 1e-6))}  # minutes' worth in a full bucket")
    kinds = {"exact": "exact", "seconds": "seconds", "constant": "seconds", "none": "none"}
    lines.append(f'retry_after = "{kinds[fit.retry_after]}"')
    took = (server.refusal_seconds or 0.0) - OWN_REPLY_SECONDS
    if took >= _LEAST_REFUSAL:
        lines.append(f"refusal_seconds = {_number(took)}")
    return lines


def _kinds(tool: ToolFit) -> str:
    return _clean(f"{tool.name} failed: " + ", ".join(f"{kind} {share:.2%}" for kind, share in tool.failed))


# TOML


def _table(table: Table, own: float = 0.0, p: Sequence[float] | None = None) -> str:
    """A distribution; `own` is taken off each value, and comes again when the emulator is asked."""
    at, values = list(table.p if p is None else p), [max(0.0, one - own) for one in table.values]
    if values[0] == values[-1]:
        return _number(values[0])
    kept = [0]
    for n in range(1, len(at)):
        if float(_number(at[n])) > float(_number(at[kept[-1]])):
            kept.append(n)
        elif n == len(at) - 1:
            kept[-1] = n
    numbers = [", ".join(_number(one[n]) for n in kept) for one in (at, values)]
    return f'{{ kind = "quantiles", p = [{numbers[0]}], values = [{numbers[1]}] }}'


def _counts(counted: Counts) -> str:
    if len(counted.values) <= 1:
        return str(counted.values[0] if counted.values else 0)
    weights = ", ".join(_number(one) for one in counted.shares)
    return f'{{ kind = "empirical", values = {list(counted.values)}, weights = [{weights}] }}'


def _number(value: float) -> str:
    """To five digits, without an exponent."""
    text = np.format_float_positional(float(f"{value:.5g}"), trim="-")
    return text or "0"


def _clean(text: str) -> str:
    """A line of a comment, which may hold no control characters."""
    plain = re.sub(r"[\x00-\x1f\x7f]", " ", text).encode("ascii", "replace").decode()
    return " ".join(plain.split())[:600]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
