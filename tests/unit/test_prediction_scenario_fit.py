"""A recording as a page of figures: what was made up comes out again, and nothing of its content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import orjson
import pytest

from profiler.errors import RecordError
from profiler.prediction.fitting import fit_run
from profiler.prediction.requests import Requests, TrialPlaces
from profiler.prediction.scenario.columns import scores
from profiler.prediction.scenario.fit import GRIDS, SCHEMA, Counts, Fit, decode, encode
from profiler.prediction.scenario.parts import counts, fit_of, table
from profiler.records import Attempt, LoopRecord, ModelCall, RemoteCall, RoundRecord, ToolCall
from profiler.rundir import Trial
from tests.capacity_server import Shape, Tool
from tests.shaped_records import made_up, run_of

MS = 1_000_000


def shape(loop: float = 0.3, round_: float = 0.2) -> Shape:
    tools = [Tool.parse(text) for text in ("search=0.4,weight=2", "fetch=0.1")]
    return Shape("7", tools, 0.8, loop, round_, (2, 4), (1, 6), 0.2, 40, 100)


def fitted(records: Sequence[LoopRecord]) -> Fit:
    return fit_of(fit_run(run_of(len(records)), records), records)


@cache
def made() -> Fit:
    return fitted(list(made_up(shape(), 800)))


def call(number: int, name: str, seconds: float, **more: Any) -> ToolCall:
    start = number * 10_000 * MS
    return ToolCall(
        f"c{number}", name, start, start, started_ns=start, ended_ns=start + int(seconds * 1e9), **more
    )


def loop(number: int, *rounds: Sequence[ToolCall], model: float = 0.5, **of_model: Any) -> LoopRecord:
    """Its calls all start when their round does."""
    at = started = number * 10**12
    made_rounds = []
    for index, calls in enumerate((*rounds, ())):
        replied = at + int(model * 1e9)
        reply = ModelCall("openai", "m", at, replied, **of_model)
        moved = [
            replace(
                one,
                ready_ns=replied,
                queued_ns=replied,
                started_ns=replied,
                ended_ns=replied + one.ended_ns - (one.started_ns or 0),
            )
            for one in calls
        ]
        ended = max([replied, *(one.ended_ns for one in moved)])
        phases = (replied, ended) if moved else (None, None)
        made_rounds.append(RoundRecord(index, at, ended, reply, *phases, tuple(moved)))
        at = ended
    return LoopRecord(
        str(number), "gathered", "openai", "m", started, at, "ok", tuple(made_rounds), number=number, trial=0
    )


# Parts


def test_table_keeps_tails_and_has_no_more_points_than_values_behind_them() -> None:
    values = np.arange(1, 10_001, dtype=float)
    fine = table(values, np.ones(values.size))
    assert (fine.grid, fine.count, fine.mean) == ("fine", 10_000, 5000.0)
    at = dict(zip(fine.p, fine.values, strict=True))
    assert (at[0.0], at[1.0]) == (1, 10_000)
    assert [at[p] for p in (0.5, 0.95, 0.99, 0.999)] == pytest.approx([5000, 9500, 9900, 9990], rel=1e-3)
    assert [table(values[:n], np.ones(n)).grid for n in (0, 20, 100, 500)] == ["few", "few", "coarse", "fine"]
    assert table(np.array([]), np.array([])).values == (0.0,) * 5
    weighted = table(np.array([1.0, 2.0] * 200), np.array([3.0, 1.0] * 200))
    assert weighted.mean == 1.25
    assert dict(zip(weighted.p, weighted.values, strict=True))[0.7] == 1.0


def test_counts_put_neighbours_together_where_there_are_many() -> None:
    assert counts([1, 2, 2, 5], [1, 1, 1, 1]) == Counts((1, 2, 5), (0.25, 0.5, 0.25))
    many = counts(list(range(100)), [1.0] * 100, most=10)
    assert len(many.values) == 10
    assert many.mean == pytest.approx(49.5, abs=1)


def test_scores_are_standard_normal_and_keep_ties_together() -> None:
    found = scores(np.array([5.0, 1.0, 1.0, 9.0]))
    assert found[1] == found[2] < found[0] < found[3]
    assert (found.mean(), found.std()) == (pytest.approx(0, abs=0.1), pytest.approx(1))


# What was made up comes out


def test_durations_shares_and_correlations_of_a_recording_are_those_it_was_made_of() -> None:
    fit = made()
    fetch, search = fit.tools
    assert (fetch.name, search.name) == ("fetch", "search")
    assert search.share == pytest.approx(2 / 3, abs=0.02)
    assert fit.source.loops == 800
    assert fit.shape.rounds.values == (2, 3, 4)
    assert fit.shape.fan_out.values == (1, 2, 3, 4, 5, 6)
    assert fit.shape.fan_out_by_round == ()
    common = fit.shape.common
    assert common.loop == pytest.approx(0.3, abs=0.06)
    assert common.round == pytest.approx(0.5, abs=0.06)
    assert common.size == pytest.approx(0.3, abs=0.06)
    assert common.output_tokens > 0.8
    first, output, _, explained = fit.model.dependence or (0, 0, 0, 0)
    assert (first, output) == (pytest.approx(0.21, abs=0.02), pytest.approx(0.01, rel=0.05))
    assert explained > 0.8
    assert fit.model.first_token is None
    assert "the model's time to the first token: replies were not streamed" in fit.unknown


def test_recording_without_anything_in_common_has_none() -> None:
    common = fitted(list(made_up(shape(0.0, 0.0), 400))).shape.common
    assert (abs(common.loop), abs(common.round)) == (pytest.approx(0, abs=0.04), pytest.approx(0, abs=0.04))


def test_rounds_that_differ_are_told_apart() -> None:
    loops = [
        loop(n, [call(k, "plan", 0.2) for k in range(6)], [call(k, "do", 0.1) for k in range(2)])
        for n in range(150)
    ]
    fit = fitted(loops)
    assert fit.shape.fan_out_by_round == (Counts((6,), (1.0,)), Counts((2,), (1.0,)))
    assert {tool.name: tool.by_round for tool in fit.tools} == {"do": (0.0, 1.0), "plan": (1.0, 0.0)}
    assert fit.shape.same_tool > 0.9


def test_failures_of_its_own_are_by_kind_and_refusals_are_none() -> None:
    kinds = (
        [("error", "http_500")] * 2 + [("error", "ValueError")] + [("error", "http_429")] + [("ok", None)] * 7
    )
    loops = [
        loop(
            n, [call(k, "a", 0.2, status=status, error_type=error) for k, (status, error) in enumerate(kinds)]
        )
        for n in range(30)
    ]
    [tool] = fitted(loops).tools
    assert tool.failed == (("http_500", 0.2), ("ValueError", 0.1))
    assert tool.failed_share == pytest.approx(0.3)


def test_client_s_own_part_is_not_the_tool_s() -> None:
    loops = [loop(n, [call(0, "a", 0.2, sending_ns=20 * MS, late_ns=60 * MS)]) for n in range(30)]
    [tool] = fitted(loops).tools
    assert tool.seconds.values[2] == pytest.approx(0.15)


def test_streamed_replies_have_a_first_token_and_a_pace() -> None:
    loops = []
    for n in range(60):
        made_loop = loop(n, [call(0, "a", 0.2)], model=1.0, output_tokens=81, streamed=True)
        rounds = [
            replace(
                one,
                model=replace(
                    one.model,
                    first_token_ns=one.model.started_ns + 200 * MS,
                    attempts=(Attempt(one.model.started_ns, one.model.ended_ns, status=200),),
                ),
            )
            for one in made_loop.rounds
        ]
        loops.append(replace(made_loop, rounds=tuple(rounds)))
    model = fitted(loops).model
    assert model.first_token is not None
    assert model.per_token is not None
    assert (model.first_token.values[0], model.per_token.values[0]) == (0.2, 0.01)
    assert model.output_tokens is not None
    assert model.output_tokens.values[0] == 81


# The schema


def test_fit_is_a_page_and_comes_back_from_json() -> None:
    text = encode(made())
    assert len(text) < 12_000
    assert orjson.loads(text)["schema"] == SCHEMA
    assert decode(text) == made()


def test_fit_of_many_tools_is_still_a_page() -> None:
    loops = [loop(n, [call(k, f"tool_{k}", 0.1 + n / 1000) for k in range(40)]) for n in range(60)]
    fit = fitted(loops)
    assert len(fit.tools) == 40
    assert len(encode(fit)) < 24_000


def test_keys_of_a_later_version_are_passed_over_and_its_schema_is_refused() -> None:
    raw = orjson.loads(encode(made()))
    assert decode(orjson.dumps({**raw, "mood": "good"})) == made()
    with pytest.raises(RecordError, match="written by a newer version"):
        decode(orjson.dumps({**raw, "schema": 99}), "mine.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", "the fit: not valid JSON"),
        (b"[]", "the fit: not a fit of a recording: it has no schema number"),
        (b'{"schema": 1}', "the fit: not a fit of a recording: source: "),
    ],
)
def test_what_is_no_fit_is_refused_in_a_line(text: bytes, message: str) -> None:
    with pytest.raises(RecordError) as raised:
        decode(text)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_table_that_does_not_fit_its_grid_is_refused() -> None:
    raw = orjson.loads(encode(made()))
    raw["model"]["seconds"]["values"].pop()
    with pytest.raises(RecordError, match="does not have the values of its grid"):
        decode(orjson.dumps(raw))


def test_grids_begin_at_0_end_at_1_and_rise() -> None:
    for grid in GRIDS.values():
        assert (grid[0], grid[-1]) == (0.0, 1.0)
        assert list(grid) == sorted(set(grid))


def test_nothing_of_the_content_of_a_recording_is_in_it() -> None:
    canary = "CANARY"
    loops = []
    for n in range(30):
        remote = RemoteCall(f"https://{canary}.example", "http")
        made_call = call(0, "find", 0.2, arguments=canary, result=canary, remote=remote)
        made_loop = loop(n, [made_call], request_id=canary)
        loops.append(
            replace(made_loop, prompt=canary, text=canary, agent=canary, process=canary, model=canary)
        )
    run = replace(run_of(30), scenario=canary, model=canary, arguments={"base_url": canary, "prompt": canary})
    fit = fit_of(fit_run(run, loops), loops)
    assert canary not in encode(fit).decode()
    assert fit.servers[0].name == "server 1"
    assert canary not in str(_plain(fit))


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return [_plain(getattr(value, one.name)) for one in fields(value)]
    return value


CALL = call(0, "a", 1.0, sending_ns=3, late_ns=5)


def test_trials_of_the_same_strategy_and_users_are_one_level():
    trials = (
        Trial(0, 0, "gathered", 4, 0, 1, 1),
        Trial(1, 0, "sequential", 4, 2, 3, 3),
        Trial(2, 1, "gathered", 4, 4, 5, 5),
    )
    rows = Requests()
    for trial in (0, 1, 2, -1):
        rows.add(trial, trial + 1, False, trial, 7 + trial, None, CALL)
    calls = rows.calls(TrialPlaces.of(replace(run_of(1), trials=trials)))
    columns = [
        None if column is None else column.tolist() for column in (calls.block, calls.level, calls.loop)
    ]
    assert columns == [[0, 0, 1, -1], [0, 1, 0, -1], [7, 8, 9, 6]]
    assert (calls.sending is None, calls.late is None) == (False, False)
    assert (calls.sending.tolist(), calls.late.tolist()) == ([3] * 4, [5] * 4)
