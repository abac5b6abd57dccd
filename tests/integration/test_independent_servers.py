"""`profiler compare`, end to end, against mocks of the model APIs that other people wrote.

fakellm speaks Chat Completions and Messages, llm-mock-api these and Responses. Each asks for three calls,
then answers. They come with the optional dependencies `frameworks`; where they are missing the tests are
skipped, on CI (CI=true) they fail.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from profiler.process.ports import free_port
from profiler.records import LoopRecord, read

SCENARIO = """
description = "two tools of 20 ms; the model is a mock that scripts its calls itself"
prompt = "Trip {number}: compare a few cities."

[model]
first_token = 0.01
tokens_per_second = 5000

[loop]
rounds = 1
fan_out = 3

[tools.get_weather]
description = "Current weather of a city."
duration = 0.02
parameters = { type = "object", required = ["city"], properties = { city = { type = "string" } } }

[tools.get_population]
description = "Number of inhabitants of a city."
duration = 0.02
parameters = { type = "object", required = ["city"], properties = { city = { type = "string" } } }
"""

CALLS = [("get_weather", "Tokyo"), ("get_weather", "Paris"), ("get_population", "Zürich 東京")]
ANSWER = "Tokyo is warmer than Paris."

FAKELLM = {  # JSON is YAML
    "version": 1,
    "rules": [
        {"name": "chat", "when": {"previous_message_role": "tool"}, "respond": {"content": ANSWER}},
        {"name": "messages", "when": {"previous_message_role": "assistant"}, "respond": {"content": ANSWER}},
        {
            "name": "calls",
            "respond": {"tool_calls": [{"name": n, "arguments": {"city": c}} for n, c in CALLS]},
        },
    ],
}
LLM_MOCK_API = {  # JSON is JSON5; it asks again whenever tools are offered, so a loop has one round of calls
    "fallback": ANSWER,
    "rules": [
        {
            "when": {"message": "compare", "tool_name": "get_weather"},
            "reply": {"text": "I ask.", "tools": [{"name": n, "args": {"city": c}} for n, c in CALLS]},
        }
    ],
}


def needed(program: str) -> str:
    """Where an installed program is. Missing, it fails a test in CI; elsewhere the test is skipped."""
    found = shutil.which(program, path=str(Path(sys.executable).parent))
    if found is None:
        what = f"{program} is not installed: pip install -e '.[frameworks]'"
        if os.environ.get("CI") == "true":
            pytest.fail(what)
        pytest.skip(what)
    return found


@contextmanager
def serving(command: Sequence[str], alive: str) -> Iterator[str]:
    """Start a server on a free port, which is added to its command; its URL, once `alive` is answered."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen([*command, str(port)], stdout=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    urllib.request.urlopen(url + alive, timeout=5).close()
                    break
                except urllib.error.HTTPError:
                    break  # it answers
                except OSError:
                    assert process.poll() is None, f"{command[0]} ended with {process.returncode}"
                    assert time.monotonic() < deadline, f"{command[0]} does not listen"
                    time.sleep(0.1)
            yield url
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def fakellm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    program = needed("fakellm")
    config = tmp_path_factory.mktemp("fakellm") / "fakellm.yaml"
    config.write_text(json.dumps(FAKELLM))
    with serving([program, "serve", "--config", str(config), "--port"], "/_fakellm/stats") as url:
        yield url


@pytest.fixture(scope="module")
def llm_mock_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    program = needed("llm-mock-api")
    rules = tmp_path_factory.mktemp("llm-mock-api") / "rules.json5"
    rules.write_text(json.dumps(LLM_MOCK_API))
    with serving([program, "start", "--latency", "0", "--rules", str(rules), "--port"], "/") as url:
        yield url


@pytest.fixture
def compare(tmp_path: Path) -> Callable[..., list[LoopRecord]]:
    """Runs the command; what its records say, after it said that no loop failed."""
    scenario = tmp_path / "mocked.toml"
    scenario.write_text(SCENARIO)

    def run(url: str, provider: str, *options: str) -> list[LoopRecord]:
        command = [sys.executable, "-m", "profiler", "compare", "--base-url", url, "--provider", provider]
        command += ["--scenario", str(scenario), "--max-rounds", "1", "--users", "3", "--duration", "1s"]
        command += ["--strategy", "sequential", "--strategy", "gathered", "--blocks", "2", "--calibrate", "0"]
        command += ["--no-metrics", "--allow-saturated", "--record-content", "--json", "--out", str(tmp_path)]
        keys = {"OPENAI_API_KEY": "k", "ANTHROPIC_API_KEY": "k"}
        done = subprocess.run(
            [*command, *options], capture_output=True, text=True, timeout=100, env=os.environ | keys
        )
        assert done.returncode == 0, done.stderr
        summary = json.loads(done.stdout)
        assert set(failed(summary)) == {0}, summary
        (directory,) = (path for path in tmp_path.iterdir() if path.is_dir())
        return list(read(directory / "records.jsonl"))

    return run


def failed(summary: dict[str, Any]) -> list[int]:
    """The loops that failed, of each strategy."""
    return [strategy["loops"]["failed"] for strategy in summary["strategies"]]


def check(records: Sequence[LoopRecord], streamed: bool) -> None:
    """Every loop asked, ran the three calls and was answered."""
    assert len(records) > 20
    assert Counter((record.outcome, len(record.rounds)) for record in records) == {("ok", 2): len(records)}
    for record in records:
        asked = [
            (call.name, json.loads(call.arguments or "")["city"]) for call in record.rounds[0].tool_calls
        ]
        assert asked == CALLS
        assert len({call.id for call in record.tool_calls}) == 3
        assert record.text == ANSWER
        for round_ in record.rounds:
            assert round_.model.streamed == streamed
            assert round_.model.unreadable == 0
            assert (round_.model.first_output_ns is not None) == streamed


@pytest.mark.parametrize(("provider", "streamed"), [("openai", False), ("anthropic", True)])
def test_fakellm(fakellm: str, compare: Any, provider: str, streamed: bool) -> None:
    before = asked(fakellm)
    records = compare(fakellm, provider, *["--stream"] * streamed)
    check(records, streamed)
    attempts = sum(len(round_.model.attempts) for record in records for round_ in record.rounds)
    warm_up = 1  # a first request, which is recorded nowhere
    assert asked(fakellm) - before == attempts + warm_up


def asked(url: str) -> int:
    """The requests that fakellm has counted."""
    with urllib.request.urlopen(f"{url}/_fakellm/stats", timeout=60) as answer:
        return int(json.load(answer)["total_requests"])


@pytest.mark.parametrize(
    ("provider", "streamed"), [("openai", True), ("openai-responses", True), ("anthropic", False)]
)
def test_llm_mock_api(llm_mock_api: str, compare: Any, provider: str, streamed: bool) -> None:
    check(compare(llm_mock_api, provider, *["--stream"] * streamed), streamed)
