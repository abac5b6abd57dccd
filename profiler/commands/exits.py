"""The exit code of `run`, `compare`, `tune` and `predict`: of these the first that applies.

    2    usage: wrong options or input, or output that cannot be written
    70   a defect of the profiler's own, also of one loop among many (`internal`): said after the report
    143  the run was told to end (SIGTERM); what had finished is reported
    130  the run was interrupted (Ctrl-C); what had finished is reported
    3    the target could not be reached, refused us, went away, or never sent a byte in reply
    1    what was asked does not hold: figures are invalid, an objective or a gate is missed, a limit or
         --abort-on ended the run, every loop failed, nothing was measured, or nothing could be predicted
    0    none of these

`run` of a script ends with the script's own code, unless that is 0.

`exit_code` decides; `profiler.cli` turns errors that end a command before it has a report into the same
codes.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from profiler.errors import Interrupted, ProfilerError, TargetError, Terminated, UsageError

DONE, NOT_HELD, USAGE, TARGET = 0, 1, UsageError.exit_code, TargetError.exit_code
DEFECT = 70
"""EX_SOFTWARE of sysexits.h."""
INTERRUPTED, TERMINATED = Interrupted.exit_code, Terminated.exit_code
"""As shells count what SIGINT and SIGTERM end."""

EXIT_CODES = """\
exit codes, the first that applies:
  2    wrong usage or input, or output that cannot be written
  70   a defect of the profiler, if only in one loop: said after the report
  143  ended by SIGTERM
  130  interrupted
  3    the target could not be reached, refused us, went away or never answered
  1    what was asked does not hold: figures are invalid, --slo or --fail-on is missed,
       a limit or --abort-on ended the run, every loop failed, nothing could be predicted
  0    none of these"""
"""For --help."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a command ended.

    `error` ended it, None if nothing did. `internal` loops were ended by a defect of ours. `incidents` are
    the kinds of those of its runs (`rundir.IncidentKind`). `unanswered`: requests were sent, and nothing at
    all came back to any. `missed`: something that was asked does not hold.
    """

    error: BaseException | None = None
    internal: int = 0
    incidents: Collection[str] = ()
    unanswered: bool = False
    missed: bool = False


def exit_code(ending: Ending) -> int:
    """The first code of the table above that applies."""
    error = ending.error
    if isinstance(error, UsageError):
        return USAGE
    if ending.internal or (isinstance(error, Exception) and not isinstance(error, ProfilerError)):
        return DEFECT
    ended = set(ending.incidents)
    if isinstance(error, KeyboardInterrupt):  # one that SIGTERM raised says so
        ended.add(getattr(error, "incident", "interrupted"))
    if "terminated" in ended:
        return TERMINATED
    if "interrupted" in ended:
        return INTERRUPTED
    if isinstance(error, TargetError) or ending.unanswered:
        return TARGET
    if ending.missed or error is not None or ended & {"aborted", "limited"}:
        return NOT_HELD
    return DONE


def complaints(ending: Ending, where: str | None = None) -> Iterable[str]:
    """The sentences for standard error, beside a report: a defect of ours, a target that never answered.

    `where`: the run directory, which a report of the defect should come with.
    """
    if ending.internal:
        count = "1 loop" if ending.internal == 1 else f"{ending.internal} loops"
        kept = f"; the records are in {where}" if where else ""
        yield (
            f"{count} ended by a defect of the profiler (internal): please report it with what --debug "
            f"shows{kept}"
        )
    if ending.unanswered:
        yield "the target never answered: nothing came back to any request"


def complain(ending: Ending, where: str | None = None) -> int:
    """Say `complaints` on standard error; returns the exit code."""
    for words in complaints(ending, where):
        print(f"profiler: {words}", file=sys.stderr, flush=True)
    return exit_code(ending)
