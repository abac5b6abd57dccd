"""Which MCP servers, as the command line names them, and which of their tools may be called."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Literal

from profiler.errors import UsageError
from profiler.mcp.session import ListedTool
from profiler.providers.endpoint import Endpoint, shown_url
from profiler.redaction.keys import REDACTED, hide_keys

FORMS = '[NAME=]https://host/mcp, or [NAME=]"command with its arguments"'

_NAMED = re.compile(r"([A-Za-z0-9][\w.-]{0,31})=(.+)", re.DOTALL)
_NO_PART = re.compile(r"[^\w.-]+")
_VARIABLE = re.compile(r"([A-Za-z_]\w*)=.*", re.DOTALL)
_SECRET_NAME = r"[\w-]*(?:token|key|secret|password|passwd|credential)s?"
_SECRET_OPTION = re.compile(rf"--?{_SECRET_NAME}", re.IGNORECASE)
_SECRET_GIVEN = re.compile(rf"(?:--?)?{_SECRET_NAME}=(.+)", re.IGNORECASE | re.DOTALL)
_RUNNERS = frozenset(
    ("env", "python", "python3", "node", "npx", "uvx", "uv", "run", "deno", "bun", "bunx", "-m", "-y")
)
_SUFFIX = re.compile(r"\.(py|[cm]?[jt]s)$")
_IN_EVERY_PACKAGE = frozenset(
    ("index", "main", "__main__", "server", "cli", "app", "dist", "build", "out", "lib", "src", "bin")
)


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """One MCP server: its `url`, or the `command` that starts it, which speaks on its standard streams.

    `name` is unique among the servers of a run. `headers` go with every HTTP request to it, and to no other.
    """

    name: str
    url: str | None = None
    command: tuple[str, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict, hash=False, repr=False)

    @property
    def is_loopback(self) -> bool:
        """It runs on this machine: a command does."""
        return self.url is None or Endpoint.parse(self.url, "--mcp").is_loopback

    @property
    def shown(self) -> str:
        """Its address or command, without what looks like a key."""
        return shown_command(self.command) if self.url is None else shown_url(self.url)

    @property
    def secrets(self) -> tuple[str, ...]:
        """What of it nobody else is to see: the values of its headers, and of the query of its URL; of a
        command those that are given under the name of a secret."""
        if self.url is None:
            return _secrets_in(self.command)
        query = Endpoint.parse(self.url, "--mcp").query
        return (*self.headers.values(), *(value for _, value in query))

    @property
    def transport(self) -> Literal["http", "stdio"]:
        """What its messages travel on."""
        return "stdio" if self.url is None else "http"

    @classmethod
    def parse(cls, text: str, flag: str = "--mcp") -> ServerSpec:
        """From `[NAME=]URL` or `[NAME=]command`. Raises `UsageError` naming the flag."""
        named = _NAMED.fullmatch(text.strip())
        name, where = (named[1], named[2].strip()) if named else ("", text.strip())
        if where.startswith(("http://", "https://")):
            endpoint = Endpoint.parse(where, flag)
            host = endpoint.url.partition("://")[2].partition("/")[0]
            return cls(name or _NO_PART.sub("-", host).strip("-."), where)
        try:
            command = tuple(shlex.split(where))
        except ValueError as error:
            raise UsageError(f"{flag} {hide_keys(text)}: not a command: {error}") from None
        if not command:
            raise UsageError(f"{flag}: expected {FORMS}")
        return cls(name or _name_of(command), None, command)


def shown_server(text: str) -> str:
    """`[NAME=]URL` or `[NAME=]command`, without what is or may be a key."""
    named = _NAMED.fullmatch(text.strip())
    name, where = (f"{named[1]}=", named[2].strip()) if named else ("", text.strip())
    if where.startswith(("http://", "https://")):
        return name + shown_url(where)
    try:
        return name + shown_command(shlex.split(where))
    except ValueError:  # not a command
        return name + hide_keys(where)


def _secrets_in(command: Sequence[str]) -> tuple[str, ...]:
    found = []
    for before, part in zip(("", *command), command, strict=False):
        if given := _SECRET_GIVEN.fullmatch(part):
            found.append(given[1])
        elif _SECRET_OPTION.fullmatch(before) and not part.startswith("-"):
            found.append(part)
    return tuple(found)


def shown_command(command: Sequence[str]) -> str:
    """A command without what is or may be a key: values of variables for its environment, and of options
    whose name says so."""
    shown: list[str] = []
    environment = bool(command) and PurePath(command[0]).name == "env"
    for place, part in enumerate(command):
        before = command[place - 1] if place else ""
        variable = _VARIABLE.fullmatch(part) if environment else None
        if variable is not None:
            shown.append(f"{variable[1]}={REDACTED}")
        elif _SECRET_OPTION.fullmatch(before) and not part.startswith("-"):
            shown.append(REDACTED)
        elif given := _SECRET_GIVEN.fullmatch(part):
            shown.append(part[: given.start(1)] + REDACTED)
        else:
            shown.append(shlex.quote(part))
            environment = environment and (not place or part.startswith("-"))
    return hide_keys(" ".join(shown))


def _name_of(command: Iterable[str]) -> str:
    """What a command runs: `npx -y @scope/server-memory dir` is `server-memory`.

    Of `node server-memory/dist/index.js` too: what every package has tells nothing.
    """
    for part in command:
        path = PurePath(part)
        if path.name in _RUNNERS or part.startswith("-") or _VARIABLE.fullmatch(part):
            continue
        words = [_SUFFIX.sub("", word) for word in path.parts]
        telling = [word for word in words if word not in _IN_EVERY_PACKAGE] or words
        if name := "".join(_NO_PART.sub("-", word) for word in telling[-1:])[:32].strip("-."):
            return name
    return "server"


def parse_servers(texts: Iterable[str], headers: Iterable[str] = ()) -> tuple[ServerSpec, ...]:
    """The servers of `--mcp`, with the headers of `--mcp-header NAME:K=V`. Raises `UsageError`.

    Two that were given no name and would have the same one are told apart by a number.
    """
    of_server: dict[str, dict[str, str]] = {}
    for one in headers:
        server, _, header = one.partition(":")
        key, _, value = header.partition("=")
        of_server.setdefault(server, {})[key] = value
    found: dict[str, ServerSpec] = {}
    for text in texts:
        spec = ServerSpec.parse(text)
        name, count = spec.name, 1
        while name in found:
            count += 1
            name = f"{spec.name}-{count}"
        if count > 1 and _NAMED.fullmatch(text.strip()):
            raise UsageError(f"--mcp: two servers are named {spec.name!r}")
        found[name] = ServerSpec(name, spec.url, spec.command, of_server.pop(name, {}))
    if of_server:
        unknown = next(iter(of_server))
        known = ", ".join(found) or "no server was named with --mcp"
        raise UsageError(f"--mcp-header {unknown}: no such server (known: {known})")
    without_url = next((one for one in found.values() if one.headers and one.url is None), None)
    if without_url is not None:
        raise UsageError(f"--mcp-header {without_url.name}: it is a command, which takes no headers")
    return tuple(found.values())


def may_be_called(tool: ListedTool, *, emulated: bool, allowed: Collection[str]) -> bool:
    """Whether a load test may call a tool: one that may write only where the user has named it.

    The protocol takes a tool that does not say that it is read-only for one that may write. `emulated`: its
    server is our emulator, whose tools change nothing. `allowed`: names of tools (`--allow-writes`).
    """
    return emulated or tool.read_only or tool.name in allowed
