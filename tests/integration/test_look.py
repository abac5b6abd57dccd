"""Code of one's own, looked at: `profiler run` of scripts and agents, `with Profiler()`, notebooks, pages."""

from __future__ import annotations

import importlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from profiler.emulator.process import EmulatorProcess, start_emulator
from profiler.records import encode, read
from profiler.report.html import write_any
from tests.integration.browser import chromium, screenshot, serious, watched
from tests.unit.test_report_records import made, unseen

AGENT = """
import asyncio, json
from openai import AsyncOpenAI

client = AsyncOpenAI({client})


async def get_weather(city: str, units: str = "metric") -> dict:
    await asyncio.sleep(0.05)
    return {{"city": city, "temperature": 20}}


REGISTRY = {{"get_weather": get_weather}}
CITY = {{"type": "object", "properties": {{"city": {{"type": "string"}}}}, "required": ["city"]}}
TOOLS = [{{"type": "function", "function": {{"name": "get_weather", "parameters": CITY}}}}]


async def agent(prompt):
    messages = [{{"role": "user", "content": prompt}}]
    while True:
        reply = await client.chat.completions.create(model="gpt-4o", messages=messages, tools=TOOLS)
        message = reply.choices[0].message
        if not message.tool_calls:
            return message.content
        messages.append(message)

        async def one(call):
            result = await REGISTRY[call.function.name](**json.loads(call.function.arguments))
            return {{"role": "tool", "tool_call_id": call.id, "content": json.dumps(result)}}

        messages += await asyncio.gather(*map(one, message.tool_calls))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with an agent of 30 lines whose client is at module level, and a script that runs it."""
    (tmp_path / "own_agent.py").write_text(AGENT.format(client=""))
    return tmp_path


def script(folder: Path, text: str) -> str:
    (folder / "script.py").write_text(dedent(text))
    return "script.py"


def without_keys() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI", "ANTHROPIC"))}


def profiler(folder: Path, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "profiler", "run", *arguments],
        cwd=folder,
        env=without_keys(),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture(scope="module")
def emulator() -> Iterator[EmulatorProcess]:
    with start_emulator("cities") as found:
        yield found


def test_script_runs_as_it_is_and_is_explained(folder: Path) -> None:
    (folder / "own_agent.py").write_text(
        AGENT.format(client="base_url='https://api.openai.com/v1', api_key='x'")
    )
    name = script(
        folder,
        """
        import asyncio, multiprocessing, sys, threading
        import own_agent

        def double(x):
            return 2 * x

        if __name__ == "__main__":
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                print(input(), sys.argv[1:], pool.map(double, [1, 2]))
            threading.Thread(target=lambda: asyncio.run(own_agent.agent("Compare"))).start()
        """,
    )
    ended = profiler(folder, "--emulate", "--out", "runs", name, "a", "--open", stdin="typed\n")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("typed ['a', '--open'] [2, 4]\n\n")  # and nothing was opened
    said = " ".join(ended.stdout.split())
    assert re.search(r"tools ran \(longest: get_weather, [\d.]+ ms\)", said)
    assert "watched: AsyncOpenAI (own_agent.py:5), get_weather (own_agent.py:8)" in said
    assert "asks the target http://127.0.0.1:" in said
    assert "not seen" not in said
    (run,) = (folder / "runs").iterdir()
    (record,) = read(run / "records.jsonl")
    assert all(call.id and call.status == "ok" for call in record.tool_calls)
    assert "Why it took so long" in (run / "report.html").read_text("utf-8")
    assert json.loads((run / "run.json").read_text("utf-8"))["finished"]


