"""Which call of a loop it was that a tool server was asked for: by an id, else by name and arguments. Pure.

Calls of MCP carry no id of the model's call, as a rule. Names may have the server's before them. Two calls
with one name and the same arguments at once, in two loops, cannot be told apart, except where the session had
a loop already; such a match is a guess, and counted. Arguments are compared by keyed hashes.
"""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from profiler.recordings.drafts import CallDraft
from profiler.records import RemoteCall, ToolStatus

UNCLAIMED_NS = 60 * 10**9
"""How long a call of a tool waits for the reply that asked for it to be read, or its round to be over."""
MOST_UNCLAIMED = 2_000
MOST_SESSIONS = 5_000

_JOINT = re.compile(r"[^A-Za-z0-9]")


@dataclass(slots=True, eq=False)
class ToolRun:
    """One call of a tool, as its server got it. `hints` are texts that may be the id of the model's call.

    `unfinished`: its client may send it again, as a part of the same call.
    """

    name: str
    digest: bytes
    started_ns: int
    session: object = None
    hints: Sequence[str] = ()
    ended_ns: int | None = None
    status: ToolStatus = "ok"
    error_type: str | None = None
    remote: RemoteCall | None = None
    unfinished: bool = False
    call: Call | None = None


@dataclass(slots=True, eq=False)
class Call:
    """A call that a model asked for. `round` is whatever its owner has for the round that it is of.

    `runs` are those that were found for it, the last one last; `guessed`: it could have been another's.
    """

    draft: CallDraft
    round: Any
    made_up: bool = False
    digest: bytes | None = None
    runs: list[ToolRun] = field(default_factory=list)
    guessed: bool = False
    over: bool = False


class Matching:
    """Calls that were asked for, and calls that tool servers got. `salt` keys the hashes of arguments."""

    def __init__(self, salt: bytes) -> None:
        self._salt = salt
        self._waiting: dict[bytes, list[Call]] = {}
        self._by_id: dict[str, list[Call]] = {}
        self._unclaimed: list[ToolRun] = []
        self._sessions: OrderedDict[object, Any] = OrderedDict()
        self._orphans = 0

    def digest(self, arguments: Any) -> bytes:
        """Of arguments as a model or a client wrote them: the same for the same values, in any order."""
        if isinstance(arguments, str):
            try:
                arguments = orjson.loads(arguments) if arguments.strip() else {}
            except ValueError:
                arguments = [arguments]
        try:
            text = orjson.dumps(_plain(arguments) or {}, option=orjson.OPT_SORT_KEYS)
        except (TypeError, ValueError, RecursionError):
            text = b""
        return hashlib.blake2b(text, digest_size=16, key=self._salt).digest()

    def asked(self, call: Call, arguments: Any) -> None:
        """A model asked for it."""
        call.digest = self.digest(arguments)
        self._waiting.setdefault(call.digest, []).append(call)
        if not call.made_up:
            self._by_id.setdefault(call.draft.id, []).append(call)
        for run in self._unclaimed:
            # The client may run it before its reply has ended, which is when it is read.
            if self._fits(call, run) and (run.digest == call.digest or call.draft.id in run.hints):
                self._unclaimed.remove(run)
                self._claim(call, run)
                return

    def began(self, run: ToolRun) -> None:
        """A tool server was asked."""
        call = self._found(run)
        if call is not None:
            self._claim(call, run)
            return
        self._unclaimed.append(run)
        if len(self._unclaimed) > MOST_UNCLAIMED:
            self._unclaimed.pop(0)
            self._orphans += 1

    def finished(self, run: ToolRun) -> None:
        """It has answered: `ended_ns` and what follows it are set."""
        if run.call is not None and run in run.call.runs:
            _write(run.call)

    def over(self, calls: Sequence[Call], now_ns: int | None) -> None:
        """The results of these calls have been sent to the model; or None: their loop has ended."""
        for call in calls:
            if call.over:
                continue
            call.over = True
            if call.digest is not None:
                _remove(self._waiting, call.digest, call)
            _remove(self._by_id, call.draft.id, call)
            if now_ns is None:
                continue
            if call.runs and any(run.ended_ns is None for run in call.runs):
                # Its result is there, so what is still under way is another one's.
                self._unclaimed += call.runs
                for run in call.runs:
                    run.call = None
                call.runs, call.guessed = [], False
                _clear(call)
            if not call.runs:
                self._by_name(call, now_ns)

    def tick(self, now_ns: int) -> None:
        """Calls that no loop had asked for are counted as such after some time."""
        left = [run for run in self._unclaimed if now_ns - (run.ended_ns or now_ns) < UNCLAIMED_NS]
        self._orphans += len(self._unclaimed) - len(left)
        self._unclaimed = left

    def take_orphans(self) -> int:
        """How many there were since this was asked."""
        orphans, self._orphans = self._orphans, 0
        return orphans

    def close(self) -> None:
        """Nothing more is asked for."""
        self._orphans += len(self._unclaimed)
        self._unclaimed.clear()

    def _found(self, run: ToolRun) -> Call | None:
        for hint in run.hints:
            for call in self._by_id.get(hint, ()):
                if not call.runs and is_name_of(call.draft.name, run.name):
                    return call
        same = [call for call in self._waiting.get(run.digest, ()) if is_name_of(call.draft.name, run.name)]
        free = [call for call in same if not call.runs]
        if not free:
            # Sent once more: after a failure, or with the input that the server had asked for.
            again = [call for call in same if call.runs[-1].unfinished]
            return again[0] if len(again) == 1 else None
        loop = self._sessions.get(run.session) if run.session is not None else None
        if loop is not None and (own := [call for call in free if call.round.loop is loop]):
            free = own
        if any(call.round is not free[0].round for call in free):
            free[0].guessed = True
        return free[0]

    def _fits(self, call: Call, run: ToolRun) -> bool:
        asked_ns = call.draft.asked_ns
        return is_name_of(call.draft.name, run.name) and (asked_ns is None or run.started_ns >= asked_ns)

    def _by_name(self, call: Call, now_ns: int) -> None:
        """Its client may have changed the arguments, by adding what it leaves out."""
        found = [
            run
            for run in self._unclaimed
            if self._fits(call, run) and run.ended_ns is not None and run.ended_ns <= now_ns
        ]
        if len(found) == 1:
            self._unclaimed.remove(found[0])
            self._claim(call, found[0])
            call.guessed = True

    def _claim(self, call: Call, run: ToolRun) -> None:
        run.call = call
        call.runs.append(run)
        if run.session is not None:
            self._sessions[run.session] = call.round.loop
            self._sessions.move_to_end(run.session)
            while len(self._sessions) > MOST_SESSIONS:
                self._sessions.popitem(last=False)
        if run.ended_ns is not None:
            _write(call)


