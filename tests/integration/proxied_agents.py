"""`profiler proxy` as a process, and agents of the tests' own that ask through it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anthropic
import openai

from profiler.records import LoopRecord, read

KEY = "canary-key-0123456789"
SECRET = "canary-prompt"
START_SECONDS = 60


class ProxyProcess:
    """A running proxy. `url` is where it listens, `lines` what it has printed."""

    def __init__(self, process: subprocess.Popen[str], out: Path) -> None:
        self.process = process
        self.out = out
        self.lines: list[str] = []
        listening = threading.Event()

        def follow() -> None:
            assert process.stdout is not None
            with process.stdout as output:
                for line in output:
                    self.lines.append(line.rstrip("\n"))
                    if "listening on" in line:
                        listening.set()
            listening.set()

        self._reader = threading.Thread(target=follow, daemon=True)
        self._reader.start()
        assert listening.wait(START_SECONDS), "the proxy did not start"
        assert self.lines, "the proxy ended without a word"
        self.url = self.lines[0].rpartition(" ")[2]

    def stop(self) -> str:
        """End it; all that it has printed."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=60)
        self._reader.join(timeout=60)
        return "\n".join(self.lines)

    def records(self) -> list[LoopRecord]:
        """What it has recorded, in the order of the loops' starts; after `stop`."""
        found = [record for path in sorted(self.out.glob("*/records.jsonl")) for record in read(path)]
        return sorted(found, key=lambda record: record.started_ns)

    def run(self) -> dict[str, Any]:
        """The `run.json` of its only run."""
        [path] = self.out.glob("*/run.json")
        run: dict[str, Any] = json.loads(path.read_bytes())
        return run


@contextmanager
def proxied(out: Path, *options: str) -> Iterator[ProxyProcess]:
    """A proxy that writes to `out`; it is ended in any case."""
    command = [sys.executable, "-m", "profiler", "proxy", *options, "--port", "0", "--out", str(out)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        yield ProxyProcess(process, out)
    finally:
        process.kill()
        process.wait(timeout=60)


Run = Callable[[str, str, str], Awaitable[str]]
"""Runs a tool: the call's id, the tool's name, its arguments as JSON text; returns the result."""

TOOL = {
    "name": "get_weather",
    "description": "Weather.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}


async def agent(
    api: str, client: Any, tools: Sequence[dict[str, Any]], prompt: str, stream: bool, run: Run
) -> list[str]:
    """One loop with an SDK, its calls gathered; the ids of all calls that it was asked for."""
    seen: list[str] = []
    history: list[Any] = [{"role": "user", "content": prompt}]
    for _ in range(20):
        asked = await _ASK[api](client, history, tools, stream)
        if not asked:
            return seen
        seen += [ident for ident, _, _ in asked]
        results = await asyncio.gather(*(run(*one) for one in asked))
        pairs = [(one[0], result) for one, result in zip(asked, results, strict=True)]
        if api == "anthropic":
            parts = [{"type": "tool_result", "tool_use_id": i, "content": text} for i, text in pairs]
            history.append({"role": "user", "content": parts})
        elif api == "openai":
            history += [{"role": "tool", "tool_call_id": i, "content": text} for i, text in pairs]
        else:
            history += [{"type": "function_call_output", "call_id": i, "output": text} for i, text in pairs]
    raise AssertionError("no end")


async def _chat(
    client: openai.AsyncOpenAI, history: list[Any], tools: Sequence[dict[str, Any]], stream: bool
) -> list[tuple[str, str, str]]:
    offered: Any = [{"type": "function", "function": tool} for tool in tools]
    if stream:
        async with client.chat.completions.stream(
            model="m", messages=history, tools=offered, stream_options={"include_usage": True}
        ) as events:
            message: Any = (await events.get_final_completion()).choices[0].message
    else:
        completion = await client.chat.completions.create(model="m", messages=history, tools=offered)
        message = completion.choices[0].message
    history.append(
        message.model_dump(
            exclude_none=True,
            exclude={"tool_calls": {"__all__": {"function": {"parsed_arguments"}}}, "parsed": True},
        )
    )
    return [(c.id, c.function.name, c.function.arguments) for c in message.tool_calls or ()]


async def _responses(
    client: openai.AsyncOpenAI, history: list[Any], tools: Sequence[dict[str, Any]], stream: bool
) -> list[tuple[str, str, str]]:
    offered: Any = [{"type": "function", "strict": False, **tool} for tool in tools]
    if stream:
        async with client.responses.stream(model="m", input=history, tools=offered) as events:
            response: Any = await events.get_final_response()
    else:
        response = await client.responses.create(model="m", input=history, tools=offered)
    calls = [item for item in response.output if item.type == "function_call"]
    kept = ("type", "call_id", "name", "arguments")
    history += [item.model_dump(include={*kept}) for item in calls]
    return [(c.call_id, c.name, c.arguments) for c in calls]


async def _messages(
    client: anthropic.AsyncAnthropic, history: list[Any], tools: Sequence[dict[str, Any]], stream: bool
) -> list[tuple[str, str, str]]:
    offered: Any = [
        {"name": t["name"], "description": t["description"], "input_schema": t["parameters"]} for t in tools
    ]
    if stream:
        async with client.messages.stream(
            model="m", max_tokens=500, messages=history, tools=offered
        ) as events:
            message = await events.get_final_message()
    else:
        message = await client.messages.create(model="m", max_tokens=500, messages=history, tools=offered)
    history.append(
        {
            "role": "assistant",
            "content": [
                part.model_dump(exclude_none=True, exclude={"parsed_output"}) for part in message.content
            ],
        }
    )
    return [(c.id, c.name, json.dumps(c.input)) for c in message.content if c.type == "tool_use"]


_ASK = {"openai": _chat, "openai-responses": _responses, "anthropic": _messages}


def client_of(api: str, url: str, **options: Any) -> Any:
    """The SDK's client, through the proxy at `url`."""
    if api == "anthropic":
        return anthropic.AsyncAnthropic(base_url=url, api_key=KEY, **options)
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, **options)
