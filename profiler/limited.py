"""Re-exported: lives in `profiler.loop.limited_model`."""

from profiler.loop.limited_model import LimitedModel as LimitedModel
