"""The setting that was found, as code and configuration to paste."""

from __future__ import annotations

from profiler.strategies import parse_strategy


def python_snippet(spec: str, model_limits: str | None = None, workers: int = 1) -> str:
    """Python that applies a strategy's limits in an application, and the model's limiters if any."""
    strategy = parse_strategy(spec)
    lines: list[str] = []
    if strategy.gate is not None:
        limits = "+".join(part for part in spec.split("+") if not part.startswith("eager"))
        share = f", share={workers}" if workers > 1 else ""
        lines += [
            "from profiler import Gate",
            "",
            f'gate = Gate("{limits}"{share})  # one for the process',
        ]
        lines += [
            "",
            'async with gate.slot("tool_name"):',
            "    ...  # one try of one call: what it raises is heeded",
        ]
        lines += ["", "# or, with the built-in loop:"]
    lines.append("from profiler import ToolLoop")
    model = "model"
    if model_limits:
        lines.append("from profiler.limited import LimitedModel")
        model = f'LimitedModel(model, "{model_limits}")'
    lines += ["from profiler.strategies import parse_strategy", ""]
    streamed = ", stream=True" if strategy.eager != "no" else ""
    shared = f", share={workers}" if workers > 1 and strategy.gate is not None else ""
    lines.append(f'loop = ToolLoop({model}, tools, parse_strategy("{spec}"{shared}){streamed})')
    return "\n".join(lines) + "\n"


def toml_fragment(spec: str, model_limits: str | None = None) -> str:
    """The same as a table for a configuration file."""
    lines = ["[profiler.limits]", f'strategy = "{spec}"']
    if model_limits:
        lines.append(f'model = "{model_limits}"')
    return "\n".join(lines) + "\n"
