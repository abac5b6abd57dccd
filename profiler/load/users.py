"""The Locust user of the built-in loop. One with an agent of your own derives from `AgentUser`, one that
calls the tools of an MCP server without a model from `MCPUser`."""

from profiler.load.locust.users import AgentUser as AgentUser
from profiler.load.locust.users import MCPUser as MCPUser


class Agent(AgentUser):
    """The built-in loop, or what `--agent` names."""
