"""Load shapes for Locust files: stairs, a spike, an endurance run.

Each reads Locust's own `-u` (the most users), `-r` and `-t` (the whole time). While a shape changes
the number of users, strategies go on taking turns, and every trial belongs to one number of users.
With `--arrivals` the rate asked for is that of `-u` users, and follows the shape.
"""

from __future__ import annotations

import math
from typing import ClassVar

from locust import LoadTestShape

DEFAULT_USERS = 20


class LoadShape(LoadTestShape):  # type: ignore[misc]
    """Users as a function of the share of the time that has passed."""

    abstract = True
    use_common_options = True
    seconds: ClassVar[float] = 120.0

    def tick(self) -> tuple[int, float] | None:
        """What Locust asks every second."""
        parsed = self.runner.environment.parsed_options
        most = int(parsed.num_users or DEFAULT_USERS)
        total = float(parsed.run_time or self.seconds)
        passed = self.get_run_time() / total
        if passed >= 1:
            return None
        return self.users(most, passed), float(parsed.spawn_rate or most)

    @staticmethod
    def users(most: int, passed: float) -> int:
        """How many of `most` users there are when that share of the time has passed."""
        raise NotImplementedError


class Steps(LoadShape):
    """Four stairs up to all users."""

    abstract = True

    @staticmethod
    def users(most: int, passed: float) -> int:
        return math.ceil(most * (int(passed * 4) + 1) / 4)


class Spike(LoadShape):
    """A fifth of the users, for the third fifth of the time all of them, then a fifth again."""

    abstract = True

    @staticmethod
    def users(most: int, passed: float) -> int:
        return most if 0.4 <= passed < 0.6 else math.ceil(most / 5)


class Soak(LoadShape):
    """All users, for as long as it takes: leaks and drifts show late."""

    abstract = True
    seconds = 1800.0

    @staticmethod
    def users(most: int, passed: float) -> int:
        return most
