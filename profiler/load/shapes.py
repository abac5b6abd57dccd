"""The load shapes; they live in `profiler.load.locust.users`."""

from profiler.load.locust.users import Soak as Soak
from profiler.load.locust.users import Spike as Spike
from profiler.load.locust.users import Steps as Steps
