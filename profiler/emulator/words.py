"""The words that drawn arguments are made of, and those that suit a property's name. Pure."""

from __future__ import annotations

from collections.abc import Callable

from profiler.emulator.draws import Draws

# 59 cities, a prime: any stride deals all of them before one repeats.
CITIES = (
    "Tokyo", "Paris", "Lagos", "Lima", "Oslo", "Cairo", "Mumbai", "Toronto", "Sydney", "Berlin", "Nairobi",
    "Seoul", "Madrid", "Jakarta", "Boston", "Vienna", "Bogota", "Accra", "Hanoi", "Rome", "Chicago",
    "Dublin", "Karachi", "Santiago", "Helsinki", "Manila", "Athens", "Denver", "Osaka", "Lisbon",
    "Casablanca", "Warsaw", "Bangkok", "Montreal", "Prague", "Dakar", "Quito", "Zurich", "Melbourne",
    "Istanbul", "Houston", "Kyiv", "Delhi", "Amsterdam", "Havana", "Singapore", "Stockholm", "Tunis",
    "Brussels", "Auckland", "Seattle", "Budapest", "Ankara", "Caracas", "Copenhagen", "Dubai", "Vancouver",
    "Edinburgh", "Porto",
)  # fmt: skip

WORDS = (
    "harbour", "solar", "quarterly", "archive", "orchard", "signal", "granite", "ferry", "copper", "meadow",
    "ledger", "canvas", "turbine", "glacier", "atlas", "lantern", "cobalt", "prairie", "beacon", "timber",
    "sonata", "quartz", "delta", "compass", "saffron", "monsoon", "orbit", "pewter", "willow", "summit",
    "tundra",
)  # fmt: skip

_PEOPLE = (
    "Ada Byron", "Grace Murray", "Alan Mathison", "Edsger Wybe", "Barbara Jane", "Niklaus Emil", "Radia Joy",
)  # fmt: skip
_COUNTRIES = (
    "Japan", "France", "Nigeria", "Peru", "Norway", "Egypt", "India", "Canada", "Australia", "Germany",
)  # fmt: skip
_LANGUAGES = ("en", "fr", "de", "ja", "es", "pt", "hi", "sw")
_CURRENCIES = ("EUR", "USD", "JPY", "GBP", "INR", "NGN")

Text = Callable[[Draws], str]


def _phrase(draws: Draws) -> str:
    return f"{draws.choice(WORDS)} {draws.choice(WORDS)}"


def _date(draws: Draws) -> str:
    return f"20{20 + draws.below(10)}-{1 + draws.below(12):02d}-{1 + draws.below(28):02d}"


def _time(draws: Draws) -> str:
    return f"{draws.below(24):02d}:{draws.below(60):02d}:00Z"


def _uuid(draws: Draws) -> str:
    number = f"{draws.below(1 << 62):016x}{draws.below(1 << 62):016x}"
    return f"{number[:8]}-{number[8:12]}-4{number[13:16]}-8{number[17:20]}-{number[20:]}"


FORMATS: dict[str, Text] = {
    "date": _date,
    "date-time": lambda draws: f"{_date(draws)}T{_time(draws)}",
    "time": _time,
    "duration": lambda draws: f"PT{1 + draws.below(59)}M",
    "email": lambda draws: f"{draws.choice(WORDS)}@example.com",
    "hostname": lambda draws: f"{draws.choice(WORDS)}.example.com",
    "ipv4": lambda draws: f"192.0.2.{1 + draws.below(254)}",
    "ipv6": lambda draws: f"2001:db8::{1 + draws.below(0xFFFE):x}",
    "uri": lambda draws: f"https://example.com/{draws.choice(WORDS)}",
    "uuid": _uuid,
}

_NAMED: dict[str, Text] = {
    "country": lambda draws: draws.choice(_COUNTRIES),
    "language": lambda draws: draws.choice(_LANGUAGES),
    "currency": lambda draws: draws.choice(_CURRENCIES),
    **dict.fromkeys(("name", "person", "author"), lambda draws: draws.choice(_PEOPLE)),
    "date": _date,
    "email": FORMATS["email"],
    "url": FORMATS["uri"],
    "id": lambda draws: f"{draws.choice(WORDS)}-{1000 + draws.below(9000)}",
}

_PLACES = frozenset({"city", "location", "place", "town", "destination", "origin"})


def named_text(name: str) -> Text | None:
    """The texts for a string property called `name`: None for cities, phrases where the name says nothing."""
    last = name.lower().replace("-", "_").rsplit("_", 1)[-1]
    if last in _PLACES or name.lower().startswith("city"):
        return None
    return _NAMED.get(last, _phrase)
