"""Compare strategies of tool calling under Locust's load: `locust -f locustfiles/compare.py`.

Options beside Locust's own are those of `profiler compare`, and shown in Locust's web UI.
"""

from locust import events

from profiler.load.locustfile import Agent
from profiler.report.locust_page import install

__all__ = ["Agent"]

install(events)
