"""The tools of the SDKs' own runners are watched as they run; what the user passed is left as it was."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from profiler.loop.boundary import Boundary
from profiler.loop.model import CallRequest
from profiler.watch.profiler import Profiler
from profiler.watch.runners import RunnerTools

responses = pytest.importorskip("openai.lib.responses_tool_runner")  # the oldest SDKs lack them
toolsets = pytest.importorskip("anthropic.lib.tools._toolsets._runnable")
messages = pytest.importorskip("anthropic.lib.tools._beta_runner")

CALLS = [("c1", {"city": "Tokyo"}), ("c2", {"city": "Paris"}), ("c3", {"city": "Nowhere"})]
"""What the model asks for: the last one fails."""


def sse(events: list[dict[str, Any]]) -> httpx2.Response:
    body = "".join(f"event: {one['type']}\ndata: {json.dumps(one)}\n\n" for one in events)
    return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=body.encode())


class Model(httpx2.BaseTransport, httpx2.AsyncBaseTransport):
    """Messages and Responses, streamed or not: asks for the calls, then answers."""

    def __init__(self) -> None:
        self.results: Any = None

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        body = json.loads(request.read())
        if request.url.path.endswith("/messages"):
            return self.message(body)
        return self.response(body)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        await request.aread()
        return self.handle_request(request)

    def message(self, body: dict[str, Any]) -> httpx2.Response:
        answered = len(body["messages"]) > 1
        name = next((tool["name"] for tool in body["tools"] if "name" in tool), "look")
        content: list[Any] = [{"type": "text", "text": "done"}]
        if answered:
            self.results = [
                (one["tool_use_id"], one.get("is_error", False)) for one in last(body["messages"])
            ]
        else:
            content = [{"type": "tool_use", "id": id_, "name": name, "input": given} for id_, given in CALLS]
        stop = "end_turn" if answered else "tool_use"
        whole = {
            "id": "m",
            "type": "message",
            "role": "assistant",
            "model": "m",
            "content": content,
            "stop_reason": stop,
            "stop_sequence": None,
            "usage": {"input_tokens": 1, "output_tokens": 1},
        }
        if not body.get("stream"):
            return httpx2.Response(200, json=whole)
        events: list[dict[str, Any]] = [
            {"type": "message_start", "message": {**whole, "content": [], "stop_reason": None}}
        ]
        for index, block in enumerate(content):
            at = {"index": index}
            if block["type"] == "text":
                start, delta = {**block, "text": ""}, {"type": "text_delta", "text": block["text"]}
            else:
                start = {**block, "input": {}}
                delta = {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
            events += [
                {"type": "content_block_start", "content_block": start, **at},
                {"type": "content_block_delta", "delta": delta, **at},
                {"type": "content_block_stop", **at},
            ]
        delta = {"stop_reason": stop, "stop_sequence": None}
        events += [{"type": "message_delta", "delta": delta, "usage": {"output_tokens": 1}}]
        return sse([*events, {"type": "message_stop"}])

    def response(self, body: dict[str, Any]) -> httpx2.Response:
        answers = [one for one in body["input"] if one.get("type") == "function_call_output"]
        part = {"type": "output_text", "text": "done", "annotations": []}
        output: list[Any] = [
            {"type": "message", "id": "o", "role": "assistant", "status": "completed", "content": [part]}
        ]
        if answers:
            self.results = [one["call_id"] for one in answers]
        else:
            output = [
                {
                    "type": "function_call",
                    "id": f"i_{id_}",
                    "call_id": id_,
                    "name": "get_weather",
                    "arguments": json.dumps(given),
                    "status": "completed",
                }
                for id_, given in CALLS
            ]
        whole = {
            "id": "r",
            "object": "response",
            "created_at": 1,
            "model": "m",
            "status": "completed",
            "output": output,
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "usage": None,
        }
        if not body.get("stream"):
            return httpx2.Response(200, json=whole)
        events: list[dict[str, Any]] = [
            {"type": "response.created", "response": {**whole, "status": "in_progress", "output": []}}
        ]
        for index, item in enumerate(output):
            at = {"output_index": index}
            if item["type"] == "message":
                started: dict[str, Any] = {**item, "status": "in_progress", "content": []}
                events += [
                    {"type": "response.output_item.added", "item": started, **at},
                    {"type": "response.output_item.done", "item": item, **at},
                ]
                continue
            of = {"item_id": item["id"], **at}
            started = {**item, "status": "in_progress", "arguments": ""}
            text = item["arguments"]
            events += [
                {"type": "response.output_item.added", "item": started, **at},
                {"type": "response.function_call_arguments.delta", "delta": text, **of},
                {"type": "response.function_call_arguments.done", "arguments": text, "name": "", **of},
                {"type": "response.output_item.done", "item": item, **at},
            ]
        events.append({"type": "response.completed", "response": whole})
        return sse([{**one, "sequence_number": number} for number, one in enumerate(events)])


def last(messages: list[Any]) -> list[Any]:
    return [one for one in messages[-1]["content"] if one["type"] == "tool_result"]


@pytest.fixture
def watch():
    """A profiler that watches the tools of runners, its records, and where failures of ours are counted."""

    class Watch:
        def __init__(self) -> None:
            self.records: list[Any] = []
            self.prof = Profiler([self.records.append])
            self.tools = RunnerTools(
                lambda function, name: self.prof.tool(function, name=name), self.prof._boundary
            )

        def calls(self) -> list[tuple[str, str, str]]:
            (record,) = self.records
            assert (record.ambiguous_calls, record.unobserved_calls, record.orphan_calls) == (0, 0, 0)
            assert self.prof.failures == {"loop": 0, "request": 0, "tool": 0}
            return [(call.name, call.id, call.status) for call in record.tool_calls]

    made = Watch()
    made.tools.install()
    made.tools.install()
    yield made
    made.tools.uninstall()


SEEN = [("get_weather", "c1", "ok"), ("get_weather", "c2", "ok"), ("get_weather", "c3", "error")]


def get_weather(city: str) -> str:
    """Weather."""
    if city == "Nowhere":
        raise LookupError(city)
    return f"fine in {city}"


async def get_weather_async(city: str) -> str:
    """Weather."""
    await asyncio.sleep(0)
    return get_weather(city)


def state_of(tool: Any) -> dict[str, Any]:
    return dict(vars(tool))


QUESTION = {"max_tokens": 9, "model": "m", "messages": [{"role": "user", "content": "q"}], "thread": False}


@pytest.mark.parametrize("eager", [False, True])
def test_tools_of_anthropics_runner(watch: Any, eager: bool) -> None:
    model = Model()
    tool = anthropic.beta_tool(get_weather)
    before = state_of(tool)
    more: Any = {"stream": True, "run_tools_eagerly": True} if eager else {}
    with anthropic.Anthropic(api_key="k", http_client=httpx2.Client(transport=model)) as client:
        watch.prof.instrument(client)
        with watch.prof.loop("x"):
            message = client.beta.messages.tool_runner(**QUESTION, tools=[tool], **more).until_done()
    assert message.content[0].text == "done"
    assert model.results == [("c1", False), ("c2", False), ("c3", True)]
    assert watch.calls() == SEEN
    assert state_of(tool) == before


@pytest.mark.parametrize("eager", [False, True])
def test_tools_of_anthropics_async_runner(watch: Any, eager: bool) -> None:
    model = Model()
    # Watched twice: what the user has wrapped himself is one call all the same.
    tool = anthropic.beta_async_tool(
        watch.prof.tool(get_weather_async, name="get_weather"), name="get_weather"
    )
    more: Any = {"stream": True, "run_tools_eagerly": True} if eager else {}

    async def main() -> Any:
        http = httpx2.AsyncClient(transport=model)
        async with anthropic.AsyncAnthropic(api_key="k", http_client=http) as client:
            watch.prof.instrument(client)
            with watch.prof.loop("x"):
                return await client.beta.messages.tool_runner(**QUESTION, tools=[tool], **more).until_done()

    assert asyncio.run(main()).content[0].text == "done"
    assert model.results == [("c1", False), ("c2", False), ("c3", True)]
    assert watch.calls() == SEEN


SCHEMA: Any = {
    "type": "function",
    "name": "get_weather",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
PARAMS: Any = {"model": "m", "input": [{"role": "user", "content": "q"}], "store": False}


def execute(arguments: Any) -> str:
    return f"fine in {arguments['city']}"


@pytest.mark.parametrize("independent", [False, True])
@pytest.mark.parametrize("eager", [False, True])
def test_tools_of_openais_runner(watch: Any, eager: bool, independent: bool) -> None:
    model = Model()
    function = responses.RegisteredFunction(SCHEMA, execute, independent=independent)
    runner = responses.ResponsesToolRunner(functions=[function])
    held = dict(runner._functions)
    with openai.OpenAI(api_key="k", http_client=httpx2.Client(transport=model)) as client:
        watch.prof.instrument(client)
        with watch.prof.loop("x"):
            response = runner.run(client, PARAMS, **({"stream": True, "eager": True} if eager else {}))
    assert response.output_text == "done"
    assert sorted(model.results) == ["c1", "c2", "c3"]
    assert sorted(watch.calls()) == [("get_weather", id_, "ok") for id_, _ in CALLS]
    assert function.execute is execute
    assert runner._functions == held


@pytest.mark.parametrize("independent", [False, True])
@pytest.mark.parametrize("eager", [False, True])
def test_tools_of_openais_async_runner(watch: Any, eager: bool, independent: bool) -> None:
    model = Model()

    async def execute_async(arguments: Any, *, cancelled: Any) -> str:
        await asyncio.sleep(0)
        assert cancelled is None or callable(cancelled)
        return execute(arguments)

    async def main() -> Any:
        runner = responses.AsyncResponsesToolRunner(
            functions=[responses.AsyncRegisteredFunction(SCHEMA, execute_async, independent=independent)]
        )
        http = httpx2.AsyncClient(transport=model)
        async with openai.AsyncOpenAI(api_key="k", http_client=http) as client:
            watch.prof.instrument(client)
            with watch.prof.loop("x"):
                return await runner.run(client, PARAMS, **({"stream": True, "eager": True} if eager else {}))

    assert asyncio.run(main()).output_text == "done"
    assert sorted(watch.calls()) == [("get_weather", id_, "ok") for id_, _ in CALLS]


def test_failing_tool_of_openais_runner_ends_it_as_it_does_unwatched(watch: Any) -> None:
    def fails(arguments: Any) -> str:
        raise LookupError(arguments["city"])

    errors = []
    for watched in (True, False):
        if not watched:
            watch.tools.uninstall()
        runner = responses.ResponsesToolRunner(functions=[responses.RegisteredFunction(SCHEMA, fails)])
        with openai.OpenAI(api_key="k", http_client=httpx2.Client(transport=Model())) as client:
            watch.prof.instrument(client)
            with watch.prof.loop("x"), pytest.raises(responses.ToolRunnerError) as caught:
                runner.run(client, PARAMS)
        errors.append(str(caught.value))
    assert errors[0] == errors[1]
    (call,) = watch.records[0].tool_calls
    assert (call.name, call.id, call.status, call.error_type) == ("get_weather", "c1", "error", "LookupError")
    assert list(watch.records[1].tool_calls) == []


def test_member_of_a_toolset(watch: Any) -> None:
    class Toolset(toolsets.BetaRunnableToolset):
        toolset_name = "browser"

        def to_dict(self) -> Any:
            return {"type": "browser_toolset_20260801"}

        def call(self, context: Any, name: str, input: Any) -> str:
            return f"{name} {input['name']}"

    block = anthropic.types.beta.BetaToolUseBlock(
        id="c1", name="open", input={"name": "page"}, type="tool_use", toolset_name="browser"
    )
    with watch.prof.loop("x") as loop:
        round_ = loop.begin_round("anthropic", "m")
        round_.unclaimed += [
            (CallRequest("c0", "open", '{"name": "other"}'), 0),
            (CallRequest("c1", "open", '{"name": "page"}'), 0),
        ]
        result = Toolset().tool_result(block)
    assert result["tool_use_id"] == "c1"
    assert "open page" in json.dumps(result)
    assert [(call.name, call.id, call.status) for call in watch.records[0].tool_calls] == [
        ("open", "c1", "ok")
    ]


METHODS = [
    (messages.BaseSyncToolRunner, "_run_tool"),
    (messages.BaseAsyncToolRunner, "_run_tool"),
    (responses.ResponsesToolRunner, "_execute_function"),
    (responses.AsyncResponsesToolRunner, "_execute_function"),
]


def test_runners_are_patched_once_and_put_back() -> None:
    originals = [vars(kind)[name] for kind, name in METHODS]
    one, two = (RunnerTools(lambda function, name: function, Boundary()) for _ in range(2))
    one.install()
    patched = [vars(kind)[name] for kind, name in METHODS]
    assert all(new is not old for new, old in zip(patched, originals, strict=True))
    two.install()
    assert [vars(kind)[name] for kind, name in METHODS] == patched
    one.uninstall()
    one.uninstall()
    assert [vars(kind)[name] for kind, name in METHODS] == patched
    two.uninstall()
    assert [vars(kind)[name] for kind, name in METHODS] == originals


def test_module_that_is_imported_later_is_patched_then(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["openai.lib.responses_tool_runner"]
    original = vars(responses.ResponsesToolRunner)["_execute_function"]
    monkeypatch.delitem(sys.modules, "openai.lib.responses_tool_runner")
    tools = RunnerTools(lambda function, name: function, Boundary())
    tools.install()
    assert vars(responses.ResponsesToolRunner)["_execute_function"] is original
    monkeypatch.setitem(sys.modules, "openai.lib.responses_tool_runner", module)
    tools.install()
    assert vars(responses.ResponsesToolRunner)["_execute_function"] is not original
    tools.uninstall()
    assert vars(responses.ResponsesToolRunner)["_execute_function"] is original


def test_failure_of_watching_leaves_the_tool_as_it_is() -> None:
    boundary = Boundary()

    def fails(function: Any, name: str) -> Any:
        raise RuntimeError("ours")

    tools = RunnerTools(fails, boundary)
    tools.install()
    try:
        model = Model()
        with anthropic.Anthropic(api_key="k", http_client=httpx2.Client(transport=model)) as client:
            tool = anthropic.beta_tool(get_weather)
            message = client.beta.messages.tool_runner(**QUESTION, tools=[tool]).until_done()
        assert message.content[0].text == "done"
        assert model.results == [("c1", False), ("c2", False), ("c3", True)]
        with openai.OpenAI(api_key="k", http_client=httpx2.Client(transport=model)) as openai_client:
            runner = responses.ResponsesToolRunner(functions=[responses.RegisteredFunction(SCHEMA, execute)])
            assert runner.run(openai_client, PARAMS).output_text == "done"
    finally:
        tools.uninstall()
    assert boundary.failures["tool"] == 6


def test_auto_watches_the_tools_of_runners_and_says_so() -> None:
    records: list[Any] = []
    prof = Profiler([records.append]).auto()
    try:
        http = httpx2.Client(transport=Model())
        with anthropic.Anthropic(api_key="k", http_client=http) as client, prof.loop("x"):
            tool = anthropic.beta_tool(get_weather)
            client.beta.messages.tool_runner(**QUESTION, tools=[tool]).until_done()
        said = [str(one) for one in prof.found if one.kind == "tool"]
    finally:
        prof.stop()
    assert [(call.name, call.id, call.status) for call in records[0].tool_calls] == SEEN
    line = get_weather.__code__.co_firstlineno
    assert len(said) == 1
    assert said[0].startswith("get_weather (")
    assert said[0].endswith(f"test_watch_runners.py:{line})")


def test_older_runner_calls_tools_itself(watch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no method that runs one tool: the tools' own is watched."""
    watch.tools.uninstall()
    monkeypatch.setattr(messages, "BaseSyncToolRunner", object)
    monkeypatch.setattr(messages, "BaseAsyncToolRunner", object)
    watch.tools.install()
    model = Model()
    with anthropic.Anthropic(api_key="k", http_client=httpx2.Client(transport=model)) as client:
        watch.prof.instrument(client)
        with watch.prof.loop("x"):
            tool = anthropic.beta_tool(get_weather)
            client.beta.messages.tool_runner(**QUESTION, tools=[tool]).until_done()
    assert model.results == [("c1", False), ("c2", False), ("c3", True)]
    assert watch.calls() == SEEN
