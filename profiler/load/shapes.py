"""Re-exported: lives in `profiler.load.locust.shapes`."""

from profiler.load.locust.shapes import Soak as Soak
from profiler.load.locust.shapes import Spike as Spike
from profiler.load.locust.shapes import Steps as Steps
