"""Workarounds for Locust, gevent and CPython: everything here reaches into what is not ours.

Each says what happens without it, the versions it was seen on, when it may go, and the test that fails
then. The other modules of this folder use these libraries as they are documented.
"""

from __future__ import annotations

import gc
import importlib._bootstrap as bootstrap
import logging
import os
import platform
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from types import ModuleType
from typing import Any, TypeVar

import gevent
import gevent.os
from gevent.monkey import get_original, is_module_patched

from profiler.errors import Terminated
from profiler.loop.eventloop import native_sleep, start_native_thread
from profiler.process.signals import ENDING

T = TypeVar("T")

# gevent and CPython: two native threads in a process that gevent has patched.
#
# gevent replaces the locks of `threading` and `_thread` by its own, which are for greenlets of one thread.
# When a second thread waits for one of them, the one that releases it may never tell: the event loop then
# stands still for ever. Seen on gevent 25.9 and 26.9 with CPython 3.11. All of it may go once gevent's
# locks wake waiters of other native threads; `tests/integration/test_locust_quirks.py` then passes without.

# What an agent of the user's own does in threads meets the same locks: a `threading.Lock` that two of its
# threads wait for stood still for ever, and a subprocess that one starts fails ("child watchers are only
# available on the default loop"). Sync SDK clients, `asyncio.run` and thread pools work. So with `--agent`,
# `profiler compare` and `tune` start Locust with LOCUST_SKIP_MONKEY_PATCH=1 (`experiment._locust`), and in a
# Locust file a sync agent is refused without it (`agents._one_loop`). Tests: test_self_check.py,
# `test_sync_agent_whose_threads_wait_for_a_lock`, and test_load_agents_named.py.

IMPORT_POLL_SECONDS = 0.001


def use_native_locks() -> None:
    """In a patched process, from the hub's thread: have logging and imports use native locks from now on.

    A second call does nothing.
    """
    if is_module_patched("threading"):
        _use_native_locks_for_logging()
        _use_native_locks_for_imports()


def _use_native_locks_for_logging() -> None:
    """For the handlers there are and for those made later.

    The SDKs ask their loggers about every request on the loop's thread, while the hub's thread logs.
    Test: `LOGGING` in test_locust_quirks.py.
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
    """A native lock that one thread holds while it imports a module, and another waits for.

    A greenlet that waits for it lets the other greenlets run, since one of them may hold it.
    """

    hub_thread = 0

    def __init__(self) -> None:
        self._lock = get_original("_thread", "allocate_lock")()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if not blocking or _native_ident() != self.hub_thread:
            taken: bool = self._lock.acquire(blocking, timeout)
            return taken
        while not self._lock.acquire(False):
            if gevent.getcurrent() is gevent.get_hub():  # the hub itself cannot switch to a greenlet
                native_sleep(IMPORT_POLL_SECONDS)
            else:
                gevent.sleep(IMPORT_POLL_SECONDS)
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


def _use_native_locks_for_imports() -> None:
    """For the modules that are imported from now on: both threads import modules when they first use them.

    importlib makes locks for each module, by the names that it finds in `_thread`, which gevent has replaced.
    Only `allocate_lock` is set back: `RLock` there stays native anyway, and `get_ident` has to stay gevent's,
    since it tells greenlets apart.
    Tests: `IMPORTS` and `WAITING_FOR_AN_IMPORT` in test_locust_quirks.py.
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


class NativeExecutor(ThreadPoolExecutor):
    """A default executor whose threads are native in a patched process too: one for each job.

    `asyncio.to_thread`, which SDKs and agents use, would otherwise wait for a greenlet that never runs, and
    its future for a lock of gevent's. Tests: `TO_THREAD` and `FUTURES` in test_locust_quirks.py.
    """

    def __init__(self) -> None:
        super().__init__(max_workers=1)  # that one is never used; asyncio insists on this base class

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        if is_module_patched("threading"):
            future._condition = threading.Condition(get_original("_thread", "RLock")())

        context = copy_context()  # `run_in_executor` hands none on: a tool would belong to no loop

        def job() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(context.run(fn, *args, **kwargs))
            except BaseException as error:
                future.set_exception(error)

        start_native_thread(job)
        return future


