"""The Locust user of the built-in loop. One with an agent of your own derives from `AgentUser`."""

from profiler.load.locust.users import AgentUser as AgentUser


class Agent(AgentUser):
    """The built-in loop, or what `--agent` names."""
