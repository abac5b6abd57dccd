"""The sinks of a profiler, from what its keywords ask for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from profiler.errors import RecordError, UsageError
from profiler.loop.recorder import Sink

if TYPE_CHECKING:
    from profiler.exporters.jsonl import JsonlDirectory, JsonlSink
    from profiler.exporters.prometheus import PrometheusSink


def sinks_of(
    sinks: Sequence[Sink] | None,
    records: Path | str | None = None,
    prometheus: bool | None = None,
    otel: bool = False,
) -> tuple[list[Sink], PrometheusSink | None]:
    """All sinks, those given first, and the one of Prometheus if a keyword asked for it, or nothing did.

    Raises `UsageError` for records that cannot be written there, and without OpenTelemetry for `otel`.
    """
    found = list(sinks or ())
    if prometheus is None:
        prometheus = sinks is None and records is None and not otel
    if records is not None:
        found.append(_records(records))
    if otel:
        # It says itself what to install.
        from profiler.exporters.opentelemetry import OpenTelemetrySink

        found.append(OpenTelemetrySink())
    if not prometheus:
        return found, None
    from profiler.exporters.prometheus import PrometheusSink, register

    metrics = register(PrometheusSink())
    found.append(metrics)
    return found, metrics


def _records(path: Path | str) -> JsonlSink | JsonlDirectory:
    from profiler.exporters.jsonl import JsonlDirectory, JsonlSink

    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise UsageError(f"records is a .jsonl file or a directory, not {path!r}")
    path = Path(path)
    try:
        if path.suffix != ".jsonl" or path.is_dir():
            return JsonlDirectory(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        return JsonlSink(path)
    except FileExistsError as error:
        raise UsageError(f"records: {path} cannot be written: {path.parent} is not a directory") from error
    except OSError as error:
        raise UsageError(f"records: {path} cannot be written: {error.strerror}") from error
    except RecordError as error:
        raise UsageError(f"records: {error}") from error
