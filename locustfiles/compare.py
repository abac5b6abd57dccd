"""Compare strategies of tool calling under Locust's load: `locust -f locustfiles/compare.py`.

Options beside Locust's own: `locust -f locustfiles/compare.py --help`.
"""

from locust import events

from profiler.load.locustfile import Agent
from profiler.report.locust_page import install

__all__ = ["Agent"]

install(events)