def settle_processor() -> None:
    """Tell `platform` beforehand what it would ask a subprocess for (`uname -p`).

    The SDKs call `platform.platform()` in a thread before their first request, and in a patched process
    a subprocess that is started outside the main thread may never be seen to end: the first request hung.
    Seen on gevent 26.9 with CPython 3.11. May go when gevent waits for children of any thread.
    Test: `PLATFORM` in test_locust_quirks.py.
    """
    vars(platform.uname()).setdefault("processor", platform.machine())


# Locust. Imported where it is used: the import patches a process, and the bridge works without.


def check_as_parsed(parser: Any, check: Callable[[Any], None]) -> None:
    """Have `check` see a command line as soon as Locust has parsed it, before it logs, forks or serves.

    Locust has an event when options can be added and none when they are known; the next one is `init`, when
    workers were forked already and the web UI is there. Seen on Locust 2.47; may go with an event between the
    two. Test: test_locust_runs.py, `test_what_cannot_be_is_refused_before_anything_is_logged_or_served`.
    """
    parse_args = parser.parse_args

    def parse(*arguments: Any, **keywords: Any) -> Any:
        parsed = parse_args(*arguments, **keywords)
        check(parsed)
        return parsed

    parser.parse_args = parse


def let_workers_leave(master: Any) -> None:
    """Let workers quit at any moment of a Locust master's.

    `WorkerNodes.all` looks each worker up as it gets there, and the master spawns users anew in the middle
    of going through them, when one was lost: where another quits meanwhile, since the test is over, the
    master failed with a `KeyError` and exit code 2. Seen on Locust 2.47; may go when `WorkerNodes.all`
    makes a list. Test: `HEARTBEAT` in test_locust_quirks.py.
    """
    from locust.runners import WorkerNodes

    class LeavableNodes(WorkerNodes):  # type: ignore[misc]
        @property
        def all(self) -> list[Any]:
            return list(self.values())

    master.clients.__class__ = LeavableNodes


class LostWorkers:
    """Workers of a Locust master that were missing while `has_agents(worker)`: they are lost for good.

    Locust hands the users of a worker that it does not hear to others, and counts the worker again with its
    old users as soon as it says anything: one that was stopped for 20 s and came back made 40 users of 30.
    After 60 s it drops the worker and spawns all users from none, in the middle of the test. And it thinks
    for ever that it is still handing users out once it did so for a lost worker: the share of the next one
    that leaves is then given to nobody. Seen on Locust 2.47; may go when a worker that returns is told to
    stop its users, and `UsersDispatcher._dispatcher` ends a redistribution. Test: `LOST` in
    test_locust_quirks.py.
    """

    OF_LOCUST = frozenset(
        ("client_ready", "heartbeat", "stats", "spawning", "spawning_complete", "exception")
    )
    """Messages of a lost worker that Locust must not see; it tells one that it does not know to quit."""

    def __init__(self, master: Any, has_agents: Callable[[str], bool]) -> None:
        self.ids: set[str] = set()
        self._master = master
        self._has_agents = has_agents
        handle = master.handle_message

        def handle_unless_lost(client_id: str, message: Any) -> None:
            self.look()
            if client_id not in self.ids or message.type not in self.OF_LOCUST:
                handle(client_id, message)

        master.handle_message = handle_unless_lost

    def look(self) -> None:
        """Drop the workers that are missing. To be called more often than Locust's heartbeats come."""
        for client in self._master.clients.missing:
            if self._has_agents(client.id):  # any other may come back: it has been slow to import, perhaps
                self.ids.add(client.id)
                del self._master.clients[client.id]

    def hand_over(self) -> None:
        """Have the users of workers that are gone started on the others, where Locust did not."""
        master = self._master
        pending = master._users_dispatcher is not None and master._users_dispatcher._rebalance
        if pending and master.state == "running" and master.spawning_completed and master.worker_count:
            master.start(master.target_user_count, master.spawn_rate)


def forget_user(user: Any) -> None:
    """Have Locust count a user that is still finishing its loop as gone.

    Locust counts the users it has by their greenlets: with this one it would spawn too few when the load
    grows again. Seen on Locust 2.47; may go when users that are stopping are no longer counted
    (`Runner.spawn_users`). Test: test_load_open.py,
    `test_a_load_that_shrinks_and_grows_again_within_a_loop_has_all_its_agents`.
    """
    user._group.discard(user._greenlet)


