"""Re-exported: lives in `profiler.scenarios.tools`."""

from profiler.scenarios.tools import tool_client as tool_client
from profiler.scenarios.tools import tools_url as tools_url
