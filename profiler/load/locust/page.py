"""The "Tool loops" page in Locust's own web server: the run so far, live, and its report.

A Locust file adds it with `install(events)`, after its users. Through the extension points of Locust's UI
(`extended_tabs`, `extended_tables`, `extended_csv_files`) it has a tab with a row per strategy there, and is
linked beside the downloads. With `--web-login`, everything is behind the login.

So that neither costs the loops much, the page reads the run directory only while somebody looks, and the
report is made in a process of its own.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gevent
import orjson
from flask import Blueprint, Response, request
from gevent.lock import Semaphore

from profiler.report.text import duration, percent

if TYPE_CHECKING:
    from profiler.report.running import RunningTotals

ASSETS = Path(__file__).parents[2] / "report" / "html" / "assets"

PATH = "/tool-loops"
KEY = "tool-loops"
TITLE = "Tool loops"

COLUMNS = {
    "strategy": "Strategy",
    "loops": "# Loops",
    "failed": "# Fails",
    "incomplete": "# Incomplete",
    "p50": "Median",
    "p95": "95%ile",
    "model": "Model",
    "tools": "Tools",
    "queue": "Queue",
}
"""Columns of the tab: keys of `row` → what the table says, in Locust's words."""

REPORT_SECONDS = 120.0
"""How long making the report may take."""


def install(events: Any) -> None:
    """Add the page wherever Locust has a web UI."""

    def on_init(environment: Any, **_: Any) -> None:
        if environment.web_ui is not None:
            Page(environment)

    events.init.add_listener(on_init)


class Page:
    """The page of one Locust process that has a web UI: the only process, or the master."""

    def __init__(self, environment: Any) -> None:
        self._environment = environment
        self._run: RunningTotals | None = None
        self._turn = Semaphore()
        self._reporting = Semaphore()
        environment.events.test_start.add_listener(self._on_test_start)
        ui = environment.web_ui
        options = environment.parsed_options
        prefix = (getattr(options, "web_base_path", None) or "").rstrip("/")
        pages = Blueprint("tool_loops", __name__, url_prefix=prefix)
        for path, view in (("", self._page), ("/data", self._data), ("/report", self._report)):
            name = f"{KEY}{path}".replace("/", "_")
            pages.add_url_rule(f"{PATH}{path}", name, ui.auth_required_if_enabled(view))
        columns = [{"key": key, "title": title} for key, title in COLUMNS.items()]
        ui.app.register_blueprint(pages)
        ui.app.after_request(self._extend)
        ui.template_args = {
            **ui.template_args,
            "extended_tabs": [{"title": TITLE, "key": KEY}],
            "extended_tables": [{"key": KEY, "structure": columns}],
            "extended_csv_files": [
                {"href": f"{prefix}{PATH}", "title": "Tool loops: the live page, and the report"}
            ],
        }

    def _on_test_start(self, **_: Any) -> None:
        from profiler.report.running import RunningTotals

        path = self._environment.toolcall_session.run_directory
        if path is not None:
            self._run = RunningTotals(path)

    def _follow(self) -> dict[str, Any]:
        """The data of now. One greenlet at a time reads the records; others wait for it."""
        run = self._run
        if run is None:
            return {"now": None, "progress": [], "strategies": [], "tools": [], "notes": []}
        with self._turn:
            for _ in run.catch_up():
                gevent.sleep(0)  # the records may be many: other greenlets run in between
            return {**run.data(), "notes": list(run.notes())}

    # Views:

    def _page(self) -> Response:
        return Response(live_page(), mimetype="text/html")

    def _data(self) -> Response:
        return Response(orjson.dumps(self._follow()), mimetype="application/json")

    def _report(self) -> Response:
        run = self._run
        if run is None:
            return Response("No test was started yet.", status=404, mimetype="text/plain")
        with self._reporting, tempfile.TemporaryDirectory() as scratch:
            out = Path(scratch) / "report.html"
            problem = make_report(run.directory, out)
            if problem is not None:
                return Response(problem, status=503, mimetype="text/plain")
            return Response(out.read_bytes(), mimetype="text/html")

    def _extend(self, response: Any) -> Any:
        """Give Locust's own page the rows of our tab, which it asks for with its statistics."""
        if request.endpoint == "locust.request_stats" and response.is_json and response.status_code == 200:
            rows = [row(one) for one in self._follow()["strategies"]]
            body = response.get_json()
            body["extended_stats"] = [{"key": KEY, "data": rows}]
            response.set_data(orjson.dumps(body))
        return response


def row(strategy: dict[str, Any]) -> dict[str, Any]:
    """A strategy as Locust's table shows it."""
    phases = strategy["phases"]
    mean = sum(phases.values())
    return {
        "strategy": strategy["name"],
        **{name: strategy[name] for name in ("loops", "failed", "incomplete")},
        **{name: duration(strategy[name]) for name in ("p50", "p95")},
        **{name: percent(phases[name] / mean) if mean else "–" for name in ("model", "tools", "queue")},
    }


def make_report(directory: Path, out: Path) -> str | None:
    """Make a report in a process of its own; returns what went wrong, None if nothing did."""
    from gevent import subprocess

    command = [sys.executable, "-P", "-m", "profiler", "report", str(directory), "-o", str(out)]
    try:
        made = subprocess.run(command, capture_output=True, timeout=REPORT_SECONDS)
    except subprocess.TimeoutExpired:
        return f"The report was not ready after {REPORT_SECONDS:.0f} s."
    if made.returncode:
        lines = made.stderr.decode(errors="replace").strip().splitlines()
        reason = lines[-1].removeprefix("profiler: ") if lines else "no reason given"
        return f"The report could not be made: {reason}"
    return None


def live_page() -> str:
    """The HTML of the page, which then asks for its data."""
    template = (ASSETS / "live.html").read_text("utf-8")
    for mark, file in (("styles", "report.css"), ("format", "format.js"), ("live", "live.js")):
        template = template.replace(f"/* {mark} */", (ASSETS / file).read_text("utf-8"))
    return template
