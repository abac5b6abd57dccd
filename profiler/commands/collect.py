"""`profiler collect`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from profiler.commands import Commands


def add(commands: Commands) -> None:
    """Nothing yet."""
