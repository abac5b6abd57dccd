"""The reserved request headers by which a load test tells the emulator which work a request belongs to.

They are sent only when a loop runs with a tape number, never on ordinary requests.
"""

LOOP = "x-toolloop-loop"
"""The loop's number: the index of its tape entry."""

TRIAL = "x-toolloop-trial"
"""An opaque token of the trial; the emulator copies it into its journal."""

CALL = "x-toolloop-call"
"""On a tool's request: the provider-given id of the tool call."""
