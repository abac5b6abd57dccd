"""Locks that the hub's thread and the loop's thread both wait for, in a process that gevent has patched.

gevent replaces the locks of `threading` and `_thread` by its own, which are for greenlets of one
thread. When a second thread waits for one of them, the one that releases it may never tell: the
loop then stands still for ever. The interpreter's own such locks, and logging's, are made native here.
"""

from __future__ import annotations

import importlib._bootstrap as bootstrap
import logging
import sys
import threading
from concurrent.futures import Future
from types import ModuleType
from typing import Any, TypeVar

import gevent
from gevent.monkey import get_original, is_module_patched

T = TypeVar("T")

POLL_SECONDS = 0.001


def use_native_locks() -> None:
    """In a patched process, from the hub's thread: logging and imports wait for native locks from now on.

    Again, it does nothing.
    """
    if not is_module_patched("threading"):
        return
    _use_for_logging()
    _use_for_imports()


def native_future() -> Future[Any]:
    """A future that one thread may settle while another looks at it."""
    future: Future[Any] = Future()
    if is_module_patched("threading"):
        future._condition = threading.Condition(get_original("_thread", "RLock")())
    return future


def _use_for_logging() -> None:
    """For the handlers there are and those made later.

    The SDKs ask their loggers about every request on the loop's thread, while the hub's thread logs.
    """
    if getattr(logging.Handler.createLock, "native", False):
        return
    make = get_original("_thread", "RLock")

    def create_lock(handler: logging.Handler) -> None:
        handler.lock = make()
        logging._register_at_fork_reinit_lock(handler)  # type: ignore[attr-defined]

    create_lock.native = True  # type: ignore[attr-defined]
    logging.Handler.createLock = create_lock  # type: ignore[method-assign,assignment]
    logging._lock = make()  # type: ignore[attr-defined]
    for reference in logging._handlerList:  # type: ignore[attr-defined]
        handler = reference()
        if handler is not None and handler.lock is not None:
            create_lock(handler)


class ImportLock:
    """What one thread holds while it imports a module, and another waits for.

    A greenlet of the hub's thread lets the others run meanwhile: one of them may hold it.
    """

    hub_thread = 0

    def __init__(self) -> None:
        self._lock = get_original("_thread", "allocate_lock")()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if not blocking or _native_ident() != self.hub_thread:
            taken: bool = self._lock.acquire(blocking, timeout)
            return taken
        while not self._lock.acquire(False):
            if gevent.getcurrent() is gevent.get_hub():  # which cannot let a greenlet run meanwhile
                get_original("time", "sleep")(POLL_SECONDS)
            else:
                gevent.sleep(POLL_SECONDS)
        return True

    def release(self) -> None:
        self._lock.release()

    def locked(self) -> bool:
        locked: bool = self._lock.locked()
        return locked

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


def _use_for_imports() -> None:
    """For the modules that are imported from now on.

    importlib makes locks for each, by the names that it finds in `_thread`, which gevent has replaced. Not
    all: `RLock` there stays native, and `get_ident` has to stay gevent's, since it tells greenlets apart.
    """
    ImportLock.hub_thread = _native_ident()
    if bootstrap._thread.allocate_lock is ImportLock:  # type: ignore[attr-defined]
        return
    own = ModuleType("_thread")
    own.__dict__.update(vars(sys.modules["_thread"]))
    own.__dict__["allocate_lock"] = ImportLock
    bootstrap._thread = own  # type: ignore[attr-defined]


def _native_ident() -> int:
    ident: int = get_original("_thread", "get_ident")()
    return ident
