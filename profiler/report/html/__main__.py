"""`python -m profiler.report.html RUN OUT`: the report alone, for a process that must not make it itself."""

from __future__ import annotations

import sys
from pathlib import Path

from profiler.errors import ProfilerError
from profiler.report.html import write_report
from profiler.rundir import RunDirectory


def main() -> int:
    """Write the report of one run directory."""
    run, out = sys.argv[1:3]
    try:
        write_report(RunDirectory.open(run), Path(out))
    except ProfilerError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
