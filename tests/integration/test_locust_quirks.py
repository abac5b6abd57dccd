"""Each workaround of `profiler.load.locust.quirks`: these fail, most of them by hanging, without it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PATCH = "from gevent import monkey; monkey.patch_all()\n"

BRIDGE = """
import asyncio
import gevent
from profiler.load.locust.bridge import Bridge

bridge = Bridge()
bridge.start()
"""

ON_BOTH_THREADS = """
import sys

def on_both_threads(function, times):
    # gevent's lock may forget a thread that still waits when the other is done: the more ends, the surer.
    async def there():
        function()
    sys.setswitchinterval(1e-6)
    for _ in range(times):
        task = bridge.submit(there)
        function()
        task.wait(30)
    sys.setswitchinterval(0.005)
"""

LOGGING = """
import logging
handler = logging.StreamHandler()
log = logging.getLogger("an SDK")
def write():
    for _ in range(2000):
        handler.acquire()
        handler.release()
def ask():
    for _ in range(1000):
        log.manager._clear_cache()  # so that the next call asks under the lock of the whole module
        log.isEnabledFor(logging.DEBUG)
on_both_threads(write, 80)
on_both_threads(ask, 80)
print("logged on both threads")
"""

IMPORTS = """
import importlib._bootstrap
def take_its_lock():
    for _ in range(1000):
        with importlib._bootstrap._ModuleLockManager("a_module"):
            pass
on_both_threads(take_its_lock, 60)
print("imported on both threads")
"""

WAITING_FOR_AN_IMPORT = """
import importlib, pathlib, sys, tempfile
place = tempfile.TemporaryDirectory()
sys.path.insert(0, place.name)
pathlib.Path(place.name, "slow_to_import.py").write_text("import gevent; gevent.sleep(0.05); DONE = True")
both = [gevent.spawn(importlib.import_module, "slow_to_import") for _ in range(2)]
gevent.joinall(both, timeout=30)
print([one.value.DONE for one in both])
place.cleanup()
"""

FUTURES = """
sys.setswitchinterval(1e-6)
async def in_threads():
    for _ in range(600):
        await asyncio.gather(*(asyncio.to_thread(int) for _ in range(3)))
bridge.run(in_threads, 80)
sys.setswitchinterval(0.005)
print("1800 threads have answered")
"""

TO_THREAD = """
async def in_a_thread():
    return await asyncio.to_thread(lambda: "from a thread")
print(bridge.run(in_a_thread, 30))
"""

PLATFORM = """
import platform
async def asked_by_the_sdks():
    return await asyncio.gather(*(asyncio.to_thread(platform.platform) for _ in range(4)))
print(len(bridge.run(asked_by_the_sdks, 30.0)))
"""

THREADS = (
    (LOGGING, "logged on both threads"),
    (IMPORTS, "imported on both threads"),
    (WAITING_FOR_AN_IMPORT, "[True, True]"),
    (FUTURES, "1800 threads have answered"),
    (TO_THREAD, "from a thread"),
    (PLATFORM, "4"),
)

HEARTBEAT = """
import types
import gevent
from locust import runners
from profiler.load.locust.quirks import let_workers_leave

class Master(types.SimpleNamespace):
    def rebalancing_enabled(self):
        return True

    def start(self, *_):
        del self.clients["b"]  # it quits while users are spawned anew

    @property
    def worker_count(self):
        return 1

dispatcher = types.SimpleNamespace(remove_worker=lambda _: None)
master = Master(clients=runners.WorkerNodes(), connection_broken=False, _users_dispatcher=dispatcher)
master.__dict__.update(state="running", spawning_completed=True, target_user_count=6, spawn_rate=6.0)
let_workers_leave(master)
master.clients["a"] = runners.WorkerNode("a", state="running", heartbeat_liveness=-1)
master.clients["b"] = runners.WorkerNode("b", state="running")
runners.HEARTBEAT_INTERVAL = 0.01
beating = gevent.spawn(runners.MasterRunner.heartbeat_worker, master)
beating.join(0.05)
print([(node.id, node.state) for node in master.clients.all], beating.dead)
"""

LOST = """
import types
from locust import User, dispatch, runners
from profiler.load.locust.quirks import LostWorkers

class Agent(User):
    pass

heard, started = [], []

class Master(types.SimpleNamespace):
    @property
    def worker_count(self):
        return len(self.clients.running)

    def start(self, users, rate):
        started.append((users, rate))
        self._users_dispatcher.new_dispatch(users, rate)
        for self.shares in self._users_dispatcher:
            pass

def message(kind):
    return types.SimpleNamespace(type=kind)

nodes = runners.WorkerNodes()
for name in "abc":
    nodes[name] = runners.WorkerNode(name, state="running")
