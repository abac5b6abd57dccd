"""`profiler collect`: spans of agents come in over HTTP, and go out as the records of their loops.

receiver    what is asked over HTTP (OTLP), and what is answered
bodies      of a request's bytes the message in them, unpacked within bounds
traces      which traces are open, and when one has ended: pure
journal     the spans of open traces, on disk, so that a kill loses none of them
collector   puts these together: spans in, records out
figures     what it counts about itself, for `/metrics`
"""
