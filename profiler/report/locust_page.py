"""The published path of `profiler.load.locust.page.install`."""

from profiler.load.locust.page import install as install