dispatcher = dispatch.UsersDispatcher(nodes.running, [Agent])
master = Master(clients=nodes, _users_dispatcher=None, state="running", spawning_completed=True)
master.__dict__.update(target_user_count=6, spawn_rate=6.0, shares={})
master.handle_message = lambda client_id, message: heard.append((client_id, message.type))
has_agents = []
lost = LostWorkers(master, lambda worker: worker in has_agents)
nodes["a"].state = "missing"
master.handle_message("a", message("heartbeat"))  # it may come back
nodes["a"].state = "running"
has_agents += "abc"
master._users_dispatcher = dispatcher
master.start(6, 6.0)
nodes["a"].state = "missing"
dispatcher.remove_worker(nodes["a"])
for kind in ("heartbeat", "stats", "spawning", "client_ready", "toolcall_beat", "quit"):
    master.handle_message("a", message(kind))
print(heard, sorted(lost.ids), sorted(nodes))
lost.hand_over()
print({name: sum(share.values()) for name, share in master.shares.items()}, dispatcher.dispatch_in_progress)
dispatcher.remove_worker(nodes.pop("b"))  # it quits in good order, and Locust hands out nothing
lost.hand_over()
lost.hand_over()
print({name: sum(share.values()) for name, share in master.shares.items()}, started)
"""

CSV = """
import sys
import gevent
from gevent.monkey import get_original
from locust.env import Environment
from locust.stats import CSV_STATS_INTERVAL_SEC, PERCENTILES_TO_REPORT, StatsCSVFileWriter
from profiler.load.locust.quirks import finish_csv

environment = Environment()
environment.create_local_runner()
writer = StatsCSVFileWriter(environment, PERCENTILES_TO_REPORT, sys.argv[1])
gevent.spawn(writer.stats_writer)
gevent.sleep(0.5)
environment.stats.log_request("LOOP", "gathered", 5.0, 0)
# The event loop is late, so the end of the wait in finish_csv and the writer's next turn are due at once.
gevent.spawn_later(CSV_STATS_INTERVAL_SEC + 0.2, get_original("time", "sleep"), 0.5)
finish_csv()
writer.close_files()
print(",gathered,1," in open(sys.argv[1] + "_stats.csv").read())
gevent.sleep(1.2)  # the writer's next turn
"""

INTERRUPTED = """
import os
import signal
import gevent
from profiler.load.locust.quirks import interrupt_the_main_greenlet

heard = []
interrupt_the_main_greenlet(heard.append)
gevent.signal_handler(signal.SIGTERM, print, "Locust's own")

def interrupt_itself():
    os.kill(os.getpid(), signal.SIGINT)
    sum(range(100_000))
    return "went on"

greenlet = gevent.spawn(interrupt_itself)
try:
    gevent.sleep(30)
except KeyboardInterrupt:
    print("interrupted,", greenlet.value)
try:
    os.kill(os.getpid(), signal.SIGINT)
    sum(range(100_000))
except KeyboardInterrupt:
    print("again")
try:
    os.kill(os.getpid(), signal.SIGTERM)
    gevent.sleep(30)
except KeyboardInterrupt as error:
    print(error, [type(one).__name__ for one in heard])
"""

FORKED = """
import os
import time
import gevent
from profiler.load.locust.quirks import wait_for_forked_workers

pid = gevent.fork()
if not pid:
    time.sleep(0.1)
    os._exit(7)
gevent.sleep(0.3)  # gevent reaps it
wait_for_forked_workers()
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def said(script: str, *arguments: str, **environment: str) -> str:
    """What a process prints that runs this, and nothing else, and ends well."""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=110,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )
    assert (done.stderr, done.returncode) == ("", 0)
    return done.stdout


@pytest.mark.parametrize("patched", [True, False], ids=["patched", "unpatched"])
def test_two_native_threads_wait_for_each_other_in_a_process_that_gevent_has_patched(patched: bool) -> None:
    script = BRIDGE + ON_BOTH_THREADS + "".join(case for case, _ in THREADS) + "bridge.stop()\n"
    assert said((PATCH if patched else "") + script).splitlines() == [expected for _, expected in THREADS]


def test_a_worker_may_leave_while_the_master_spawns_the_users_of_a_lost_one_anew() -> None:
    assert said(HEARTBEAT) == "[('a', 'missing')] False\n"


def test_a_worker_that_was_missing_in_a_test_is_lost_for_good_and_its_users_go_to_the_others() -> None:
    assert said(LOST).splitlines() == [
        "[('a', 'heartbeat'), ('a', 'toolcall_beat'), ('a', 'quit')] ['a'] ['b', 'c']",
        "{'b': 3, 'c': 3} True",  # Locust takes that to go on for ever
        "{'c': 6} [(6, 6.0), (6, 6.0), (6, 6.0)]",
    ]


def test_locusts_csv_has_the_last_figures_and_nothing_is_written_after_it_is_closed(tmp_path: Path) -> None:
    assert said(CSV, str(tmp_path / "csv")) == "True\n"


def test_an_unpatched_master_learns_how_its_forked_workers_ended() -> None:
    assert said(FORKED, LOCUST_SKIP_MONKEY_PATCH="1") == "7\n"


def test_an_interrupt_ends_the_main_greenlet_and_not_the_one_that_runs() -> None:
    assert said(INTERRUPTED).splitlines() == [
        "interrupted, went on",
        "again",
        "told to end by SIGTERM ['KeyboardInterrupt', 'KeyboardInterrupt', 'Terminated']",
    ]
