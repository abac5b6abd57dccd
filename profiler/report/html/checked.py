"""The section about how well a run predicts itself, where `profiler predict RUN --check` was asked."""

from __future__ import annotations

from profiler.prediction.check import SCHEMA, Checked, CheckedFigure
from profiler.report.html.markup import Cell, Grid, bullets, name, strategy, text
from profiler.report.prediction import FIGURES, checked_figures, error_words, figure_words
from profiler.rundir import RunDirectory, decode

TITLE = "Prediction, checked"
ABOUT = (
    "Each level and each strategy was left out in turn and predicted from the others. Large: the error of "
    "the prediction; small: what was measured. Red: outside the band of the prediction."
)


def read_checked(directory: RunDirectory) -> Checked | None:
    """What the check of a run found; None where nobody asked. Raises `RecordError` for a broken file."""
    path = directory.prediction_path
    if not path.is_file():
        return None
    return decode(Checked, path.read_bytes(), str(path), SCHEMA)


def section(checked: Checked) -> str:
    """What it says in all, then a row for each cell that was predicted, and what was refused."""
    shown = checked_figures(checked)
    grid = Grid(
        "Predicted from the others, against what was measured",
        ["strategy", "left out", "agents", *(FIGURES[one] for one in shown)],
        sortable=True,
    )
    notes = [text(one, 600) for one in checked.sentences]
    for cell in checked.cells:
        if cell.refused:
            notes.append(
                f"Outside the recording: without {name(cell.left_out)}, {name(cell.strategy)} with "
                f"{cell.users}: {text(cell.refused[0], 600)}"
            )
        if not cell.figures:
            continue
        grid.rows.append(
            [
                Cell(strategy(cell.strategy), heading=True),
                Cell(name(cell.left_out), numeric=False),
                Cell(str(cell.users), cell.users),
                *(_cell(one, cell.figures.get(one)) for one in shown),
            ]
        )
    return bullets(notes, "notes") + (grid.html("table-checked") if grid.rows else "")


def _cell(figure: str, one: CheckedFigure | None) -> Cell:
    if one is None:
        return Cell("–")
    below = text(figure_words(figure, one.measured))
    return Cell(text(error_words(one)), one.error, below=below, kind="" if one.held else "bad")
