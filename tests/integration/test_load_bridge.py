"""The bridge, on sockets, in processes that gevent has patched and in ones it has not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PATCH = "from gevent import monkey; monkey.patch_all()\n"

SETUP = """
import asyncio, threading, time
import gevent
from gevent.event import Event
from profiler.load.locust.bridge import LoopThread

thread = LoopThread()
thread.start()

async def echo(reader, writer):
    writer.write(await reader.readline())
    await writer.drain()
    writer.close()

async def serve():
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1]

server, port = thread.run(serve, 5)

async def ask(text):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(text + b"\\n")
    answer = await reader.readline()
    writer.close()
    await writer.wait_closed()
    return answer.strip()
"""

GREENLETS = """
answers = []
def user(n):
    answers.append(thread.submit(lambda: ask(b"%d" % n)).wait(10))
gevent.joinall([gevent.spawn(user, n) for n in range(200)])
print(sorted(int(a) for a in answers) == list(range(200)))
"""

TO_THREAD = """
async def in_a_thread():
    return await asyncio.to_thread(lambda: "from a thread")
print(thread.run(in_a_thread, 5))
"""

FAILURE = """
async def fail():
    await ask(b"x")
    raise ValueError("from the loop")
try:
    thread.run(fail, 5)
except ValueError as error:
    print(error)
"""

CANCELLED = """
seen = Event()
async def for_ever():
    try:
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        thread.hub.post(seen.set)
        raise
flight = thread.submit(for_ever)
gevent.sleep(0.05)
flight.cancel()
try:
    flight.wait(5)
except asyncio.CancelledError:
    print(seen.wait(5))
"""

TIMED_OUT = """
try:
    thread.run(lambda: asyncio.sleep(3600), 0.05)
except gevent.Timeout:
    async def others():
        await asyncio.sleep(0)
        return len([t for t in asyncio.all_tasks() if t is not asyncio.current_task()])
    print(thread.run(others, 5) == 0)
"""

STOPPED = """
flight = thread.submit(lambda: asyncio.sleep(3600))
started = time.monotonic()
thread.stop()
thread.stop()
try:
    flight.wait(5)
except asyncio.CancelledError:
    print(time.monotonic() - started < 2)
try:
    thread.submit(lambda: asyncio.sleep(0))
except RuntimeError:
    print("closed")
"""

LOGGING = """
import logging
import sys
sys.setswitchinterval(1e-5)
handler = logging.StreamHandler()
log = logging.getLogger("an SDK")
log.addHandler(handler)
def both():
    for _ in range(20_000):
        log.manager._clear_cache()  # so that the next call asks under the lock of the whole module
        log.isEnabledFor(logging.DEBUG)
        handler.acquire()
        handler.release()
async def there():
    both()
flight = thread.submit(there)
both()
flight.wait(10)
sys.setswitchinterval(0.005)
print("logged on both threads")
"""

IMPORTS = """
import importlib, pathlib, sys, tempfile
sys.setswitchinterval(1e-5)
place = tempfile.TemporaryDirectory()
sys.path.insert(0, place.name)
for number in range(600):
    pathlib.Path(place.name, f"imported_{number}.py").write_text("sum(range(2000))")
def modules():
    for number in range(600):
        importlib.import_module(f"imported_{number}")
async def there():
    modules()
flight = thread.submit(there)
modules()
flight.wait(25)
sys.setswitchinterval(0.005)
place.cleanup()
print("imported on both threads")
"""

WAITING_FOR_AN_IMPORT = """
import importlib, pathlib, sys, tempfile
place = tempfile.TemporaryDirectory()
sys.path.insert(0, place.name)
pathlib.Path(place.name, "slow_to_import.py").write_text("import gevent; gevent.sleep(0.05); DONE = True")
both = [gevent.spawn(importlib.import_module, "slow_to_import") for _ in range(2)]
gevent.joinall(both, timeout=5)
print([one.value.DONE for one in both])
place.cleanup()
"""

FUTURES = """
import sys
sys.setswitchinterval(1e-6)
async def in_threads():
    for _ in range(600):
        await asyncio.gather(*(asyncio.to_thread(int) for _ in range(3)))
thread.run(in_threads, 25)
sys.setswitchinterval(0.005)
print("1800 threads have answered")
"""

CASES = (
    (GREENLETS, "True"),
    (LOGGING, "logged on both threads"),
    (IMPORTS, "imported on both threads"),
    (WAITING_FOR_AN_IMPORT, "[True, True]"),
    (FUTURES, "1800 threads have answered"),
    (TO_THREAD, "from a thread"),
    (FAILURE, "from the loop"),
    (CANCELLED, "True"),
    (TIMED_OUT, "True"),
)

LEFT = """
thread.submit(lambda: asyncio.sleep(3600))
gevent.sleep(0.05)
print("left to the exit handler")
"""


@pytest.mark.parametrize("patched", [True, False], ids=["patched", "unpatched"])
@pytest.mark.parametrize(
    ("ending", "said"),
    [(STOPPED, "True\nclosed"), (LEFT, "left to the exit handler")],
    ids=["stopped", "left to the exit handler"],
)
def test_bridge(ending: str, said: str, patched: bool) -> None:
    cases = [*CASES, (ending, said)]
    script = SETUP + "".join(case for case, _ in cases)
    done = subprocess.run(
        [sys.executable, "-c", (PATCH if patched else "") + script],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stderr == ""
    assert done.stdout.split("\n") == [*"\n".join(expected for _, expected in cases).split("\n"), ""]
    assert done.returncode == 0


def test_what_the_sdks_ask_the_platform_in_a_thread_needs_no_subprocess() -> None:
    """gevent's can be waited for in the main thread alone: elsewhere the first request would hang."""
    script = """
import platform
from profiler.load.locust.bridge import LoopThread
thread = LoopThread()
thread.start()

async def main():
    return await asyncio.gather(*(asyncio.to_thread(platform.platform) for _ in range(4)))

print(len(thread.run(main, 10.0)))
thread.stop()
"""
    done = subprocess.run(
        [sys.executable, "-c", f"{PATCH}\nimport asyncio\n{script}"],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert (done.stdout, done.stderr, done.returncode) == ("4\n", "", 0)
