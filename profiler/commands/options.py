"""Options that several commands share."""

from __future__ import annotations

import argparse
import re

from profiler.load import defaults


def add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--provider",
        default="openai",
        choices=("openai", "openai-responses", "anthropic"),
        help="whose SDK and wire format (default: openai)",
    )
    parser.add_argument(
        "--scenario",
        type=text,
        default="cities",
        metavar="NAME|FILE",
        help="what the work is (default: cities)",
    )
    parser.add_argument(
        "--base-url",
        type=text,
        metavar="URL",
        help="the model server, root or ending in /v1 (default: the emulator)",
    )
    parser.add_argument(
        "--tools-url", type=text, metavar="URL", help="root of the tools' server (default: the emulator)"
    )
    parser.add_argument(
        "--model", type=text, metavar="M", help="model name (default: gpt-4o, claude-sonnet-5-5)"
    )
    parser.add_argument("--seed", type=seed, default=1, metavar="N", help="seed of the emulated work")
    parser.add_argument(
        "--max-rounds", type=positive, default=5, metavar="N", help="rounds with calls at most"
    )
    parser.add_argument(
        "--tool-choice", type=text, default="auto", metavar="C", help="auto, none, required, or a tool's name"
    )
    parser.add_argument(
        "--no-parallel-tool-calls",
        dest="parallel_tool_calls",
        action="store_false",
        help="ask for one call per response: a baseline",
    )
    parser.add_argument("--model-limit", metavar="SPEC", help=defaults.MODEL_LIMIT)
    parser.add_argument("--stream", action="store_true", help="ask for streamed responses")


def add_content(parser: argparse.ArgumentParser) -> None:
    """Whether records hold what was said."""
    parser.add_argument(
        "--record-content", action="store_true", help="keep prompts, arguments and results in the records"
    )
    parser.add_argument(
        "--redact",
        type=text,
        metavar="MODULE:FUNCTION",
        help="with --record-content: a function that every text passes through, str to str",
    )


MOST = 1_000_000_000
"""Of whatever is counted on the command line."""

LONGEST_SECONDS = 365 * 86400.0


def text(given: str) -> str:
    """Anything but nothing."""
    if not given.strip():
        raise argparse.ArgumentTypeError("must not be empty")
    return given


def whole(given: str, least: int, most: int) -> int:
    """A whole number from `least` to `most`."""
    try:
        value = int(given)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{given!r} is not a whole number") from None
    if value < least:
        raise argparse.ArgumentTypeError(f"must be at least {least}, not {given}")
    if value > most:
        raise argparse.ArgumentTypeError(f"must be at most {most}, not {given}")
    return value


def amount(given: str) -> float:
    """A number of at least 0."""
    try:
        value = float(given)
    except ValueError:
        value = -1.0
    if not 0 <= value <= MOST:
        raise argparse.ArgumentTypeError(f"{given!r} is not a number from 0 to {MOST}")
    return value


def positive(given: str) -> int:
    """A whole number of at least 1."""
    return whole(given, 1, MOST)


def count(given: str) -> int:
    """A whole number of at least 0."""
    return whole(given, 0, MOST)


def seed(given: str) -> int:
    """Any whole number that run.json can hold."""
    return whole(given, -(2**63), 2**63 - 1)


def port(given: str) -> int:
    """A port, or 0 for a free one."""
    return whole(given, 0, 65535)


def seconds(given: str) -> float:
    """`10s`, `500ms`, `2m`, `1h`, or a plain number of seconds; up to a year."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h)?", given)
    if match is None:
        raise argparse.ArgumentTypeError(
            f"{given!r} is not a time: expected 10s, 500ms, 2m or a number of seconds"
        )
    value = float(match[1]) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600}[match[2] or "s"]
    if value > LONGEST_SECONDS:
        raise argparse.ArgumentTypeError(f"must be at most a year, not {given}")
    return value
