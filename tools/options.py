"""The README's table of options, from their declarations: `python -m tools.options` writes it."""

from __future__ import annotations

from pathlib import Path

from profiler.load.declared import SWITCH, Option
from profiler.load.options import GROUPS, LoadOptions, Size

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN = "<!-- options: written by `python -m tools.options` -->\n"
END = "<!-- end of options -->\n"


def table() -> str:
    """A row for each option that somebody may type, in order of their groups."""
    found = [declared for cls in (Size, LoadOptions) for _, declared in cls.declared()]
    rows = ["| option | in | what |", "|---|---|---|"]
    for group in GROUPS:
        rows += [_row(declared) for declared in found if declared.group == group and not declared.hidden]
    return "\n".join(rows) + "\n"


def _row(option: Option) -> str:
    value = "" if option.kind is SWITCH else f" {option.value_name or '|'.join(option.choices)}"
    cells = (f"`{option.flag}{value}`", ", ".join(option.commands), option.explained)
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def written(text: str) -> str:
    """The README's `text` with its table replaced by a new one."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    README.write_text(written(README.read_text(encoding="utf-8")), encoding="utf-8")
