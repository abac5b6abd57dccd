"""An option is declared once: on the field of a dataclass that holds its value.

    users: int = option("--users", COUNT, 20, "agents", group="load", commands=("compare", "tune"))

From that come the arguments of `profiler`'s commands and of Locust files, the checks of their values, the
JSON in `run.json`, the line that repeats a run, and the table in the README.
"""

from __future__ import annotations

import argparse
import contextlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, replace
from decimal import Decimal
from typing import Any, ClassVar, Self

from profiler.errors import UsageError
from profiler.redaction.keys import REDACTED, hide_keys

MOST = 1_000_000_000
"""The bound of everything that is counted."""

LONGEST_SECONDS = 365 * 86400.0

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class Kind:
    """The values that an option takes. `read` makes one from text; its `ValueError` says what was wrong.

    `write` is the inverse of `read`. `least` and `most` are the bounds of a number, None without bounds.
    `metavar` is how the help names a value. `each`: of an option that repeats, each text is read alone, and
    the tuples that come of them are joined. `shown`: what may be shown of a value that is a secret in part.
    """

    read: Callable[[str], Any]
    write: Callable[[Any], str] = str
    least: float | None = None
    most: float | None = None
    metavar: str | None = None
    each: bool = False
    shown: Callable[[Any], Any] | None = None

    def checked(self, value: Any) -> Any:
        """The value, if it is within the bounds; else raises `ValueError`."""
        if self.least is None or self.most is None or not isinstance(value, (int, float)):
            return value
        if not self.least <= value <= self.most:  # written so that NaN is refused too
            bound = f"at most {_shown(self.most)}" if value > self.most else f"at least {_shown(self.least)}"
            raise ValueError(f"must be {bound}, not {value}")
        return value

    def argument(self, text: str) -> Any:
        """Read and check a value for argparse, which shows the message of this exception alone."""
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
    return format(Decimal(repr(value)).normalize(), "f")  # every digit; no exponent, which nothing reads


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
    """The declaration. `commands` take the option (`locust`: our Locust files); `repeats`: several times.

    A `hidden` one is in no help, no web form and no line that repeats a run. The value of a `secret` is in
    no file and on no screen, but for the part of it that its kind shows; nor is what looks like a key in the
    value of another one.
    """

    flag: str
    kind: Kind
    default: Any
    help: str
    group: str
    commands: tuple[str, ...]
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    repeats: bool = False
    hidden: bool = False
    secret: bool = False

    @property
    def value_name(self) -> str | None:
        """How the help names its value."""
        return self.metavar or self.kind.metavar

    @property
    def destination(self) -> str:
        """Its attribute in the namespace that argparse, and Locust's web form, return."""
        return self.flag.removeprefix("--").replace("-", "_")

    @property
    def explained(self) -> str:
        """The help, with the default where there is one and the help does not name it."""
        if self.kind is SWITCH or self.default in (None, (), 0) or "default" in self.help:
            return self.help
        unit = "s" if self.kind.metavar == "T" else ""
        return f"{self.help} (default: {self.kind.write(self.default)}{unit})"

    def keywords(self, *, typed: bool) -> dict[str, Any]:
        """For argparse's `add_argument`; unless `typed`, values stay text."""
        said: dict[str, Any] = {
            "help": argparse.SUPPRESS if self.hidden else self.explained.replace("%", "%%")
        }
        if self.kind is SWITCH:
            return {**said, "action": "store_true"}
        if self.choices:
            return {**said, "choices": self.choices, "default": self.default}
        said["metavar"] = self.value_name
        text = None if self.default in (None, ()) else self.kind.write(self.default)
        if self.repeats:
            return {**said, "action": _Collect, "default": None if typed or text is None else [text]}
        if typed:
            return {**said, "type": self.kind.argument, "default": self.default}
        return {**said, "default": text}

    def is_default(self, given: Any) -> bool:
        """Whether it is the default of an option that repeats, as Locust's parser and form have it."""
        text = given[0] if isinstance(given, list) and len(given) == 1 else given
        return self.repeats and self.default != () and text == self.kind.write(self.default)

    def read(self, given: Any) -> Any:
        """The value that was given: as text, as texts, or read already. `Options.check` looks at bounds.

        Raises `UsageError` naming the option.
        """
        if not isinstance(given, (str, list)):
            return given
        if self.kind.each and isinstance(given, list):
            return tuple(part for one in given for part in self.read(str(one)))
        text = ",".join(map(str, given)) if isinstance(given, list) else given
        try:
            return self.kind.read(text)
        except UsageError as error:
            raise UsageError(f"{self.flag}: {error}") from error
        except ValueError as error:
            said = self.flag if self.secret else f"{self.flag} {hide_keys(text)}"
            raise UsageError(f"{said}: {error}") from None

    def public(self, value: Any) -> Any:
        """The part of a value that may be shown; None when that is nothing. It looks like no key either."""
        if self.secret and value not in (None, ()):
            value = None if self.kind.shown is None else self.kind.shown(value)
        if isinstance(value, str):
            return hide_keys(value)
        if isinstance(value, tuple):
            return tuple(hide_keys(one) if isinstance(one, str) else one for one in value)
        return value


