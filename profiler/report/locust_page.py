"""Re-exported: lives in `profiler.load.locust.page`."""

from profiler.load.locust.page import install as install
