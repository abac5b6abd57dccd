"""Load testing and latency profiling for agents that call tools in parallel."""
