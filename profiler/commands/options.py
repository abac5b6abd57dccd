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
        "--scenario", default="cities", metavar="NAME|FILE", help="what the work is (default: cities)"
    )
    parser.add_argument(
        "--base-url", metavar="URL", help="the model server, root or ending in /v1 (default: the emulator)"
    )
    parser.add_argument(
        "--tools-url", metavar="URL", help="root of the tools' server (default: the emulator)"
    )
    parser.add_argument("--model", metavar="M", help="model name (default: gpt-4o, claude-sonnet-4-5)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="seed of the emulated work")
    parser.add_argument(
        "--max-rounds", type=positive, default=5, metavar="N", help="rounds with calls at most"
    )
    parser.add_argument(
        "--tool-choice", default="auto", metavar="C", help="auto, none, required, or a tool's name"
    )
    parser.add_argument(
        "--no-parallel-tool-calls",
        dest="parallel_tool_calls",
        action="store_false",
        help="ask for one call per response: a baseline",
    )
    parser.add_argument("--model-limit", metavar="SPEC", help=defaults.MODEL_LIMIT)
    parser.add_argument("--stream", action="store_true", help="ask for streamed responses")
    parser.add_argument(
        "--allow-remote", action="store_true", help="let a load test go beyond this machine: it costs money"
    )


def add_content(parser: argparse.ArgumentParser) -> None:
    """Whether records hold what was said."""
    parser.add_argument(
        "--record-content", action="store_true", help="keep prompts, arguments and results in the records"
    )
    parser.add_argument(
        "--redact",
        metavar="MODULE:FUNCTION",
        help="with --record-content: a function that every text passes through, str to str",
    )


def positive(text: str) -> int:
    """A whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def seconds(text: str) -> float:
    """`10s`, `500ms`, `2m`, `1h`, or a plain number of seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h)?", text)
    if match is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a time: expected 10s, 500ms, 2m or a number of seconds"
        )
    return float(match[1]) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600}[match[2] or "s"]
