"""Clients of MCP servers: which servers, how they are asked, and their tools as tools of a loop.

The Model Context Protocol is JSON-RPC over HTTP or over the standard streams of a child process. A `Session`
is a client's connection to one server: `profiler.mcp.client` has a lean one, which a load test can do many
calls with, and one on the official SDK.
"""
