"""Predictions in several processes: results come in the order of what was asked, the same from any number.

Each process gets the fitted recording once. It ends when its parent does, however that ended.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, TypeVar

from profiler.limits.known import KnownQuota
from profiler.prediction.check import Checked, CheckedCell, Holdout, check_one, checked, halved, holdouts
from profiler.prediction.fitting import Fitted, fit_run
from profiler.prediction.predict import BAND, REPLICATES, Predicted, Question, predict
from profiler.records import LoopRecord
from profiler.rundir import Run
from profiler.statistics.objectives import Objective

A = TypeVar("A")
B = TypeVar("B")

Told = Callable[[int, int], None]
"""Told how many of how many are done."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How predictions are made: see `predict`."""

    objective: Objective | None = None
    replicates: int = REPLICATES
    seed: int = 0
    quotas: tuple[KnownQuota, ...] = ()


def cores() -> int:
    """Processors that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


class Predictor:
    """Answers questions about one recording. `told` hears of the progress of each batch."""

    def __init__(
        self, fitted: Fitted, settings: Settings, processes: int = 1, told: Told | None = None
    ) -> None:
        self.fitted = fitted
        self.settings = settings
        self._processes = processes
        self._told = told
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Predictor:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def __call__(self, questions: Sequence[Question], replicates: int | None = None) -> list[Predicted]:
        """The answers, in order. `replicates`: fewer than usual, where no band is asked for."""
        asked = [(question, replicates) for question in questions]
        if self._processes > 1 and len(asked) > 1:
            if self._pool is None:
                self._pool = _pool(self._processes, _begin, pickle.dumps((self.fitted, self.settings)))
            try:
                return _counted(self._pool.map(_predict, asked), len(asked), self._told)
            except BrokenProcessPool:  # no memory for another process, or none can be started from here
                self._processes = 1
        answers = (predicted(self.fitted, self.settings, *one) for one in asked)
        return _counted(answers, len(asked), self._told)


def predicted(
    fitted: Fitted, settings: Settings, question: Question, replicates: int | None = None
) -> Predicted:
    """One answer."""
    return predict(
        fitted,
        question,
        objective=settings.objective,
        replicates=replicates or settings.replicates,
        seed=settings.seed,
    )


def check_run(
    run: Run,
    records: Iterable[LoopRecord],
    settings: Settings,
    processes: int = 1,
    told: Told | None = None,
) -> Checked:
    """The check of a run (`profiler.prediction.check`)."""
    run, every = halved(run, records)
    parts = holdouts(run)
    given = pickle.dumps((run, every, settings))
    found: list[list[CheckedCell]] = []
    if processes > 1 and len(parts) > 1:
        pool = _pool(min(processes, len(parts)), _begin_check, given)
        try:
            found = _counted(pool.map(_check, parts), len(parts), told)
        except BrokenProcessPool:
            found = []
        finally:
            pool.shutdown(cancel_futures=True)
    if not found:
        _begin_check(given)
        found = _counted(map(_check, parts), len(parts), told)
    cells = [cell for part in found for cell in part]
    return checked(run, cells, replicates=settings.replicates, seed=settings.seed, band=BAND)


def _counted(results: Any, total: int, told: Told | None) -> list[Any]:
    found = []
    for one in results:
        found.append(one)
        if told is not None:
            told(len(found), total)
    return found


def _pool(processes: int, begin: Callable[[bytes], None], given: bytes) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(processes, context, initializer=_prepared, initargs=(begin, given))


def _prepared(begin: Callable[[bytes], None], given: bytes) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends this one
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    begin(given)


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


_own: tuple[Fitted, Settings] | None = None


def _begin(given: bytes) -> None:
    global _own
    _own = pickle.loads(given)


def _predict(asked: tuple[Question, int | None]) -> Predicted:
    assert _own is not None
    return predicted(*_own, *asked)


_whole: tuple[Run, list[LoopRecord], Settings] | None = None


def _begin_check(given: bytes) -> None:
    global _whole
    _whole = pickle.loads(given)


def _check(holdout: Holdout) -> list[CheckedCell]:
    assert _whole is not None
    run, records, settings = _whole

    def ask(run: Run, records: Sequence[LoopRecord], questions: Sequence[Question]) -> list[Predicted]:
        fitted = fit_run(run, records, seed=settings.seed)
        return [predicted(fitted, settings, question) for question in questions]

    return check_one(run, records, holdout, ask, settings.objective)
