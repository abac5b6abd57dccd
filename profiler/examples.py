"""Re-exported: lives in `profiler.scenarios.tools`."""

from profiler.scenarios.tools import get_population as get_population
from profiler.scenarios.tools import get_weather as get_weather
