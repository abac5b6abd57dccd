"""Re-exported: lives in `profiler.watch.profiler`."""

from profiler.watch.profiler import Profiler as Profiler
