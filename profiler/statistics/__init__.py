"""Statistics of a recorded run: pure functions from a run and its records to figures.

To be read in this order: `table` (records as columns), `windows` (which loops count), `quantiles` (a
figure with its interval), `figures` (those of a strategy), `comparison` (of two strategies, or runs),
`verdicts` and `caveats` (the same in words), `summary` (all of it, and throughput against load). Beside
them: `backlog` (whether an open load is served), `lateness` and `faults` (what of a figure is the client's,
and whose fault that was), `heeding` (whether an agent heeds its strategy), `two_runs` (what tells one run
from another), `objectives` (what is asked of a run).

Imports numpy; import it where it is used, never from `profiler/__init__.py` or at the top of the CLI.
"""
