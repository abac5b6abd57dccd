"""MCP servers as the command line names them, and which of their tools a load test may call."""

from __future__ import annotations

import pytest

from profiler.errors import UsageError
from profiler.mcp.servers import ServerSpec, may_be_called, parse_servers
from profiler.mcp.session import ListedTool, code_error


@pytest.mark.parametrize(
    ("text", "name", "url", "command"),
    [
        ("https://a.b/mcp", "a.b", "https://a.b/mcp", ()),
        ("search=http://127.0.0.1:8000/mcp?x=1", "search", "http://127.0.0.1:8000/mcp?x=1", ()),
        ("http://127.0.0.1:8000/mcp", "127.0.0.1-8000", "http://127.0.0.1:8000/mcp", ()),
        ("npx -y @x/server-memory a=b", "server-memory", None, ("npx", "-y", "@x/server-memory", "a=b")),
        ("python -m mcp_server_time", "mcp_server_time", None, ("python", "-m", "mcp_server_time")),
        ("t=python 'my server.py'", "t", None, ("python", "my server.py")),
        ("/opt/tools/run.py", "run", None, ("/opt/tools/run.py",)),
        ("node a/server-x/dist/index.js", "server-x", None, ("node", "a/server-x/dist/index.js")),
        ("./server.py", "server", None, ("./server.py",)),
    ],
)
def test_a_server_is_a_url_or_a_command(text, name, url, command) -> None:
    spec = ServerSpec.parse(text)
    assert (spec.name, spec.url, spec.command) == (name, url, command)
    assert spec.is_loopback == ("a.b" not in text)


def test_servers_that_would_have_one_name_are_told_apart() -> None:
    url = "http://127.0.0.1:1/mcp"
    assert [one.name for one in parse_servers([url, url, "x=a"])] == ["127.0.0.1-1", "127.0.0.1-1-2", "x"]


def test_headers_go_to_their_server_alone() -> None:
    servers = parse_servers(["a=http://127.0.0.1:1", "b=http://127.0.0.1:2"], ["b:authorization=Bearer k=="])
    assert [dict(one.headers) for one in servers] == [{}, {"authorization": "Bearer k=="}]
    assert "Bearer" not in repr(servers)


@pytest.mark.parametrize(
    ("texts", "headers", "said"),
    [
        (["a=x", "a=y"], [], "--mcp: two servers are named 'a'"),
        (["a=http://127.0.0.1:1"], ["c:k=v"], r"--mcp-header c: no such server \(known: a\)"),
        (["a=x"], ["a:k=v"], "--mcp-header a: it is a command, which takes no headers"),
        (["'"], [], "--mcp ': not a command: No closing quotation"),
        ([" "], [], "--mcp: expected"),
    ],
)
def test_what_cannot_be_used_is_said(texts, headers, said) -> None:
    with pytest.raises(UsageError, match=said):
        parse_servers(texts, headers)


def test_a_tool_that_may_write_is_called_only_where_it_is_named() -> None:
    reads = ListedTool("get", "", {}, read_only=True)
    writes = ListedTool("put", "", {})
    assert may_be_called(reads, emulated=False, allowed=())
    assert not may_be_called(writes, emulated=False, allowed=("get",))
    assert may_be_called(writes, emulated=False, allowed=("put",))
    assert may_be_called(writes, emulated=True, allowed=())


def test_codes_that_a_server_invents_share_one_name() -> None:
    assert [code_error(code) for code in (-32602, -77, "x", None)] == ["rpc_-32602", *["rpc_error"] * 3]


def test_secrets_of_a_command_are_those_given_under_the_name_of_one() -> None:
    spec = ServerSpec.parse(
        "a=env API_TOKEN=hidden-1 MODE=fast serve --api-key hidden-2 --secret=hidden-3 --port 8"
    )
    assert set(spec.secrets) == {"hidden-1", "hidden-2", "hidden-3"}
    assert "hidden" not in spec.shown
    assert spec.shown.endswith("--port 8")
