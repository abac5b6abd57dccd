"""Statistics of a recorded run: pure functions from a run and its records to figures.

Imports numpy; import it where it is used, never from `profiler/__init__.py` or at the top of the CLI.
"""
