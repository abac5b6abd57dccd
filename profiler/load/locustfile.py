"""The Locust file behind `locustfiles/compare.py` and `profiler compare`: point `locust -f` at either.

Importing it registers listeners, and does nothing else: Locust imports before it forks.
"""

from __future__ import annotations

from locust import events

from profiler.load.session import install
from profiler.load.users import Agent

__all__ = ["Agent"]

install(events)
