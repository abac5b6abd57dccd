"""Statistics of a recorded run: pure functions from a run and its records to figures.

To be read in this order: `table` (records as columns), `windows` (which loops count), `quantiles` (a
figure with its interval), `figures` (those of a strategy), `comparison` (of two strategies, or runs),
`verdicts` and `caveats` (the same in words), `summary` (all of it). Beside them: `scalability` (throughput
against load), `objectives` (what is asked of a run), `regression` (one run against another), `replay`
(what if one thing were different), `histogram` (long series in bounded memory).

Imports numpy; import it where it is used, never from `profiler/__init__.py` or at the top of the CLI.
"""
