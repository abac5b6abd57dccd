"""An endurance run: `locust -f locustfiles/soak.py -u 20 -t 2h --strategy gathered`.

Options beside Locust's own: `locust -f locustfiles/soak.py --help`.
"""

from profiler.load.shapes import Soak
from profiler.load.users import Agent

__all__ = ["Agent", "Shape"]


class Shape(Soak):
    """A long, even load."""
