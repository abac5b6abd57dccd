"""Versions of the SDKs that cannot be watched, said in one line. Nothing here runs while they can."""

from __future__ import annotations

import importlib.metadata
import re
from typing import Any

from profiler.errors import UsageError


def refuse_httpx(client: Any) -> None:
    """Raises `UsageError` for a client of an older SDK: it speaks through httpx, and we do not see that."""
    kinds = type(getattr(client, "_client", None)).__mro__
    if any(kind.__module__.partition(".")[0] == "httpx" for kind in kinds):
        raise unsupported(type(client).__module__.partition(".")[0], "its clients are httpx's, not httpx2's")


def unsupported(package: str, why: str) -> UsageError:
    """Which version of `package` is installed, and which ones are needed."""
    try:
        installed = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return UsageError(f"{package} is not installed: {why}; pip install '{needed(package)}'")
    return UsageError(
        f"{package} {installed} cannot be profiled: {why}; it takes pip install '{needed(package)}'"
    )


def needed(package: str) -> str:
    """The requirement as this distribution states it, or the bare name in a source tree."""
    try:
        stated = importlib.metadata.requires("toolcall-profiler") or []
    except importlib.metadata.PackageNotFoundError:
        stated = []
    for requirement in stated:
        match = re.match(r"([\w.-]+)(?:\[[^]]*\])?\s*([^;]*)", requirement)
        if match and match[1] == package and "extra ==" not in requirement:
            return f"{package}{match[2].strip()}"
    return package
