"""A spike of load: `locust -f locustfiles/spike.py -u 40 -t 5m`, five times the users for the third minute.

Options beside Locust's own: `locust -f locustfiles/spike.py --help`.
"""

from profiler.load.shapes import Spike
from profiler.load.users import Agent

__all__ = ["Agent", "Shape"]


class Shape(Spike):
    """One spike."""
