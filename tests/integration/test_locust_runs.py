"""`locust -f locustfiles/compare.py` in every way it is run, on real sockets."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

from profiler.emulator.process import start_emulator
from profiler.load.options import DEFAULT_STRATEGIES
from profiler.process.ports import free_port
from profiler.rundir import RunDirectory
from tests.integration.locust_process import Locust, check_trials, csv_counts, locust, wait_until

UNPATCHED = {"LOCUST_SKIP_MONKEY_PATCH": "1"}
INSTANT = ("--scenario", "instant", "-u", "8", "-r", "8")
STRATEGIES = {spec.text for spec in DEFAULT_STRATEGIES}


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Locust]:
    with locust(tmp_path) as running:
        yield running


@pytest.fixture
def patched_or_not(tmp_path: Path) -> Iterator[dict[str, Locust]]:
    """Two directories, for Locust as it comes and without its monkey patching, side by side."""
    with contextlib.ExitStack() as stack:
        places = {name: tmp_path / name for name in ("patched", "unpatched")}
        for place in places.values():
            place.mkdir()
        yield {name: stack.enter_context(locust(place)) for name, place in places.items()}


def run_both(both: dict[str, Locust], arguments: Callable[[], list[str]]) -> dict[str, str]:
    """Both at the same time, which halves the wait; what each of them said."""
    environments = {"patched": {}, "unpatched": UNPATCHED}
    started = {
        name: one.start("--headless", *arguments(), **environments[name]) for name, one in both.items()
    }
    outputs = {}
    for name, process in started.items():
        code, outputs[name] = both[name].end(process)
        assert code == 0, outputs[name]
        assert both[name].left() == []
    return outputs


def test_alone_headless_within_its_run_time(patched_or_not: dict[str, Locust]) -> None:
    run_both(patched_or_not, lambda: [*INSTANT, "-t", "10s", "--csv", "stats"])
    for processes in patched_or_not.values():
        directory = processes.directory()
        run, records = directory.load(), list(directory.records())
        check_trials(run, records, STRATEGIES)
        assert run.finished
        assert (run.load.users, run.workers, run.model) == (8, 1, "gpt-4o")
        took_ns = run.trials[-1].drained_ns - run.trials[0].started_ns
        assert took_ns < 28e9  # three turns of 10 s would be more
        measured = sum(trial.ended_ns - trial.started_ns for trial in run.trials)
        assert measured > 1e9
        # Locust's own figures and the records are the same loops, rounds and calls.
        counts = csv_counts(processes.path / "stats")
        loops = Counter(record.strategy for record in records)
        calls = Counter(
            f"{record.strategy} · {call.name}" for record in records for call in record.tool_calls
        )
        rounds = sum(len(record.rounds) for record in records)
        assert {name: n for (kind, name), n in counts.items() if kind == "LOOP"} == loops
        assert {name: n for (kind, name), n in counts.items() if kind == "TOOL"} == calls
        assert sum(n for (kind, _), n in counts.items() if kind == "ROUND") == rounds
        assert sum(n for (kind, _), n in counts.items() if kind == "MODEL") == rounds


def test_a_run_that_is_over_before_all_users_are_there_says_so(processes: Locust) -> None:
    arguments = ("--scenario", "instant", "-u", "30", "-t", "2s", "--calibrate", "0")
    code, said = processes.end(processes.start("--headless", *arguments))
    assert code == 1
    assert "stopped before all users were there: nothing was measured; spawn them faster (-r)" in said
    run = processes.directory().load()
    assert (run.trials, run.finished) == ((), False)


def test_with_forked_workers(patched_or_not: dict[str, Locust]) -> None:
    def arguments() -> list[str]:
        port = str(free_port())
        return [
            *INSTANT, "--blocks", "1", "--trial-seconds", "1", "--strategy", "gathered,semaphore:2",
            "--provider", "anthropic",
            "--csv", "stats", "--processes", "2", "--master-bind-port", port, "--master-port", port,
        ]  # fmt: skip

    outputs = run_both(patched_or_not, arguments)
    for name, processes in patched_or_not.items():
        assert "semaphore:2: 2 per process × 2 processes = up to 4 calls at once" in outputs[name]
        directory = processes.directory()
        run, records = directory.load(), list(directory.records())
        check_trials(run, records, {"gathered", "semaphore:2"})
        assert run.workers == 2
        assert len({record.process for record in records}) == 2
        for process in {record.process for record in records}:
            assert len({r.number % 2 for r in records if r.process == process and r.number is not None}) == 1
        counts = csv_counts(processes.path / "stats")
        loops = Counter(record.strategy for record in records)
        assert {row: n for (kind, row), n in counts.items() if kind == "LOOP"} == loops


def test_master_and_worker_and_a_worker_that_is_not_patched(processes: Locust) -> None:
    port = str(free_port())
    master = processes.start(
        "--headless", "--master", "--master-bind-port", port, "--expect-workers", "2", *INSTANT,
        "--blocks", "1", "--trial-seconds", "1", "--strategy", "gathered",
    )  # fmt: skip
    workers = [
        processes.start("--worker", "--master-port", port),
        processes.start("--worker", "--master-port", port, **UNPATCHED),
    ]
    code, output = processes.end(master)
    assert code == 0, output
    assert [processes.end(worker)[0] for worker in workers] == [0, 0]
    assert processes.all_left_within(15)
    directory = processes.directory()
    records = list(directory.records())
    check_trials(directory.load(), records, {"gathered"})
    assert len({record.process for record in records}) == 2


def test_https_with_a_private_authority(patched_or_not: dict[str, Locust], tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    roots, key, chain = (tmp_path / name for name in ("ca.pem", "key.pem", "chain.pem"))
    authority.cert_pem.write_to_path(str(roots))
    certificate.private_key_pem.write_to_path(str(key))
    for pem in certificate.cert_chain_pems:
        pem.write_to_path(str(chain), append=True)
    with start_emulator("instant", tls_cert=chain, tls_key=key) as emulator:
        assert emulator.url.startswith("https://")
        arguments = [
            *INSTANT, "--blocks", "1", "--trial-seconds", "1", "--strategy", "gathered",
            "--base-url", f"{emulator.url}/v1",
        ]  # fmt: skip
        environments = {"patched": {}, "unpatched": UNPATCHED}
        started = {
            name: one.start("--headless", *arguments, SSL_CERT_FILE=str(roots), **environments[name])
            for name, one in patched_or_not.items()
        }
        for name, processes in patched_or_not.items():
            code, output = processes.end(started[name])
            assert code == 0, output
            records = list(processes.directory().records())
            assert {record.status for record in records} == {"ok"}
            assert {call.status for record in records for call in record.tool_calls} == {"ok"}
        # Without the authority nothing is trusted, and that is said.
        processes = patched_or_not["patched"]
        code, output = processes.run(*INSTANT, "-t", "1s", "--base-url", emulator.url)
        assert code == 3, output
    assert all(processes.all_left_within(15) for processes in patched_or_not.values())


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--base-url", "https://api.example.com"], 2, "needs --allow-remote"),
        (["--strategy", "serial"], 2, "unknown strategy 'serial'"),
        (["--scenario", "no-such"], 2, "no-such"),
        (["--base-url", "http://127.0.0.1:9"], 3, "openai"),
    ],
)
def test_what_cannot_be_ends_with_one_line(
    processes: Locust, arguments: list[str], code: int, said: str
) -> None:
    got, output = processes.run("-u", "2", "-t", "2s", "--loglevel", "WARNING", *arguments)
    assert got == code
    lines = [line for line in output.splitlines() if said in line]
    assert len(lines) == 1, output
    assert lines[0].startswith("locust: error: ")
    assert processes.all_left_within(15)


def test_what_cannot_be_is_refused_before_anything_is_logged_or_served(processes: Locust) -> None:
    code, output = processes.end(processes.start("--strategy", "serial", "--web-port", str(free_port())))
    assert code == 2
    (line,) = output.splitlines()
    assert line.startswith("locust: error: --strategy: unknown strategy 'serial'")


def test_killed_master_takes_its_workers_and_the_emulator_along(processes: Locust) -> None:
    port = str(free_port())
    forking = processes.start(
        "--headless",
        *INSTANT,
        "-t",
        "60s",
        "--processes",
        "2",
        "--master-bind-port",
        port,
        "--master-port",
        port,
    )
    other = str(free_port())
    master = processes.start(
        "--headless", "--master", "--master-bind-port", other, "--expect-workers", "1", *INSTANT, "-t", "60s"
    )
    processes.start("--worker", "--master-port", other)
    runs = processes.path / "runs"
    assert wait_until(lambda: sum(f.stat().st_size > 0 for f in runs.glob("*/records.jsonl")) == 2, 60)
    assert len(processes.left()) == 7  # two masters, three workers, two emulators
    forking.kill()
    master.kill()
    assert processes.all_left_within(15)


def test_interrupted_it_drains_and_keeps_what_it_has(processes: Locust) -> None:
    process = processes.start(
        "--headless", "--scenario", "cities", "-u", "4", "-r", "4", "--strategy", "gathered"
    )
    runs = processes.path / "runs"
    assert wait_until(lambda: any(f.stat().st_size > 0 for f in runs.glob("*/records.jsonl")), 60)
    os.kill(process.pid, signal.SIGINT)
    code, output = processes.end(process)
    assert code == 0, output
    directory = processes.directory()
    run, records = directory.load(), list(directory.records())
    assert not run.finished
    assert [incident.kind for incident in run.incidents] == ["interrupted"]
    assert [trial.interrupted for trial in run.trials] == [0]
    assert {record.status for record in records} == {"ok"}
    assert processes.all_left_within(15)


def test_interrupted_at_the_terminal_twice_it_cuts_off_and_keeps_what_it_has(processes: Locust) -> None:
    """An interrupt at a terminal reaches the workers as well as their master."""
    port = str(free_port())
    process = processes.start(
        "--headless", "--scenario", "cities", "-u", "4", "-r", "4", "--strategy", "sequential",
        "--processes", "2", "--master-bind-port", port, "--master-port", port,
    )  # fmt: skip
    runs = processes.path / "runs"
    assert wait_until(lambda: any(f.stat().st_size > 0 for f in runs.glob("*/records.jsonl")), 60)
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)
    start = time.monotonic()
    code, output = processes.end(process)
    assert time.monotonic() - start < 15  # a drain would be 30
    assert code in (0, 1), output  # Locust's 1 says that there were failures: what was cut off
    directory = processes.directory()
    run, records = directory.load(), list(directory.records())
    assert [incident.kind for incident in run.incidents] == ["interrupted"]
    assert len(run.trials) == 1
    assert {record.status for record in records} <= {"ok", "cancelled"}
    assert processes.all_left_within(15)


def test_web_ui_starts_stops_and_starts_again(processes: Locust) -> None:
    web, metrics = free_port(), free_port()
    process = processes.start(
        "--web-port", str(web), "--web-host", "127.0.0.1", "--metrics-port", str(metrics)
    )

    def ask(path: str, form: str | None = None) -> str:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{web}{path}", None if form is None else form.encode(), timeout=60
        ) as response:  # a stop may last as long as loops may take to drain
            text: str = response.read().decode()
            return text

    def loops() -> dict[str, int]:
        stats = json.loads(ask("/stats/requests"))["stats"]
        return {row["name"]: row["num_requests"] for row in stats if row["method"] == "LOOP"}

    def stopped() -> bool:
        return str(json.loads(ask("/stats/requests"))["state"]) == "stopped"

    def reachable() -> bool:
        try:
            return bool(ask("/"))
        except OSError:
            return False

    assert wait_until(reachable, 60)
    page = ask("/")
    for option in ("strategy", "provider", "scenario", "base_url", "tools_url", "model"):
        assert f'"{option}"' in page
    form = "user_count=4&spawn_rate=4&scenario=instant&trial_seconds=0.5"
    ask("/swarm", f"{form}&strategy=gathered,sequential")
    assert wait_until(lambda: set(loops()) == {"gathered", "sequential"}, 60)
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics}/metrics", timeout=60) as response:
        assert 'strategy="gathered"' in response.read().decode()
    ask("/stop", "")
    assert wait_until(stopped, 60)  # Locust's page may be some seconds old
    ask("/swarm", f"{form}&strategy=semaphore:2&run_time=2s")
    assert wait_until(lambda: set(loops()) == {"semaphore:2"}, 60)
    assert wait_until(stopped, 60)
    ask("/swarm", f"{form}&strategy=sequential")
    assert wait_until(lambda: set(loops()) == {"sequential"}, 60)
    time.sleep(3.0)
    assert not stopped()  # the run time of the test before is not this one's
    ask("/stop", "")
    assert wait_until(stopped, 60)
    start = time.monotonic()
    process.send_signal(signal.SIGTERM)
    processes.end(process)
    assert time.monotonic() - start < 20
    assert processes.all_left_within(15)
    runs = [RunDirectory.open(path).load() for path in sorted((processes.path / "runs").iterdir())]
    assert [{trial.strategy for trial in run.trials} for run in runs] == [
        {"gathered", "sequential"},
        {"semaphore:2"},
        {"sequential"},
    ]
    assert sum(trial.interrupted for run in runs for trial in run.trials) == 0
