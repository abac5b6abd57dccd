"""Optional modules are looked up, not imported: while another thread imports one, its names are missing."""

from __future__ import annotations

import sys
import time
import types
from collections.abc import Iterator

import httpx2
import openai
import pytest

from profiler.load.calling import greenlets_for_threads
from profiler.loop.eventloop import unpatched
from profiler.process import lifetime
from profiler.process.lifetime import at_exit
from profiler.providers.connections import transport_error_type
from profiler.providers.failures import caught


@pytest.fixture
def half(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing of these modules is there yet. (They are put back before anything else runs.)"""
    with monkeypatch.context() as patch:
        for name in ("gevent.monkey", "aiohttp", "multiprocessing.process", "multiprocessing.util"):
            patch.setitem(sys.modules, name, types.ModuleType(name))
        yield


def test_gevent_has_patched_nothing_yet(half: None) -> None:
    assert unpatched(time, "sleep") is time.sleep
    assert greenlets_for_threads() is False


def test_failures_are_told_without_aiohttps(half: None) -> None:
    assert issubclass(openai.APITimeoutError, caught(openai))
    assert transport_error_type(httpx2.ConnectError("refused")) == "connection"
    assert transport_error_type(KeyError("x")) == "KeyError"


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What `atexit` was given; nothing is called at the end of the tests."""
    given: list[object] = []
    fake = types.SimpleNamespace(register=given.append, unregister=lambda function: None)
    monkeypatch.setattr(lifetime, "atexit", fake)
    return given


def test_end_of_a_process_while_multiprocessing_comes(registered: list[object], half: None) -> None:
    at_exit(print)
    assert registered == [print, lifetime._begin_to_end]


def test_what_another_thread_registers_while_the_process_ends_is_called_after_all_others(
    registered: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifetime, "_ending", False)
    called: list[str] = []
    at_exit(lambda: called.append("before"))
    assert not lifetime.is_ending()
    for function in reversed(registered):  # as `atexit` does, which would not call what is added meanwhile
        function()  # type: ignore[operator]
        assert lifetime.is_ending()
        at_exit(lambda: called.append("meanwhile"))
    assert len(registered) == 2
    assert called == ["before"]
    lifetime._end()
    assert called == ["before", "meanwhile", "meanwhile"]
    lifetime._not_ending()
    assert not lifetime.is_ending()
