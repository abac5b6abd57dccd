"""The Locust file behind `locustfiles/compare.py` and `profiler compare`: point `locust -f` at either.

Importing it registers listeners, and does nothing else: Locust imports before it forks.
"""

from profiler.load.users import Agent

__all__ = ["Agent"]
