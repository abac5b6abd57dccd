"""`python -m profiler.emulator`."""

import sys

from profiler.emulator.server import main

if __name__ == "__main__":
    sys.exit(main())
