"""A reverse proxy for the model APIs (and MCP), which sees the loops of agents that change a base URL."""
