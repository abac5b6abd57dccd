"""Re-exported: lives in `profiler.scenarios.tools`."""

from profiler.scenarios.tools import tool_client as tool_client
