"""What sessions with MCP servers have in common, whatever carries their messages."""

from __future__ import annotations

from profiler.mcp.child import child_environment, last_lines
from profiler.mcp.lean import credible_ns


def test_server_s_own_time_is_no_longer_than_the_wait_for_it() -> None:
    assert credible_ns(5_000_000, 0, 9_000_000) == 5_000_000
    assert credible_ns(10_000_000, 0, 9_000_000) == 9_000_000  # whole milliseconds
    assert credible_ns(11_000_000, 0, 9_000_000) is None
    assert credible_ns(5, None, 9) is None
    assert credible_ns(5, 0, None) is None
    assert credible_ns(None, 0, 9) is None


def test_child_has_a_small_part_of_this_process_s_environment() -> None:
    environment = {
        "OPENAI_API_KEY": "sk-1",
        "SECRET_OF_MINE": "hush",
        "HOME": "/",
        "LC_ALL": "C",
        "PATH": "() { :; }",
    }
    assert child_environment(environment) == {"HOME": "/", "LC_ALL": "C"}


def test_last_lines_are_one_line_of_bounded_length() -> None:
    assert last_lines("one\n\ntwo\x1b[0m\nthree\nfour\n") == "two [0m | three | four"
    assert last_lines("x" * 10_000) == "x" * 400
    assert last_lines("") == ""