def test_script_that_fails_is_shown_its_traceback_and_its_loop(folder: Path) -> None:
    name = script(
        folder,
        """
        import asyncio, own_agent
        asyncio.run(own_agent.agent("Compare"))
        own_agent.agent()
        """,
    )
    ended = profiler(folder, "--emulate", name)
    assert ended.returncode == 1
    assert ended.stderr.startswith("Traceback (most recent call last):\n  File ")
    assert f'"{folder}/script.py", line 4, in <module>' in ended.stderr
    assert "profiler/commands" not in ended.stderr
    assert "model 1" in ended.stdout


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_script_shows_what_was_recorded(folder: Path, number: int, code: int) -> None:
    name = script(
        folder,
        """
        import asyncio, own_agent
        async def main():
            await own_agent.agent("Compare")
            print("now", flush=True)
            await asyncio.sleep(60)
        asyncio.run(main())
        """,
    )
    command = [sys.executable, "-m", "profiler", "run", "--emulate", name]
    with subprocess.Popen(
        command, cwd=folder, env=without_keys(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "now\n"
        running.send_signal(number)
        out, err = running.communicate(timeout=60)
    assert running.returncode == code, err
    assert "model 1" in out
    assert err.splitlines()[-1].startswith("profiler: ")


def test_script_without_loops_is_told_so(folder: Path) -> None:
    ended = profiler(folder, script(folder, "print('nothing')"))
    assert ended.returncode == 1
    assert "no loop was recorded: no request of an OpenAI or Anthropic SDK client" in ended.stdout


def test_agent_runs_once_with_the_prompt(folder: Path) -> None:
    ended = profiler(folder, "--emulate", "--agent", "own_agent:agent", "Compare Tokyo and Paris")
    assert ended.returncode == 0, ended.stderr
    assert "watched: AsyncOpenAI (own_agent.py:5), get_weather (own_agent.py:8)" in ended.stdout
    assert ended.stdout.splitlines()[-1].startswith("From ")  # the agent's answer
    assert ended.stderr == ""


def test_strategy_holds_back_the_tools_of_a_plain_agent(folder: Path) -> None:
    ended = profiler(folder, "--emulate", "--agent", "own_agent:agent", "--strategy", "sequential", "x")
    assert ended.returncode == 0, ended.stderr
    assert "at most 1 at once)" in " ".join(ended.stdout.split())
    assert "heeded" not in ended.stdout


def test_block_and_tool_loop_of_a_script_are_seen_too(folder: Path) -> None:
    name = script(
        folder,
        """
        import asyncio, own_agent
        from profiler import Gathered, ToolLoop
        from profiler.examples import get_population, get_weather
        from profiler.instrument import Profiler
        from profiler.providers import OpenAIChat

        async def main():
            with Profiler([]) as prof:
                await own_agent.agent("Compare")
            model = OpenAIChat(own_agent.client, model="gpt-4o")
            await ToolLoop(model, [get_weather, get_population], Gathered()).run("Compare")
            await own_agent.client.close()

        asyncio.run(main())
        """,
    )
    ended = profiler(folder, "--emulate", name)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("model 1 ") == 2
    assert ended.stdout.startswith("\n2 loops: half took at most ")
    assert "failed" not in ended.stdout


def test_agent_that_raises_is_shown_its_traceback(folder: Path) -> None:
    (folder / "failing.py").write_text(
        "import own_agent\nasync def agent(prompt):\n    await own_agent.agent(prompt)\n    return {}['x']\n"
    )
    ended = profiler(folder, "--emulate", "--agent", "failing:agent", "x")
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[1:] == [
        f'  File "{folder}/failing.py", line 4, in agent',
        "    return {}['x']",
        "           ~~^^^^^",
        "KeyError: 'x'",
    ]
    assert "error (KeyError)" in ended.stdout
    assert "model 2" in ended.stdout


def test_factory_is_given_the_context(folder: Path) -> None:
    (folder / "factory.py").write_text(
        dedent(
            """
            from openai import AsyncOpenAI
            import own_agent

            def make_agent(ctx):
                own_agent.client = AsyncOpenAI(**ctx.client_options())
                ctx.on_close(own_agent.client.close)

                async def agent():
                    print(ctx.strategy.spec)
                    await own_agent.agent(ctx.prompt)

                return agent
            """
        )
    )
    ended = profiler(folder, "--emulate", "--agent", "factory:make_agent", "--strategy", "semaphore:2")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("semaphore:2\n")
    assert "semaphore:2 was not heeded: " in ended.stdout
    assert "get_weather (own_agent.py:8)" in ended.stdout


def test_agent_without_a_key_is_told_of_the_emulator(folder: Path) -> None:
    ended = profiler(folder, "--agent", "own_agent:agent", "x")
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert "--emulate runs it against the built-in emulator, without a key" in ended.stderr


THREADS = """
until = time.monotonic() + 30
while len(os.listdir("/proc/self/task")) > 1 and time.monotonic() < until:
    time.sleep(0.01)  # a thread that samples lag has seen that nothing runs any more
print(len(os.listdir("/proc/self/task")))
"""

LOOK = """
import asyncio, os, sys, time
import own_agent
from profiler.instrument import Profiler

with Profiler() as prof:
    asyncio.run(own_agent.agent("Compare"))
prof.report("page.html")
sys.stderr.write("done")
"""


def test_block_prints_nothing_into_a_pipe_and_leaves_nothing(folder: Path, emulator: EmulatorProcess) -> None:
    name = script(folder, LOOK.replace("prof.report", f"{THREADS}prof.report"))
    environment = {**without_keys(), "OPENAI_API_KEY": "x", "OPENAI_BASE_URL": f"{emulator.url}/v1"}
    ended = subprocess.run(
        [sys.executable, name], cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )
    assert (ended.stdout, ended.stderr) == ("1\n", "done")
    assert "Timeline" in (folder / "page.html").read_text("utf-8")


def test_block_prints_on_a_terminal(folder: Path, emulator: EmulatorProcess) -> None:
    name = script(folder, LOOK)
    environment = {**without_keys(), "OPENAI_API_KEY": "x", "OPENAI_BASE_URL": f"{emulator.url}/v1"}
    ours, its = pty.openpty()
    with subprocess.Popen([sys.executable, name], cwd=folder, env=environment, stdout=its, stderr=its):
        os.close(its)
        shown, until = b"", time.monotonic() + 60
        while b"done" not in shown and time.monotonic() < until:
            if select.select([ours], [], [], 1.0)[0]:
                try:
                    shown += os.read(ours, 65536)
                except OSError:  # its end is closed
                    break
    os.close(ours)
    assert "tools ran (longest: get_weather" in shown.decode()
    assert "watched: AsyncOpenAI" in shown.decode()


def test_notebook_shows_the_loops(folder: Path, emulator: EmulatorProcess) -> None:
    """In a real kernel; the block runs twice, and the second one fails."""
    find: Any = importlib.import_module if os.environ.get("CI") else pytest.importorskip
    _, nbformat, nbclient = map(find, ("ipykernel", "nbformat", "nbclient"))
    cells = [
        f"import os, sys; sys.path.insert(0, {str(folder)!r})\n"
        f"os.environ.update(OPENAI_API_KEY='x', OPENAI_BASE_URL='{emulator.url}/v1')\n"
        "import own_agent\nfrom profiler.instrument import Profiler",
        "with Profiler() as prof:\n    await own_agent.agent('Compare')",
        "async with Profiler() as prof:\n    await own_agent.agent('Compare')\n    raise KeyError('x')",
        "prof",
    ]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(book, timeout=60, allow_errors=True).execute()
    shown = [[one.output_type for one in cell.outputs] for cell in book.cells]
    assert shown == [[], ["display_data"], ["display_data", "error"], ["execute_result"]]
    for output in (book.cells[1].outputs[0], book.cells[2].outputs[0], book.cells[3].outputs[0]):
        assert "tools ran (longest: get_weather" in output.data["text/plain"]
        assert "get_weather" in output.data["text/html"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.mark.parametrize("count", [1, 200])
def test_page_of_records_is_whole_at_any_width_and_accessible(
    browser: Any, tmp_path: Path, count: int
) -> None:
    records = [replace(record, name=("support", "search")[k % 2]) for k, record in enumerate(made(count))]
    records[-1] = unseen(records[-1], "</script><script>document.title=9</script>")
    (tmp_path / "records.jsonl").write_bytes(b"".join(encode(record) + b"\n" for record in records))
    path = write_any(tmp_path / "records.jsonl").path
    assert path.stat().st_size < 2_000_000
    for width, scheme in ((1440, "light"), (360, "dark")):
        with watched(browser, width, scheme) as seen:
            seen.page.goto(path.as_uri())
            seen.page.wait_for_selector("html[data-ready]", state="attached")
            assert seen.page.evaluate("document.documentElement.scrollWidth") == width
            assert seen.page.locator("#waterfall-0 svg").count() == 1
            assert seen.page.locator("#chart-phases svg").count() == 1
            assert seen.page.locator("#chart-distribution svg").count() == (count > 1)
            assert seen.page.locator("#pick-case").is_visible() == (count > 1)
            seen.page.locator("#waterfall-0 .row").nth(1).click()
            assert "tool call in round 1" in seen.page.locator("#call-detail").inner_text()
            assert seen.page.title() != "9"
            assert serious(seen.page) == []
            screenshot(seen.page, f"records-{count}-{width}-{scheme}")
            assert seen.complaints == []
            assert [url for url in seen.requests if not url.startswith("file:")] == []
