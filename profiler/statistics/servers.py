"""MCP servers: where the time of their calls went, what failed, and whether they ran calls one at a time.

Of every call that is recorded, warm-up and drain included: what a server does is not what a strategy is
compared by.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from profiler.anatomy import PARTS, remote_parts
from profiler.records import LoopRecord, RemoteCall, RoundRecord, ToolCall
from profiler.statistics.quantiles import Quantiles, quantiles
from profiler.statistics.serial import Serialised, Served, serialised

MOST_JUDGED = 20_000
"""Calls of one server that are looked at for `Serialised`: the first ones."""
MOST_NAMED = 50
"""Tools of a server with figures of their own: those with the most calls."""

_NONE = -1
_COLUMNS = (
    "tool",
    "strategy",
    "error",
    "where",
    "round",
    "started",
    "posted",
    "answered",
    "ended",
    "server_ns",
)
_REPLIES = {"json": 0, "sse": 1}


@dataclass(frozen=True, slots=True)
class Calls:
    """Calls of an MCP server's tools. `seconds` are quantiles of the parts of their time (`anatomy.PARTS`),
    of the calls that have such a part, and of the whole as `duration`."""

    calls: int
    errors: int
    error_types: dict[str, int]
    seconds: dict[str, Quantiles]


@dataclass(frozen=True, slots=True)
class ServerFigures:
    """One MCP server. `tools` and `strategies` divide its `calls` by tool, and by the strategy that made
    them.

    `most_in_flight` counts requests without an answer at the same time, over all workers. Of
    `known_connections` calls, `new_connections` had to open one. `advice` is what its calls show to be wrong,
    with what to do about it.
    """

    name: str
    transport: str
    protocols: tuple[str, ...]
    calls: Calls
    tools: dict[str, Calls]
    strategies: dict[str, Calls]
    most_in_flight: int
    new_connections: int
    known_connections: int
    json_replies: int
    sse_replies: int
    serialised: Serialised | None = None
    advice: tuple[str, ...] = ()


@dataclass(slots=True)
class _Server:
    """What is kept of the calls of one server: a row for each, in nanoseconds."""

    transport: str
    protocols: dict[str, None] = field(default_factory=dict)
    columns: dict[str, array[int]] = field(
        default_factory=lambda: {name: array("q") for name in (*_COLUMNS, "duration", *PARTS)}
    )
    connections: Counter[bool | None] = field(default_factory=Counter)
    replies: Counter[str | None] = field(default_factory=Counter)
    sse_new: int = 0
    """Replies as SSE to calls that had to open a connection, of those of which that is known: `sse_known`."""
    sse_known: int = 0


@dataclass(slots=True)
class ServerCalls:
    """The calls of MCP servers, taken from records as they are read; a few numbers are kept of each."""

    _servers: dict[str, _Server] = field(default_factory=dict)
    _texts: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, records: Iterable[LoopRecord]) -> ServerCalls:
        found = cls()
        rounds = 0
        for record in records:
            for round_ in record.rounds:
                rounds += 1
                for call in round_.tool_calls:
                    if call.remote is not None:
                        found.add(record, round_, rounds, call, call.remote)
        return found

    def __bool__(self) -> bool:
        return bool(self._servers)

    def add(
        self, record: LoopRecord, round_: RoundRecord, number: int, call: ToolCall, remote: RemoteCall
    ) -> None:
        """Take a call of the round of this number, which is unique among the records."""
        server = self._servers.get(remote.server)
        if server is None:
            server = self._servers[remote.server] = _Server(remote.transport)
        if remote.protocol is not None:
            server.protocols[remote.protocol] = None
        server.connections[remote.new_connection] += 1
        server.replies[remote.reply] += 1
        if remote.reply == "sse" and remote.new_connection is not None:
            server.sse_known += 1
            server.sse_new += remote.new_connection
        # What held up the client itself says nothing of who held up the calls.
        disturbed = round_.shortfall in ("blocked_loop", "machine")
        parts = remote_parts(call)
        row = {
            "tool": self._code(call.name),
            "strategy": self._code(record.strategy),
            "error": _NONE if call.failure is None else self._code(call.failure),
            "where": self._code(f"{record.process}\0{record.agent}"),
            "round": _NONE if disturbed else number,
            "started": _or_none(call.started_ns),
            "posted": _or_none(remote.posted_ns),
            "answered": _or_none(remote.answered_ns),
            "ended": call.ended_ns,
            "server_ns": _or_none(remote.server_ns),
            "duration": _or_none(call.latency_ns),
            **{part: parts.get(part, _NONE) for part in PARTS},
        }
        for name, column in server.columns.items():
            column.append(row[name])

    def kept(self) -> tuple[dict[str, Any], dict[str, array[int]]]:
        """All of it, as JSON and columns by name; `again` makes the same of them."""
        data = {
            "texts": [*self._texts],
            "servers": {
                name: {
                    "transport": one.transport,
                    "protocols": [*one.protocols],
                    "connections": [*one.connections.items()],
                    "replies": [*one.replies.items()],
                    "sse": [one.sse_new, one.sse_known],
                }
                for name, one in self._servers.items()
            },
        }
        servers = enumerate(self._servers.values())
        return data, {f"{k}.{name}": column for k, one in servers for name, column in one.columns.items()}

    @classmethod
    def again(cls, data: Mapping[str, Any], columns: Mapping[str, Any]) -> ServerCalls:
        """What `kept` was made of."""
        found = cls(_texts={text: code for code, text in enumerate(data["texts"])})
        for k, (name, one) in enumerate(data["servers"].items()):
            server = found._servers[name] = _Server(one["transport"], dict.fromkeys(one["protocols"]))
            server.columns = {column: columns[f"{k}.{column}"] for column in server.columns}
            server.connections = Counter(dict(one["connections"]))
            server.replies = Counter(dict(one["replies"]))
            server.sse_new, server.sse_known = one["sse"]
        return found

    def _code(self, text: str) -> int:
        return self._texts.setdefault(text, len(self._texts))

    def figures(self, *, per_agent: bool = False) -> tuple[ServerFigures, ...]:
        """Those of each server, by name. `per_agent`: each agent has its own process of a stdio server."""
        texts = list(self._texts)
        return tuple(_figures(name, self._servers[name], texts, per_agent) for name in sorted(self._servers))


def _or_none(value: int | None) -> int:
    return _NONE if value is None else value


_Columns = Mapping[str, np.ndarray[tuple[int], np.dtype[np.int64]]]


def _figures(name: str, server: _Server, texts: list[str], per_agent: bool) -> ServerFigures:
    columns = {key: np.frombuffer(column, np.int64) for key, column in server.columns.items()}

    def divided(key: str) -> dict[str, Calls]:
        codes, counts = np.unique(columns[key], return_counts=True)
        chosen = codes[np.argsort(-counts, kind="stable")][:MOST_NAMED]
        return {texts[code]: _calls(columns, columns[key] == code, texts) for code in chosen.tolist()}

    every = _calls(columns, np.ones(columns["tool"].size, bool), texts)
    at_once = _most_in_flight(columns)
    return ServerFigures(
        name=name,
        transport=server.transport,
        protocols=tuple(server.protocols),
        calls=every,
        tools=divided("tool"),
        strategies=divided("strategy"),
        most_in_flight=at_once,
        new_connections=server.connections[True],
        known_connections=server.connections[True] + server.connections[False],
        json_replies=server.replies["json"],
        sse_replies=server.replies["sse"],
        serialised=serialised(_served(server, columns, texts, per_agent)),
        advice=tuple(_advice(server, columns, texts, at_once)),
    )


def _calls(columns: _Columns, mine: np.ndarray[tuple[int], np.dtype[np.bool_]], texts: list[str]) -> Calls:
    errors = columns["error"][mine]
    failed = errors[errors != _NONE]
    seconds = {}
    for part in ("duration", *PARTS):
        values = columns[part][mine]
        values = values[values != _NONE]
        if values.size:
            seconds[part] = quantiles([values], 1e-9)
    counted = Counter(failed.tolist()).most_common()
    return Calls(int(mine.sum()), failed.size, {texts[code]: count for code, count in counted}, seconds)


def _most_in_flight(columns: _Columns) -> int:
    sent = columns["posted"] != _NONE
    answered = np.where(columns["answered"] == _NONE, columns["ended"], columns["answered"])
    times = np.concatenate([columns["posted"][sent], answered[sent]])
    steps = np.repeat([1, -1], int(sent.sum()))
    # A call that ends as another begins makes room for it.
    return int(np.cumsum(steps[np.lexsort((steps, times))]).max(initial=0))


def _served(server: _Server, columns: _Columns, texts: list[str], per_agent: bool) -> list[list[Served]]:
    """The answered calls, grouped by the process that answered them."""
    usable = (columns["started"] != _NONE) & (columns["posted"] != _NONE) & (columns["answered"] != _NONE)
    # A round with a call that no answer came to was over some other way.
    left = np.unique(columns["round"][~usable])
    usable &= ~np.isin(columns["round"], left) & (columns["round"] != _NONE)
    groups: dict[str, list[Served]] = {}
    for row in np.flatnonzero(usable)[:MOST_JUDGED].tolist():
        process = texts[columns["where"][row]]
        if server.transport == "http":
            process = ""
        elif not per_agent:
            process = process.partition("\0")[0]
        told = int(columns["server_ns"][row])
        groups.setdefault(process, []).append(
            Served(
                int(columns["round"][row]),
                texts[columns["tool"][row]],
                int(columns["started"][row]),
                int(columns["posted"][row]),
                int(columns["answered"][row]),
                None if told == _NONE else told,
                row,
            )
        )
    return list(groups.values())


# Advice: said only where the calls show it.

HTTPX_CONNECTIONS = 100
"""Connections that httpx opens at most unless told otherwise; the official SDK does not tell."""
FEWEST = 10
"""Calls that show something."""
FELT_NS = 10_000_000
"""A shorter wait is not worth advice."""


def _advice(server: _Server, columns: _Columns, texts: list[str], at_once: int) -> Iterable[str]:
    if server.sse_known >= FEWEST and server.sse_new >= 0.9 * server.sse_known:
        yield (
            f"{server.sse_new} of {server.sse_known} replies were event streams (SSE) whose call opened a "
            "TCP connection of its own: let the server answer in JSON (json_response=True in the official "
            "SDK), or both speak protocol 2026-07-28"
        )
    waited = columns["client_wait"]
    share = float(np.mean(waited >= FELT_NS)) if waited.size else 0.0
    if at_once == HTTPX_CONNECTIONS and server.transport == "http" and share >= 0.01:
        yield (
            f"the client had {at_once} requests at the server and no more, which is the limit of httpx, and "
            f"{100 * share:.0f} % of the calls waited in it: give it an http_client with more connections, "
            "or one on aiohttp's transport"
        )
    remote = np.where(columns["posted"] == _NONE, _NONE, columns["answered"] - columns["posted"])
    answered = (columns["posted"] != _NONE) & (columns["answered"] != _NONE)
    raised = next((code for code, text in enumerate(texts) if text == "tool_error"), None)
    if raised is None:
        return
    for code in np.unique(columns["tool"]).tolist():
        mine = (columns["tool"] == code) & answered
        failed, well = remote[mine & (columns["error"] == raised)], remote[mine & (columns["error"] == _NONE)]
        if failed.size < 3 or well.size < 3:
            continue
        slow, usual = float(np.median(failed)) / 1e6, float(np.median(well)) / 1e6
        if slow >= 50 and slow >= 5 * usual:
            yield (
                f"calls of {texts[code]} that fail take the server {slow:.0f} ms, others {usual:.0f} ms: the "
                "official SDK's server prints a traceback for each, and does nothing else meanwhile; catch "
                "the error in the tool, or set its log level to CRITICAL"
            )
