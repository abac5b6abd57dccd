"""Ports for servers that are told one."""

from __future__ import annotations

from profiler.process.ports import HIGHEST, LOWEST, free_port


def test_port_is_one_that_the_kernel_gives_nobody_and_that_is_free() -> None:
    tried: list[int] = []

    def fifth(port: int) -> bool:
        tried.append(port)
        return len(tried) == 5

    port = free_port(fifth)
    assert (port, len(tried)) == (tried[-1], 5)
    assert all(LOWEST <= one <= HIGHEST < 32768 for one in tried)
    assert len(set(tried)) > 1
