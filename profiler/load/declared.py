"""An option, declared once: on the field of a dataclass that holds its value.

    users: int = option("--users", COUNT, 20, "agents", group="load", commands=("compare", "tune"))

From that come the arguments of `profiler`'s commands and of Locust files, the checks of their values, the
JSON in `run.json`, the line that repeats a run, and the table in the README.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from decimal import Decimal
from typing import Any, ClassVar, Self

from profiler.errors import UsageError

MOST = 1_000_000_000
"""The most of whatever is counted."""

LONGEST_SECONDS = 365 * 86400.0
HIDDEN = "[hidden]"
"""Stands for the value of a secret wherever one is shown."""

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class Kind:
    """What an option takes. `read` raises `ValueError`, which says what was wrong with a text.

    `least` and `most` are bounds of a number, None for any; `write` is the inverse of `read`; `metavar` is
    how the help names a value.
    """

    read: Callable[[str], Any]
    write: Callable[[Any], str] = str
    least: float | None = None
    most: float | None = None
    metavar: str | None = None

    def checked(self, value: Any) -> Any:
        """The value, if it is within the bounds. Raises `ValueError`."""
        if self.least is None or self.most is None or not isinstance(value, (int, float)):
            return value
        if not self.least <= value <= self.most:  # NaN is neither
            bound = f"at most {_shown(self.most)}" if value > self.most else f"at least {_shown(self.least)}"
            raise ValueError(f"must be {bound}, not {value}")
        return value

    def argument(self, text: str) -> Any:
        """A value within the bounds, for argparse, which shows no other exception's message."""
        try:
            return self.checked(self.read(text))
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None


