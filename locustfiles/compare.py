"""Compare strategies of tool calling under Locust's load: `locust -f locustfiles/compare.py`.

Options beside Locust's own: `locust -f locustfiles/compare.py --help`.
"""

from profiler.load.locustfile import Agent

__all__ = ["Agent"]
