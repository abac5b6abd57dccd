"""Re-exported: lives in `profiler.loop.model`."""

from profiler.loop.model import LimitedModel as LimitedModel