def is_name_of(asked: str, name: str) -> bool:
    """Whether a model that asks for `asked` may mean a server's tool `name`. (Frameworks prefix it.)"""
    if asked == name:
        return True
    ours, theirs = _JOINT.sub("_", asked), _JOINT.sub("_", name)
    return ours == theirs or (bool(theirs) and ours.endswith(f"_{theirs}"))


def _write(call: Call) -> None:
    """The exact times of a call: of several sends, from the first to the last."""
    draft, last = call.draft, call.runs[-1]
    draft.started_ns, draft.ended_ns, draft.derived = call.runs[0].started_ns, last.ended_ns, ()
    draft.status, draft.error_type, draft.refused = last.status, last.error_type, False
    draft.remote = last.remote
    if len(call.runs) > 1 and last.remote is not None:
        first = call.runs[0].remote
        draft.remote = RemoteCall(
            last.remote.server,
            "http",
            last.remote.protocol,
            posted_ns=last.remote.posted_ns if first is None else first.posted_ns,
            answered_ns=last.remote.answered_ns,
            server_ns=last.remote.server_ns,
            reply=last.remote.reply,
            http_status=last.remote.http_status,
            new_connection=last.remote.new_connection,
            sends=len(call.runs),
            progress=sum(run.remote.progress for run in call.runs if run.remote is not None),
        )


def _clear(call: Call) -> None:
    draft = call.draft
    draft.started_ns = draft.ended_ns = draft.remote = None
    draft.derived = ()
    draft.status, draft.error_type = "ok", None


def _remove(index: dict[Any, list[Call]], key: Any, call: Call) -> None:
    calls = index.get(key)
    if calls is not None and call in calls:
        calls.remove(call)
        if not calls:
            del index[key]


def _plain(value: Any) -> Any:
    """Arguments with whole numbers as such, however they were written, and without what is null."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value