def option(
    flag: str, kind: Kind, default: Any, help: str, group: str, commands: tuple[str, ...], **more: Any
) -> Any:
    """A dataclass field that is an option; `more` are further fields of `Option`."""
    declared = Option(flag, kind, default, help, group, commands, **more)
    return field(default=default, metadata={"option": declared})


class Options:
    """Base of a frozen dataclass whose fields are all options."""

    __slots__ = ()
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @classmethod
    def __get_pydantic_core_schema__(cls, *_: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_plain_validator_function(cls.from_json)

    @classmethod
    def declared(cls, command: str | None = None) -> Iterator[tuple[str, Option]]:
        """Names of fields and their options: those of a command, or all."""
        for one in fields(cls):
            declared: Option = one.metadata["option"]
            if command is None or command in declared.commands:
                yield one.name, declared

    def check(self) -> None:
        """Raises `UsageError` naming the option whose value is out of bounds, or none of its choices."""
        for name, declared in self.declared():
            value = getattr(self, name)
            for part in value if isinstance(value, tuple) else (value,):
                try:
                    declared.kind.checked(part)
                except ValueError as error:
                    raise UsageError(f"{declared.flag} {error}") from None
            if declared.choices and value not in declared.choices:
                expected = ", ".join(declared.choices)
                raise UsageError(f"{declared.flag} {value}: expected one of {expected}")

    @classmethod
    def add_to_locust(cls, parser: Any) -> None:
        """Add ours to Locust's parser, which makes its web form of them.

        Values stay text, which the form sends for what is not set; `from_namespace` reads them.
        """
        for _, declared in cls.declared("locust"):
            shown = {"include_in_web_ui": False} if declared.hidden else {}
            if declared.secret and (declared.kind.shown is None or declared.kind.each):
                shown["is_secret"] = True  # a URL is no password, though its query may hold one
            parser.add_argument(declared.flag, **declared.keywords(typed=False), **shown)

    @classmethod
    def hide_in_form(cls, parser: Any) -> None:
        """Let a parser of Locust's, whose values fill its web form, give only what may be shown of ours."""
        parse = parser.parse_args

        def parse_args(*args: Any, **keywords: Any) -> argparse.Namespace:
            parsed: argparse.Namespace = parse(*args, **keywords)
            for _, declared in cls.declared("locust"):
                given = getattr(parsed, declared.destination, None)
                if declared.kind is not SWITCH and given not in (None, "", []):
                    with contextlib.suppress(UsageError):  # it was refused at the command line
                        value = declared.read(given)
                        public = declared.public(value)
                        if public != value:
                            setattr(parsed, declared.destination, _in_form(declared, public))
            return parsed

        parser.parse_args = parse_args

    def given_back(self, parsed: argparse.Namespace) -> dict[str, Any]:
        """Fields whose hidden value comes back from the form as it was shown there (`hide_in_form`)."""
        found: dict[str, Any] = {}
        for name, declared in self.declared("locust"):
            given, value = getattr(parsed, declared.destination, None), getattr(self, name)
            text = ",".join(map(str, given)) if isinstance(given, list) else given
            hidden = isinstance(text, str) and REDACTED in text
            if hidden and text == _in_form(declared, declared.public(value)):
                found[name] = value
        return found

    @classmethod
    def from_namespace(cls, parsed: argparse.Namespace, **others: Any) -> Self:
        """From parsed arguments or Locust's web form, where the empty text is the default.

        `others` are fields that do not come from there. Raises `UsageError` naming the option.
        """
        values = dict(others)
        for name, declared in cls.declared():
            given = getattr(parsed, declared.destination, None)
            if name in others or given in (None, "", []) or declared.is_default(given):
                continue
            if declared.kind is SWITCH:
                values[name] = declared.default is not bool(given)
            else:
                values[name] = declared.read(given)
        return cls(**values)

    def arguments(self, leave_out: Collection[str] = ()) -> list[str]:
        """The command-line arguments for these values, where they are not the defaults."""
        written: list[str] = []
        for name, declared in self.declared():
            value = getattr(self, name)
            if name in leave_out or declared.hidden or value == declared.default:
                continue
            if declared.kind is SWITCH:
                written.append(declared.flag)
                continue
            for part in [(one,) for one in value] if declared.repeats else [value]:
                public = declared.public(part)
                text = REDACTED if public is None else declared.kind.write(public)
                # A value that begins with a dash would be taken for another option.
                written += [f"{declared.flag}={text}"] if text[:1] == "-" else [declared.flag, text]
        return written

    def as_json(self, leave_out: Collection[str] = ()) -> dict[str, Any]:
        """Plain data for `run.json` and messages; secrets are not in it."""
        return {
            name: _plain(declared.public(getattr(self, name)))
            for name, declared in self.declared()
            if name not in leave_out and not (declared.secret and declared.kind.shown is None)
        }

    def secrets(self) -> dict[str, Any]:
        """The values that `as_json` leaves out, for messages to workers and a child's environment."""
        return {
            name: _plain(value)
            for name, declared in self.declared()
            if (value := getattr(self, name)) not in (None, ()) and declared.public(value) != value
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], **others: Any) -> Self:
        """Inverse of `as_json`; keys of another version are ignored. Raises `UsageError`."""
        values = dict(others)
        for name, declared in cls.declared():
            if name in data and name not in others:
                given = data[name]
                values[name] = declared.read(given) if isinstance(given, list) else given
        return cls(**values)


