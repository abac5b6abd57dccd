"""Stairs of load: `locust -f locustfiles/steps.py -u 40 -t 4m`, four steps up to 40 users.

Options beside Locust's own: `locust -f locustfiles/steps.py --help`.
"""

from profiler.load.shapes import Steps
from profiler.load.users import Agent

__all__ = ["Agent", "Shape"]


class Shape(Steps):
    """Four stairs."""
