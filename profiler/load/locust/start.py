"""Starts Locust: imports it and our session, waits for its command line on standard input, then runs it.

Run as a script, by its path: gevent has to patch the standard library before this package imports any of it.
"""

import gc
import json
import os
import sys
from importlib import metadata


def main() -> int:
    """Run Locust with the arguments in `{"arguments": […], "secrets": {…}}`, as `python -m locust` would."""
    find = metadata.entry_points
    # gevent asks for plugins at each of some 25 steps of its patching, and each time the metadata of all
    # distributions are read: 0.1 to 0.4 s in all.
    metadata.entry_points = find().select
    gc.disable()  # what is imported stays: a collector would only walk through it, again and again
    try:
        from locust.main import main as run_locust

        import profiler.load.users  # noqa: F401 (the Locust file imports it later)
        from profiler.load.locust.session import give_secrets
    finally:
        metadata.entry_points = find
        gc.enable()
    told = sys.stdin.buffer.read()
    if not told:
        return 0  # whoever started this has gone, or has nothing to run
    asked = json.loads(told)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    give_secrets(asked["secrets"])
    sys.argv = ["locust", *asked["arguments"]]
    run_locust()
    return 0


if __name__ == "__main__":
    sys.exit(main())