def add_options(
    parser: argparse.ArgumentParser,
    command: str,
    classes: Sequence[type[Options]],
    groups: Mapping[str, str],
    *,
    defaults: bool = True,
) -> None:
    """Add the options of a command to its parser, in groups: title → what the help says below it, or ''.

    Without `defaults` the value of one that is not given is None, and the help names no default.
    """
    found = [declared for cls in classes for _, declared in cls.declared(command)]
    if not defaults:
        found = [
            replace(one, default=None, help=re.sub(r" \(default: [^)]*\)", "", one.help)) for one in found
        ]
    for title, said in groups.items():
        mine = [declared for declared in found if declared.group == title]
        if mine:
            group = parser.add_argument_group(title, said or None)
            for declared in mine:
                group.add_argument(declared.flag, **declared.keywords(typed=True))


def _in_form(declared: Option, public: Any) -> str:
    """The part of a value that may be shown, as Locust's form has it; it splits what repeats at commas."""
    if public is None:
        return REDACTED
    return ",".join(public) if declared.kind.each else declared.kind.write(public)


class _Collect(argparse.Action):
    """Collects the values of an option that repeats; the first one replaces the default."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        name: str | None = None,
    ) -> None:
        given = getattr(namespace, self.dest)
        setattr(namespace, self.dest, [*(given if given is not self.default else ()), values])


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [part if isinstance(part, (int, float)) else str(part) for part in value]
    return value