def send_statistics(environment: Any, runner: Any) -> None:
    """Send a worker's statistics to its master now.

    A worker's last report of its own is sent within half a second of the end, and is lost where that is not
    enough: Locust's tables then had fewer loops than the records. Seen on Locust 2.47; may go when
    `WorkerRunner.quit` waits until its report has left. `test_with_forked_workers` of test_locust_runs.py
    holds the two against each other, but fails without this on a busy machine alone.
    """
    report: dict[str, Any] = {}
    environment.events.report_to_master.fire(client_id=runner.client_id, data=report)
    runner.send_message("stats", report)


def finish_csv() -> None:
    """At the end of a run with `--csv`: wait until Locust has written its last figures, then end its writer.

    Locust writes its files once a second and not at the end, which cuts off the last loops. Then it closes
    them, while the greenlet that writes goes on: where leaving takes long it failed with a traceback. Seen
    on Locust 2.47; may go when `close_files` writes them first and ends the greenlet. Tests:
    test_locust_runs.py, `test_alone_headless_within_its_run_time`, and `CSV` in test_locust_quirks.py.
    """
    from locust.stats import CSV_STATS_INTERVAL_SEC

    gevent.get_hub().loop.update_now()  # a sleep counts from when the hub last looked at its clock
    gevent.sleep(CSV_STATS_INTERVAL_SEC + 0.3)
    gc.unfreeze()  # a worker in this process has frozen what there was, which hides it from `get_objects`
    for one in gc.get_objects():
        if isinstance(one, gevent.Greenlet) and "stats_writer" in repr(getattr(one, "_run", None)):
            one.kill()  # and wait: its next turn may be due at this moment, and the files are closed next


def wait_for_forked_workers() -> None:
    """In an unpatched master that is about to leave: let Locust wait for the workers it forked.

    It forks them with gevent, which reaps them as they end, and waits with `os.waitpid`, which then knows
    of none: a traceback for each, 3 s long. Only gevent's own waitpid knows. Not to be called earlier: with
    it, an unpatched subprocess never starts. Seen on Locust 2.47, gevent 26.9; may go when Locust waits
    with `gevent.os.waitpid`. Test: `FORKED` in test_locust_quirks.py.
    """
    if not is_module_patched("os"):
        os.waitpid = gevent.os.waitpid


def interrupt_the_main_greenlet(hear: Callable[[KeyboardInterrupt], None]) -> None:
    """Let an interrupt, SIGTERM or SIGHUP end Locust's main greenlet, never whichever one happens to run.

    `hear` is called before with what is raised there.

    Python raises `KeyboardInterrupt` in whatever runs: without this a greenlet of ours, the leader's among
    them, ends with a traceback. Seen on gevent 25.9; it may go once gevent raises it in the main greenlet.
    """
    hub = gevent.get_hub()
    main = hub.parent

    def interrupted(number: int, _: object) -> None:
        error = KeyboardInterrupt() if number == signal.SIGINT else Terminated(signal.Signals(number))
        hear(error)
        if gevent.getcurrent() is main:
            raise error
        hub.loop.run_callback_threadsafe(main.throw, error)

    signal.signal(signal.SIGINT, interrupted)
    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as `nohup` does
            signal.signal(number, interrupted)
    _keep_signal_handlers()


def leave_signals_to_the_master() -> None:
    """In a worker that Locust forked: whoever ends a terminal's or a service's processes ends all at once.

    The master decides then, and tells the worker; how it ends without a word the worker learns from its pipe.
    """
    for number in (signal.SIGINT, *ENDING):
        signal.signal(number, signal.SIG_IGN)
    _keep_signal_handlers()


def _keep_signal_handlers() -> None:
    """Have Locust install none for SIGTERM, which it does as the last thing before a test.

    Its own shuts down in a greenlet beside all others, a second one beside the first, and waits for loops as
    long as they take. Seen on Locust 2.47; may go when it treats SIGTERM as it does an interrupt. Test:
    test_ends.py, `test_locust_by_itself`.
    """
    install = gevent.signal_handler

    def signal_handler(number: int, *arguments: Any, **keywords: Any) -> Any:
        return None if number in ENDING else install(number, *arguments, **keywords)

    gevent.signal_handler = signal_handler


def forget_run_time(parsed_options: Any) -> None:
    """After a test of the web UI.

    Its form leaves an empty run time as it was: the last test's would end the next one. Seen on Locust
    2.47; may go when an empty field clears `parsed_options.run_time`. Test: test_locust_runs.py,
    `test_web_ui_starts_stops_and_starts_again`.
    """
    parsed_options.run_time = None
