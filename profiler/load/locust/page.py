"""The "Tool loops" page in Locust's own web server: the run so far, live, and its report.

A Locust file adds it with `install(events)`, after what the load registers. Locust's UI shows a tab
with a row per strategy, and links the page beside its downloads: these are its extension points
(`extended_tabs`, `extended_tables`, `extended_csv_files`). Everything is behind the login when
`--web-login` is on.

The page reads the run directory, and only while somebody looks; the report is made in a process
of its own, so that neither costs the loops much.
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

COLUMNS = (
    ("strategy", "Strategy"),
    ("loops", "# Loops"),
    ("failed", "# Fails"),
    ("incomplete", "# Incomplete"),
    ("p50", "Median"),
    ("p95", "95%ile"),
    ("model", "Model"),
    ("tools", "Tools"),
    ("queue", "Queue"),
)

REPORT_SECONDS = 120.0
REPORT = "tool-loops.html"


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
        for path, view in (
            (PATH, self._page),
            (f"{PATH}/data", self._data),
            (f"{PATH}/report", self._report),
        ):
            pages.add_url_rule(path, path.replace("/", "_"), ui.auth_required_if_enabled(view))
        ui.app.register_blueprint(pages)
        ui.app.after_request(self._extend)
        ui.template_args = {
            **ui.template_args,
            "extended_tabs": [{"title": TITLE, "key": KEY}],
            "extended_tables": [
                {"key": KEY, "structure": [{"key": key, "title": title} for key, title in COLUMNS]}
            ],
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
        """The data of now. One greenlet at a time reads; the others wait for it."""
        run = self._run
        if run is None:
            return {"now": None, "progress": [], "strategies": [], "tools": []}
        with self._turn:
            for _ in run.catch_up():
                gevent.sleep(0)
            return run.data()

    # Views; Locust asks for the login first.

    def _page(self) -> Response:
        return Response(live_page(), mimetype="text/html")

    def _data(self) -> Response:
        return Response(orjson.dumps(self._follow()), mimetype="application/json")

    def _report(self) -> Response:
        run = self._run
        if run is None:
            return Response("No test was started yet.", status=404, mimetype="text/plain")
        with self._reporting, tempfile.TemporaryDirectory() as scratch:
            out = Path(scratch) / REPORT
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
    mean = sum(strategy["phases"].values())
    shares = {
        phase: percent(strategy["phases"][phase] / mean) if mean else "–"
        for phase in ("model", "tools", "queue")
    }
    return {
        "strategy": strategy["name"],
        "loops": strategy["loops"],
        "failed": strategy["failed"],
        "incomplete": strategy["incomplete"],
        "p50": duration(strategy["p50"]),
        "p95": duration(strategy["p95"]),
        **shares,
    }


def make_report(directory: Path, out: Path) -> str | None:
    """Make a report in a process of its own; returns what went wrong, or None."""
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
    """The page, which asks for its data."""
    template = (ASSETS / "live.html").read_text("utf-8")
    for mark, file in (
        ("/* styles */", "report.css"),
        ("/* format */", "format.js"),
        ("/* live */", "live.js"),
    ):
        template = template.replace(mark, (ASSETS / file).read_text("utf-8"))
    return template
