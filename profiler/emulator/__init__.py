"""The emulator: model APIs, tool APIs, quotas, faults and the ground truth, in one server.

`python -m profiler.emulator` runs it; `profiler.emulator.process` starts it in a process of its own.
Pure: draws (and ids), arguments, tape, conversation, limits (quotas and capacity), the wire formats.
I/O: http1 (connections), scheduler (timers), server (routes, `main`). Between them: model_service
(faults included), tool_service and journal.
"""
