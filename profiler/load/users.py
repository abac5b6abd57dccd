"""Re-exported: lives in `profiler.load.locust.users`."""

from profiler.load.locust.users import Agent as Agent
from profiler.load.locust.users import AgentUser as AgentUser
