"""The "Tool loops" page in Locust's web server: live in a browser, equal to the records."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from profiler.process.ports import free_port
from tests.integration.browser import chromium, screenshot, serious, watched
from tests.integration.locust_process import Locust, locust, wait_until


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Locust]:
    with locust(tmp_path) as found:
        yield found


def get(url: str, form: str | None = None) -> bytes:
    data = None if form is None else form.encode()
    with urllib.request.urlopen(url, data, timeout=30) as answer:
        return bytes(answer.read())


def answers(url: str) -> bool:
    try:
        get(url)
    except (urllib.error.URLError, ConnectionError):
        return False
    return True


def start(processes: Locust, *arguments: str) -> tuple[Any, str]:
    port = free_port()
    process = processes.start("--web-port", str(port), "--web-host", "127.0.0.1", *arguments)
    root = f"http://127.0.0.1:{port}"
    assert wait_until(lambda: answers(f"{root}/login" if "--web-login" in arguments else root), 60)
    return process, root


def loops(page: Any) -> dict[str, int]:
    """Strategy → loops, as the page shows them."""
    rows = page.locator("#strategies tbody tr").all()
    return {row.locator("th").inner_text(): int(row.locator("td").first.inner_text()) for row in rows}


def test_live_in_a_browser_and_equal_to_the_records(processes: Locust) -> None:
    with chromium() as browser, watched(browser, offline=False) as seen:
        arguments = ("--strategy", "gathered,sequential", "--trial-seconds", "2", "--blocks", "1")
        process, root = start(processes, *arguments)
        page = seen.page
        page.goto(f"{root}/tool-loops")
        assert "No test was started yet" in page.locator("#facts").inner_text()
        get(f"{root}/swarm", "user_count=8&spawn_rate=8")
        page.wait_for_selector("#strategies tbody tr")
        first = loops(page)
        page.wait_for_function(
            "(n) => +document.querySelector('#strategies tbody td').textContent > n", arg=max(first.values())
        )
        page.wait_for_function("document.querySelectorAll('#strategies tbody tr').length === 2")
        assert page.locator("#now dd").nth(0).inner_text() == "8"
        assert serious(page) == []
        screenshot(page, "locust-tool-loops")

        # Locust's own UI has a tab with the same rows, and links the page.
        page.goto(f"{root}/?tab=tool-loops")
        page.get_by_role("tab", name="Tool loops").click()
        page.get_by_role("cell", name="sequential", exact=True).wait_for()
        screenshot(page, "locust-tab")
        page.get_by_role("tab", name="Download Data").click()
        assert page.locator("a[href='/tool-loops']").count() == 1

        def state() -> str:
            return str(json.loads(get(f"{root}/stats/requests"))["state"])

        assert wait_until(lambda: state() in ("stopped", "ready"), 60)
        records = list(processes.directory().records())
        counts = {s: sum(r.strategy == s for r in records) for s in ("gathered", "sequential")}
        page.goto(f"{root}/tool-loops")
        page.wait_for_selector("#strategies tbody tr")
        assert loops(page) == counts
        own = json.loads(get(f"{root}/stats/requests"))
        assert {row["name"]: row["num_requests"] for row in own["stats"] if row["method"] == "LOOP"} == counts
        assert {row["strategy"]: row["loops"] for row in own["extended_stats"][0]["data"]} == counts
        data = json.loads(get(f"{root}/tool-loops/data"))
        calls = [call for record in records for call in record.tool_calls]
        assert sum(tool["calls"] for tool in data["tools"]) == len(calls)

        page.goto(f"{root}/tool-loops/report")
        page.wait_for_selector("html[data-ready]", state="attached")
        assert page.locator("#table-strategies tbody tr").count() == 2
        assert seen.complaints == []
        process.terminate()
        processes.end(process)


LOGIN = """
from flask import redirect
from flask_login import UserMixin, login_user
from locust import events

from locustfiles.compare import Agent


class Someone(UserMixin):
    def get_id(self):
        return "someone"


@events.init.add_listener
def with_login(environment, **_):
    ui = environment.web_ui
    ui.app.secret_key = "not a secret"
    ui.login_manager.user_loader(lambda _: Someone())
    ui.auth_args = {"username_password_callback": "/authenticate"}

    @ui.app.route("/authenticate")
    def authenticate():
        login_user(Someone())
        return redirect("/")
"""


def test_behind_the_login(processes: Locust) -> None:
    file = processes.path / "with_login.py"
    file.write_text(LOGIN)
    process, root = start(processes, "--web-login", "-f", str(file))
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    for path in ("/tool-loops", "/tool-loops/data", "/tool-loops/report"):
        with opener.open(f"{root}{path}", timeout=60) as answer:
            assert "/login" in answer.url
            assert b"toolcall-profiler" not in answer.read()
    opener.open(f"{root}/authenticate", timeout=60).close()
    with opener.open(f"{root}/tool-loops", timeout=60) as answer:
        assert answer.url == f"{root}/tool-loops"
        assert b"<h1>Tool loops</h1>" in answer.read()
    with opener.open(f"{root}/tool-loops/data", timeout=60) as answer:
        assert json.loads(answer.read())["strategies"] == []
    process.terminate()
    processes.end(process)
