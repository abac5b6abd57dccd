"""What has to be done when this process forks, and when it ends.

A forked child has the memory of its parent and none of its threads. So whatever has a thread, a queue that
one reads, a lock that one may have held, or records that it has not written yet, begins anew in the child:
what was under way belongs to the parent, which goes on with it. (`gunicorn --preload` forks its workers from
a process that has imported the application, and may have used it.)
"""

from __future__ import annotations

import atexit
import itertools
import os
import sys
import weakref
from collections.abc import Callable
from types import MethodType
from typing import Any

Done = Callable[[], None]

_functions: list[Done] = []
_methods: weakref.WeakKeyDictionary[object, Callable[[Any], None]] = weakref.WeakKeyDictionary()
_numbers = itertools.count()


def in_forked_child(function: Done) -> None:
    """Have it called in every child that is forked from here on, before any other code of the child.

    A method, one of each object, does not keep its object alive. It starts no thread and waits for nothing.
    """
    if isinstance(function, MethodType):
        _methods[function.__self__] = function.__func__
    else:
        _functions.append(function)


def _forked() -> None:
    for function in _functions:
        function()
    for one, method in list(_methods.items()):
        method(one)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def at_exit(function: Done) -> None:
    """Have it called when this process ends by itself, before whatever has been registered so far.

    May be called again, which makes it the first; in a child too. It may be called twice at the end: the
    children of `multiprocessing` leave without `atexit`, and have a list of their own, which is used as well.
    While the process ends, when another thread may ask for it, it is called after all others.
    """
    if _ending:
        _added_at_the_end.append(function)
    else:
        for one in (function, _begin_to_end):
            atexit.unregister(one)
            atexit.register(one)
    # Not imported: without it, or while another thread imports it, this process is no such child.
    parent_process = getattr(sys.modules.get("multiprocessing.process"), "parent_process", None)
    finalize = getattr(sys.modules.get("multiprocessing.util"), "Finalize", None)
    if parent_process is not None and finalize is not None and parent_process() is not None:
        for one in (function, _begin_to_end):
            finalize(None, one, exitpriority=next(_numbers))  # those of the highest come first


def is_ending() -> bool:
    """Whether what is registered here is being called: what begins now may not come to its end by itself."""
    return _ending


_ending = False
_added_at_the_end: list[Done] = []


def _begin_to_end() -> None:
    global _ending
    _ending = True


def _end() -> None:
    while _added_at_the_end:
        _added_at_the_end.pop()()


def _not_ending() -> None:
    """A child that is forked while its parent ends goes on."""
    global _ending
    _ending = False
    _added_at_the_end.clear()


# `atexit` never calls what is registered while it calls others.
atexit.register(_end)
in_forked_child(_not_ending)
