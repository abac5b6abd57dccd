"""Load an MCP server, without a model: `locust -f locustfiles/mcp.py --headless -u 8 -t 30s --mcp URL`.

Without `--call` every tool that says that it is read-only is called in turn, with arguments drawn from its
schema. A file of your own names its server and its calls:

    class Search(MCPUser):
        server = "http://127.0.0.1:8000/mcp"
        call = "search"
        arguments = {"query": "rain"}

Options beside Locust's own: `locust -f locustfiles/mcp.py --help`.
"""

from profiler.load.users import MCPUser

__all__ = ["Calls"]


class Calls(MCPUser):
    """Calls of a server's tools, one after another, or as they arrive (`--arrivals`)."""