def _text(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty")
    return text


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a whole number") from None


def _amount(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number") from None


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h)?", text)
    if match is None:
        raise ValueError(f"{text!r} is not a time: expected 10s, 500ms, 2m or a number of seconds")
    return float(match[1]) * _UNITS[match[2] or "s"]


def _shown(bound: float) -> str:
    return "a year" if bound == LONGEST_SECONDS else f"{bound:g}" if isinstance(bound, float) else str(bound)


def _number(value: float) -> str:
    return format(Decimal(repr(value)).normalize(), "f")  # every digit, and no exponent


TEXT = Kind(_text)
COUNT = Kind(_whole, str, 1, MOST, "N")
COUNT_FROM_0 = Kind(_whole, str, 0, MOST, "N")
SEED = Kind(_whole, str, -(2**63), 2**63 - 1, "N")
"""Any whole number that run.json can hold."""
PORT = Kind(_whole, str, 0, 65535, "P")
AMOUNT = Kind(_amount, _number)
SECONDS = Kind(_seconds, _number, 0, LONGEST_SECONDS, "T")
SWITCH = Kind(lambda text: text == "true", lambda value: "true" if value else "false")
"""Given without a value, it turns its field to what the default is not."""


@dataclass(frozen=True, slots=True)
class Option:
    """The declaration. `commands` take it (`locust` are our Locust files); `repeats`: it may come again.

    The value of a `secret` is in no file and on no screen.
    """

    flag: str
    kind: Kind
    help: str
    group: str
    commands: tuple[str, ...]
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    repeats: bool = False
    secret: bool = False
    hidden: bool = False

    @property
    def value_name(self) -> str | None:
        """How the help names its value."""
        return self.metavar or self.kind.metavar

    @property
    def destination(self) -> str:
        """Its attribute in what argparse, and Locust's web form, give back."""
        return self.flag.removeprefix("--").replace("-", "_")


def option(
    flag: str, kind: Kind, default: Any, help: str, group: str, commands: tuple[str, ...], **more: Any
) -> Any:
    """A dataclass field that is an option; `more` are further fields of `Option`."""
    return field(default=default, metadata={"option": Option(flag, kind, help, group, commands, **more)})


class Options:
    """Base of a frozen dataclass whose fields are options."""

    __slots__ = ()
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @classmethod
    def __get_pydantic_core_schema__(cls, *_: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_plain_validator_function(cls.from_json)

    @classmethod
    def declared(cls, command: str | None = None) -> Iterator[tuple[Field[Any], Option]]:
        """Fields and their options: those of a command, or all."""
        for one in fields(cls):
            declaration: Option | None = one.metadata.get("option")
            if declaration is not None and (command is None or command in declaration.commands):
                yield one, declaration

    def check(self) -> None:
        """Raises `UsageError` naming the option whose value is out of bounds."""
        for one, declaration in self.declared():
            value = getattr(self, one.name)
            for part in value if isinstance(value, tuple) else (value,):
                try:
                    declaration.kind.checked(part)
                except ValueError as error:
                    raise UsageError(f"{declaration.flag} {error}") from None
            if declaration.choices and value not in declaration.choices:
                expected = ", ".join(declaration.choices)
                raise UsageError(f"{declaration.flag} {value}: expected one of {expected}")

    # Arguments

    @classmethod
    def add_to_locust(cls, parser: Any) -> None:
        """Add ours to Locust's parser; they appear in its web form, which sends text for what is not set.

        So values stay text here, and are read by `from_namespace`.
        """
        for one, declaration in cls.declared("locust"):
            keywords = cls._keywords(one, declaration, typed=False)
            if declaration.hidden:
                keywords["include_in_web_ui"] = False
            if declaration.secret:
                keywords["is_secret"] = True
            parser.add_argument(declaration.flag, **keywords)

    @classmethod
    def _keywords(cls, one: Field[Any], declaration: Option, *, typed: bool) -> dict[str, Any]:
        default = _default(one)
        said = explained(one, declaration).replace("%", "%%")
        keywords: dict[str, Any] = {"help": argparse.SUPPRESS if declaration.hidden else said}
        if declaration.kind is SWITCH:
            return keywords | {"action": "store_true"}
        if declaration.choices:
            return keywords | {"choices": declaration.choices, "default": default}
        if declaration.repeats:
            given = None if typed else [declaration.kind.write(default)]
            return keywords | {"action": _Collect, "metavar": declaration.value_name, "default": given}
        shown = None if default is None or default == () else declaration.kind.write(default)
        keywords |= {"metavar": declaration.value_name, "default": default if typed else shown}
        return keywords | ({"type": declaration.kind.argument} if typed else {})

    @classmethod
    def from_namespace(cls, parsed: argparse.Namespace, **others: Any) -> Self:
        """From parsed arguments or Locust's web form, where the empty text is the default.

        `others` are fields that do not come from there. Raises `UsageError` naming the option.
        """
        values = dict(others)
        for one, declaration in cls.declared():
            given = getattr(parsed, declaration.destination, None)
            if one.name in others or given in (None, "", []):
                continue
            if declaration.kind is SWITCH:
                values[one.name] = _default(one) is not bool(given)
            else:
                values[one.name] = _read(declaration, given)
        return cls(**values)

    def arguments(self, leave_out: Collection[str] = ()) -> list[str]:
        """What to write on a command line for these values, where they are not the defaults."""
        written: list[str] = []
        for one, declaration in self.declared():
            value = getattr(self, one.name)
            if one.name in leave_out or declaration.hidden or value == _default(one):
                continue
            if declaration.kind is SWITCH:
                written.append(declaration.flag)
                continue
            for part in [(one,) for one in value] if declaration.repeats else [value]:
                text = HIDDEN if declaration.secret else declaration.kind.write(part)
                # What begins with a dash would be taken for another option.
                written += [f"{declaration.flag}={text}"] if text[:1] == "-" else [declaration.flag, text]
        return written

    # JSON

    def as_json(self, leave_out: Collection[str] = ()) -> dict[str, Any]:
        """Plain data for `run.json` and messages; secrets are not in it."""
        return {
            one.name: _plain(getattr(self, one.name))
            for one, declaration in self.declared()
            if one.name not in leave_out and not declaration.secret
        }

    def secrets(self) -> dict[str, Any]:
        """What `as_json` leaves out, for a pipe or an environment."""
        return {
            one.name: _plain(getattr(self, one.name))
            for one, declaration in self.declared()
            if declaration.secret
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], **others: Any) -> Self:
        """Inverse of `as_json`; keys of another version are ignored. Raises `UsageError`."""
        values = dict(others)
        for one, declaration in cls.declared():
            if one.name in data and one.name not in others:
                given = data[one.name]
                repeated = isinstance(given, list)
                values[one.name] = _read(declaration, given) if repeated else given
        return cls(**values)


def explained(one: Field[Any], declaration: Option) -> str:
    """The help, with the default where there is one and the help does not say it."""
    default = _default(one)
    if declaration.kind is SWITCH or default in (None, (), 0) or "default" in declaration.help:
        return declaration.help
    unit = "s" if declaration.kind.metavar == "T" else ""
    return f"{declaration.help} (default: {declaration.kind.write(default)}{unit})"


def add_options(
    parser: argparse.ArgumentParser, command: str, classes: Sequence[type[Options]], groups: Mapping[str, str]
) -> None:
    """Add the options of a command to its parser, in groups: title → what the help says below it, or ''."""
    found = [(one, declared, cls) for cls in classes for one, declared in cls.declared(command)]
    for title, said in groups.items():
        mine = [(one, declared, cls) for one, declared, cls in found if declared.group == title]
        group = parser.add_argument_group(title, said or None) if mine else None
        for one, declared, cls in mine:
            assert group is not None
            group.add_argument(declared.flag, **cls._keywords(one, declared, typed=True))


class _Collect(argparse.Action):
    """Collects the values of an option that comes again; the first one replaces the default."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        name: str | None = None,
    ) -> None:
        given = getattr(namespace, self.dest)
        setattr(namespace, self.dest, [*(given if given is not self.default else ()), values])


def _default(one: Field[Any]) -> Any:
    return None if one.default is MISSING else one.default


def _read(declaration: Option, given: Any) -> Any:
    if not isinstance(given, (str, list)):
        return given  # read already, by argparse
    text = ",".join(map(str, given)) if isinstance(given, list) else given
    try:
        return declaration.kind.read(text)  # `check` looks at the bounds
    except UsageError as error:
        raise UsageError(f"{declaration.flag}: {error}") from error
    except ValueError as error:
        raise UsageError(f"{declaration.flag} {text}: {error}") from None


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [part if isinstance(part, (int, float)) else str(part) for part in value]
    return value
