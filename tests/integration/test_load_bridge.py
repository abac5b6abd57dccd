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
import asyncio, time
import gevent
from gevent.event import Event
from profiler.load.locust.bridge import Bridge

bridge = Bridge()
bridge.start()

async def echo(reader, writer):
    writer.write(await reader.readline())
    await writer.drain()
    writer.close()

async def serve():
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1]

server, port = bridge.run(serve, 5)

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
    answers.append(bridge.submit(lambda: ask(b"%d" % n)).wait(10))
gevent.joinall([gevent.spawn(user, n) for n in range(200)])
print(sorted(int(a) for a in answers) == list(range(200)))
"""

FAILURE = """
async def fail():
    await ask(b"x")
    raise ValueError("from the loop")
try:
    bridge.run(fail, 5)
except ValueError as error:
    print(error)
"""

CANCELLED = """
seen = Event()
async def for_ever():
    try:
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        bridge.post(seen.set)
        raise
task = bridge.submit(for_ever)
gevent.sleep(0.05)
task.cancel()
try:
    task.wait(30)
except asyncio.CancelledError:
    print(seen.wait(30))
"""

TIMED_OUT = """
try:
    bridge.run(lambda: asyncio.sleep(3600), 0.05)
except TimeoutError:
    async def others():
        await asyncio.sleep(0)
        return len([t for t in asyncio.all_tasks() if t is not asyncio.current_task()])
    print(bridge.run(others, 30) == 0)
"""

STOPPED = """
task = bridge.submit(lambda: asyncio.sleep(3600))
started = time.monotonic()
bridge.stop()
bridge.stop()
try:
    task.wait(30)
except asyncio.CancelledError:
    print(time.monotonic() - started < 20)
try:
    bridge.submit(lambda: asyncio.sleep(0))
except RuntimeError:
    print("closed")
"""

EXITED = """
import logging
logging.getLogger("profiler").addHandler(logging.NullHandler())
async def goes_on():
    async def leaves():
        raise SystemExit(4)
    task = asyncio.create_task(leaves())
    await asyncio.wait([task])
    return repr(task.exception())
print(bridge.run(goes_on, 30))
"""

CASES = (
    (GREENLETS, "True"),
    (FAILURE, "from the loop"),
    (CANCELLED, "True"),
    (TIMED_OUT, "True"),
    (EXITED, "SystemExit(4)"),
)

LEFT = """
bridge.submit(lambda: asyncio.sleep(3600))
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
