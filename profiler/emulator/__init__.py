"""The emulator: model APIs, tool APIs, quotas, faults and the ground truth, in one server.

`python -m profiler.emulator` runs it; `profiler.emulator.process` starts it in a process of its own.
Pure: draws, arguments, tape, ids, quota, capacity, validation and rendering of the wire formats.
I/O: http1 (connections), scheduler (timers), server (process).
"""
