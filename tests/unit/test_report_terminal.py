"""What the terminal shows: the figures of the summary, in 80 columns, harmless whatever the names hold."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest

from profiler.records import Attempt, LoopRecord, ServerToolCall, Shortfall
from profiler.report.terminal import limits, overlap, render_comparison
from profiler.report.text import clean, duration, number, percent, use_color
from profiler.report.timeline import causes, render_timeline
from profiler.rundir import ClientCapacity, ClientHealth, Run
from profiler.shortfalls import EXPLAINED
from profiler.statistics.figures import MovingLimit, Overlap
from profiler.statistics.summary import Level, Summary, summarise
from profiler.strategies import StrategySpec
from tests.unit.statistics_data import MS, asked_by_nobody, loop, run, served, trial

STRATEGIES = ("sequential", "semaphore:4")


def experiment(failing: float = 0.0, **changes: object) -> tuple[Run, Summary]:
    """Three blocks of 200 loops of two strategies; `failing` of the second one's loops go unanswered."""
    rng = np.random.default_rng(5)
    trials, records = [], []
    for block in range(3):
        for strategy in STRATEGIES:
            index = len(trials)
            start = index * 60_000
            trials.append(trial(index, strategy, start, start + 20_000, block=block, users=20))
            for k in range(200):
                a, b = (float(x) for x in rng.lognormal(5, 0.3, 2))
                calls = [(0.0, a), (a if strategy == "sequential" else 0.0, b)]
                bad = strategy != "sequential" and rng.random() < failing
                made = loop(start + k * 100, calls=calls, strategy=strategy, trial=index, number=k)
                records.append(unanswered(made) if bad else made)
    conditions = run(trials, users=20, workers=2, **changes)  # type: ignore[arg-type]
    return conditions, summarise(conditions, records)


def unanswered(record: LoopRecord) -> LoopRecord:
    """The loop, had the first call of its first round failed."""
    first, *others = record.rounds
    failed = dataclasses.replace(first.tool_calls[0], status="error", error_type="HTTPStatusError")
    first = dataclasses.replace(first, tool_calls=(failed, *first.tool_calls[1:]))
    return dataclasses.replace(record, rounds=(first, *others))


def test_verdict_first_then_a_table_of_80_columns_then_the_path() -> None:
    made, summary = experiment()
    text = render_comparison(summary, made, 80, path="runs/x")
    lines = text.splitlines()
    assert lines[0].startswith("semaphore:4 is 1.")
    assert "faster than sequential at p95" in lines[0]
    assert max(len(line) for line in lines) <= 80
    assert lines[-1] == "runs/x"
    assert "\x1b" not in text
    row = next(line for line in lines if line.lstrip().startswith("sequential "))
    sequential = summary.strategies[0]
    assert number(sequential.loops.per_second) in row
    assert duration(sequential.loop_seconds.p95.value) in row
    assert duration(sequential.tool_phase_seconds.p50.value) in row
    assert "1.00×" in row
    assert row.endswith("0 %")


def test_long_name_takes_a_second_line_and_cuts_no_figure() -> None:
    made, summary = experiment()
    one = summary.strategies[0]
    long = dataclasses.replace(one, strategy="semaphore:get_weather=12+rate:20/s")
    text = render_comparison(dataclasses.replace(summary, strategies=(long,)), made, 80)
    table = text[text.index(" strategy ") : text.index("semaphore:get_weather=12+rate:20/s: ")].splitlines()
    assert table[0].endswith("  tools p50  speed-up  effic.  failed")
    assert "…" not in "".join(table)
    assert duration(one.loop_seconds.p95.value) in table[2]
    assert "".join(line.split()[0] for line in table[2:] if line) == long.strategy


def test_verdict_of_a_ladder_names_the_load_it_is_about() -> None:
    made, summary = experiment()
    levels = (Level(5, summary.strategies[:1]), Level(20, summary.strategies))
    lines = render_comparison(dataclasses.replace(summary, levels=levels), made, 200).splitlines()
    assert lines[0] == f"at 20 agents: {summary.verdicts[0].sentence}"
    assert [line for line in lines if line.endswith(" agents")] == ["5 agents", "20 agents"]


def test_terminal_says_where_the_time_goes() -> None:
    made, summary = experiment()
    line = next(x for x in render_comparison(summary, made).splitlines() if x.startswith("sequential: "))
    mean = summary.strategies[0].mean_loop_seconds
    assert line.startswith(f"sequential: {duration(mean)} a loop: tools ")
    assert "model 200 ms (" in line


def test_limit_that_moved_and_what_ran_beside_the_model_are_said() -> None:
    made, summary = experiment()
    one = dataclasses.replace(
        summary.strategies[0],
        strategy="eager+adaptive",
        limit=MovingLimit(9, 48, 40),
        overlap=Overlap(0.2, 0.15, 0.18),
    )
    text = render_comparison(dataclasses.replace(summary, strategies=(one,)), made, 100)
    assert "eager+adaptive: limit 9 to 48, last 40\n" in text
    said = "tools ran 200 ms a loop beside the model; saved 150 ms of at most 180 ms\n"
    assert f"eager+adaptive: {said}" in text
    assert overlap(dataclasses.replace(one, overlap=Overlap(0.2, -0.8, 0.18))) == (
        "tools ran 200 ms a loop beside the model; waits cost 800 ms more than it saved, 180 ms at most"
    )
    assert overlap(dataclasses.replace(one, strategy="gathered")) is None


def test_failures_lead_where_failures_differ() -> None:
    made, summary = experiment(failing=0.6)
    text = render_comparison(summary, made)
    assert text.startswith("61 % of the loops of semaphore:4 fail, 0 % of those of sequential (+61.0 points")
    assert "semaphore:4 has 2.5" in " ".join(text.split())
    assert "less goodput than sequential" in " ".join(text.split())
    assert "good/s" in text


def test_invalid_is_the_first_word() -> None:
    health = ClientHealth(process="w0", loop_lag_p99=0.4, cpu=0.97)
    made, summary = experiment(client=(health,))
    text = render_comparison(summary, made)
    assert text.startswith("invalid: this client is saturated: the event loop was late by 400 ms")
    assert summary.valid is False


def test_effective_total_of_a_limit_is_printed() -> None:
    made, summary = experiment()
    assert "semaphore:4: limit 4 × 2 workers = 8 calls at once" in render_comparison(summary, made)
    per_agent = dataclasses.replace(
        made, strategies=tuple(map(StrategySpec.recorded, ("gathered", "semaphore:3@agent", "my-own")))
    )
    assert limits(per_agent) == ["semaphore:3@agent: limit 3 × 20 agents = 60 calls at once"]


@pytest.mark.parametrize(
    ("client", "costs", "line"),
    [
        ("sdk", {"sdk": 0.0018, "lean": 0.0001}, "client: openai SDK, 1.8 ms CPU a request; lean 0.1"),
        ("lean", {"sdk": 0.0018, "lean": 0.0001}, "client: lean, 0.1 ms CPU a request; openai SDK 1.8"),
        ("lean", {"lean": 0.0001}, "client: lean, 0.1 ms CPU a request"),
        ("sdk", {}, None),
    ],
)
def test_cost_of_the_client_is_said_beside_that_of_the_other(
    client: str, costs: dict[str, float], line: str | None
) -> None:
    capacity = ClientCapacity(32, 100.0, 500.0, 0.005, costs)
    made, summary = experiment(capacity=capacity, arguments={"client": client})
    lines = render_comparison(summary, made, 100).splitlines()
    assert [said for said in lines if said.startswith("client: ")] == ([] if line is None else [line])


def test_narrow_terminal_is_not_overrun() -> None:
    made, summary = experiment()
    assert max(len(line) for line in render_comparison(summary, made, 60).splitlines()) <= 60


def test_colour_is_off_where_it_should_be() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert use_color(Terminal(), {}) is True
    assert use_color(Terminal(), {"NO_COLOR": "1"}) is False
    assert use_color(Terminal(), {"TERM": "dumb"}) is False
    assert use_color(io.StringIO(), {}) is False
    made, summary = experiment()
    assert "\x1b[1m" in render_comparison(summary, made, color=True)


EVIL = "\x1b[2J\x1b]0;owned\x07[red]x\u202eevil\n\r\u2028<img onerror=x>"


def test_hostile_names_harm_nothing() -> None:
    evil = "e" + EVIL
    trials = [trial(0, evil, 0, 1000)]
    record = loop(0, calls=[(0, 50)], strategy=evil)
    first = record.rounds[0]
    named = dataclasses.replace(first.tool_calls[0], name=EVIL)
    first = dataclasses.replace(first, tool_calls=(named,))
    record = dataclasses.replace(record, rounds=(first, *record.rounds[1:]))
    made = run(trials)
    outputs = [
        render_comparison(summarise(made, [record]), made, path=EVIL),
        render_timeline(record),
        render_timeline(dataclasses.replace(record, status="error", error_type=EVIL), 30),
    ]
    for text in outputs:
        assert not set(text) & set("\x1b\x07\r\u202e\u2028")
        assert "\\x1b" in text


def test_clean_shortens_before_it_escapes() -> None:
    assert clean("a\x00b") == "a\\x00b"
    assert clean("x" * 10_000_000, 11) == "xxxxx…xxxxx"
    assert clean("東京 – ok") == "東京 – ok"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (34.0, "34.0 s"),
        (2.314, "2.31 s"),
        (0.2314, "231 ms"),
        (0.00042, "0.42 ms"),
        (None, "–"),
        (150.2, "150 s"),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_percent_never_rounds_something_to_nothing() -> None:
    assert [percent(x) for x in (0.0, 0.0004, 0.053, 0.53, 1.0, None)] == [
        "0 %", "<0.1 %", "5.3 %", "53 %", "100 %", "–",
    ]  # fmt: skip


def thirty_four_seconds() -> LoopRecord:
    """Model 13 s; seven calls of 3 s through a semaphore of one, so the last waits 18 s."""
    return loop(0, model=6500, calls=[(3000 * k, 3000) for k in range(7)], strategy="semaphore:1")


def test_34_seconds_are_explained_in_three_lines() -> None:
    assert render_timeline(thirty_four_seconds()).splitlines()[:3] == [
        "34.0 s: 18.0 s (53 %) calls waited in the limiter semaphore:1; raise the limit",
        "        13.0 s (38 %) the model (2 requests, slowest 6.50 s)",
        "        3.00 s (8.8 %) tools ran (longest: get_weather, 3.00 s)",
    ]


@pytest.mark.parametrize(
    ("strategy", "said"),
    [
        ("semaphore:1 calls=2", "calls waited in the limiter semaphore:1; raise the limit"),
        ("sequential a=2", "calls ran one after another (sequential a=2); try gathered"),
        ("calls=2", "calls waited to be started"),
        ("gathered calls=2", "calls waited to be started"),
    ],
)
def test_limiter_is_named_without_the_settings_of_the_agent(strategy: str, said: str) -> None:
    record = dataclasses.replace(thirty_four_seconds(), strategy=strategy)
    assert render_timeline(record).splitlines()[0] == f"34.0 s: 18.0 s (53 %) {said}"


def test_timeline_does_not_call_the_model_what_its_limiter_held() -> None:
    record = loop(0, model=1000, calls=[(0, 500)])
    first, last = record.rounds
    first = dataclasses.replace(first, model=dataclasses.replace(first.model, limiter_wait_ns=800 * MS))
    record = dataclasses.replace(record, rounds=(first, last))
    assert {cause.kind: cause.ns / MS for cause in causes(record)} == {
        "model": 1200,
        "model_limiter": 800,
        "tools": 500,
    }
    text = render_timeline(record, 100)
    said = "800 ms (32 %) 1 model request waited in the model's limiter; raise it, if the quota allows more"
    assert said in " ".join(text.split())
    assert "the model (2 requests, slowest 1.00 s)" in text
    assert "model queue 800 ms (32 %)" in text
    row = next(line for line in text.splitlines() if line.startswith("model 1"))
    assert row.count("░") == pytest.approx(4 * row.count("▓"), abs=3)


def test_timeline_shows_the_tools_that_the_model_s_server_ran() -> None:
    """A search from 250 to 750 ms of a request of 1 s."""
    record = loop(0, model=1000)
    (only,) = record.rounds
    search = ServerToolCall("web_search", 250 * MS, 750 * MS)
    model = dataclasses.replace(only.model, server_tools=(search,))
    text = render_timeline(dataclasses.replace(record, rounds=(dataclasses.replace(only, model=model),)))
    assert "500 ms (50 %) the model's server ran tools of its own (web_search)" in text
    assert "1.00 s = model 500 ms (50 %) + server tools 500 ms (50 %)" in text
    row = next(line for line in text.splitlines() if line.startswith("model 1"))
    assert row.count("▒") == pytest.approx(row.count("▓"), abs=2)
    assert "server tools" not in render_timeline(record)


def test_timeline_blames_the_limiter_for_waiting_for_other_agents_too() -> None:
    record = loop(0, model=6500, calls=[(18_000, 3000)], strategy="semaphore:1")
    assert render_timeline(record).startswith("34.0 s: 18.0 s (53 %) calls waited in the limiter semaphore:1")


@pytest.mark.parametrize("spec", ["gathered", "eager", "eager:all"])
def test_timeline_blames_no_limiter_where_there_is_none(spec: str) -> None:
    waited = causes(loop(0, model=50, calls=[(100, 100)], strategy=spec))
    assert [(cause.words, cause.remedy) for cause in waited if cause.kind == "limiter"] == [
        ("calls waited to be started", "")
    ]


def test_causes_sum_to_the_wall_and_tell_strategies_apart() -> None:
    sequential = loop(0, model=50, calls=[(0, 100), (100, 100)], strategy="sequential")
    found = causes(sequential)
    assert sum(cause.ns for cause in found) == sequential.ended_ns - sequential.started_ns
    limiter = next(cause for cause in found if cause.kind == "limiter")
    assert (limiter.ns, limiter.words) == (100 * MS, "calls ran one after another (sequential)")
    assert limiter.remedy == "try gathered"


def test_loop_of_ones_own_that_awaits_its_calls_in_turn_is_told_so() -> None:
    record = loop(0, model=100, calls=[(0, 400), (400, 400)], strategy="application")
    first, *others = record.rounds
    first = dataclasses.replace(first, shortfall="application")
    text = render_timeline(dataclasses.replace(record, rounds=(first, *others)), 100)
    words = "400 ms (40 %) calls waited until the loop's own code started them; try asyncio.gather"
    assert words in " ".join(text.split())


def test_tool_that_holds_the_event_loop_is_named() -> None:
    record = loop(0, model=100, calls=[(0, 400), (400, 400)], strategy="semaphore:8")
    first, *others = record.rounds
    held = dataclasses.replace(first.tool_calls[0], name="resize", blocking_ns=390 * MS)
    first = dataclasses.replace(first, tool_calls=(held, first.tool_calls[1]), shortfall="blocked_loop")
    text = render_timeline(dataclasses.replace(record, rounds=(first, *others)), 100)
    assert "400 ms (40 %) calls waited while resize held the event loop (390 ms); make it await" in text


def test_backoff_is_not_the_model() -> None:
    record = loop(0, model=1000)
    model = dataclasses.replace(
        record.rounds[0].model,
        attempts=(Attempt(0, 200 * MS, 429), Attempt(900 * MS, 1000 * MS, 200)),
    )
    record = dataclasses.replace(record, rounds=(dataclasses.replace(record.rounds[0], model=model),))
    text = render_timeline(record, 200)
    said = "1.00 s: 700 ms (70 %) backoff before 1 retry of model requests; "
    assert text.startswith(f"{said}keep to the model's rate limit (--model-limit), or lower the load")
    assert "▓▓" in text
    assert "··" in text
    for first, words in (
        (Attempt(0, 200 * MS, 500), "500: look at the server"),
        (Attempt(0, 200 * MS, None, "timeout"), "timeout: look at the server"),
        (Attempt(0, 200 * MS, None, "refused"), "refused: look at the connection"),
    ):
        model = dataclasses.replace(model, attempts=(first, model.attempts[1]))
        record = dataclasses.replace(record, rounds=(dataclasses.replace(record.rounds[0], model=model),))
        assert render_timeline(record, 200).startswith(said + words)


def test_bars_show_wait_and_run_to_scale() -> None:
    record = loop(0, model=100, calls=[(200, 200), (0, 400)], strategy="semaphore:1")  # 600 ms
    lines = [line for line in render_timeline(record, 80).splitlines() if line.startswith("  get_weather ")]
    first, second = (line[14:-7] for line in lines)
    assert abs(first.count("░") - first.count("█")) <= 1
    assert first.count("░") > 10
    assert second.count("░") == 0
    assert abs(second.count("█") - 2 * first.count("█")) <= 2
    assert len(second) - len(second.lstrip()) == len(first) - len(first.lstrip())


def test_narrow_terminals_get_no_overrun() -> None:
    record = dataclasses.replace(thirty_four_seconds(), strategy="größe")
    for width in (20, 24, 30, 40, 57, 80, 200):
        assert max(len(line) for line in render_timeline(record, width).splitlines()) <= width


def test_decomposition_is_under_the_timeline() -> None:
    text = render_timeline(thirty_four_seconds(), 100)
    assert "34.0 s = model 13.0 s (38 %) + tools 21.0 s (62 %) + unaccounted 0.00 ms (0 %)" in text
    assert "7 tool calls in 1 of 2 rounds: 21.0 s of work in 21.0 s (speed-up 1.00, efficiency 14 %" in text


def test_failed_loop_says_so_first() -> None:
    record = loop(0, model=100, status="error")
    assert render_timeline(record).startswith(
        "100 ms: error (http_429). 100 ms (100 %) the model (1 request)"
    )


def test_objective_is_answered_by_name() -> None:
    made, summary = experiment(slo="p95<10s,errors<1%", failing=0.6)
    assert "objective p95<10s,errors<1%: met by sequential; missed by semaphore:4" in render_comparison(
        summary, made
    )


@pytest.mark.usefixtures("few_repeats")
def test_ladder_shows_every_load_and_the_law() -> None:
    trials = [
        trial(index, "gathered", index * 10_000, index * 10_000 + 4000, users=users)
        for index, users in enumerate((1, 2, 4, 8))
    ]
    records = [
        loop(index * 10_000 + k * 4000 / (20 * users), model=1, trial=index)
        for index, users in enumerate((1, 2, 4, 8))
        for k in range(20 * users)
    ]
    made = run(trials)
    lines = render_comparison(summarise(made, records), made).splitlines()
    assert [line for line in lines if line.endswith(("1 agent", "2 agents", "4 agents", "8 agents"))][:4] == [
        "1 agent", "2 agents", "4 agents", "8 agents",
    ]  # fmt: skip
    assert "gathered: no peak seen up to 8 agents" in lines


def serial_rounds(strategy: str = "gathered") -> LoopRecord:
    """Three rounds of four calls that a server answers one at a time, 200 ms apart."""
    rounds = [[served(5_000 * number, remote=200 * (place + 1)) for place in range(4)] for number in range(3)]
    return asked_by_nobody(*rounds, strategy=strategy)


def test_comparison_says_where_calls_of_mcp_servers_spent_their_time() -> None:
    conditions = run([trial(0, "gathered", 0, 60_000)])
    text = render_comparison(summarise(conditions, [serial_rounds()]), conditions, width=400)
    assert "MCP server docs (http, 2025-11-25): 12 calls, at most 4 at once\n" in text
    assert "  p50, p95 of a call 502 ms, 802 ms: client wait 1.00 ms, 1.00 ms; server + network" in text
    assert "MCP server docs runs parallel calls one at a time: 4 calls posted at once were answered" in text


def test_timeline_of_calls_that_no_model_asked_for_has_no_model() -> None:
    text = render_timeline(serial_rounds(), width=120)
    assert "model" not in text
    assert "MCP server docs (http, 2025-11-25): 12 calls" in text
    assert "runs parallel calls one at a time" in text.replace("\n", " ")


@pytest.mark.parametrize("kind", ["mcp_session", "mcp_server"])
def test_timeline_blames_the_session_or_the_server_for_waits_after_the_start(kind: Shortfall) -> None:
    made = serial_rounds()
    rounds = tuple(dataclasses.replace(one, shortfall=kind) for one in made.rounds)
    found = {cause.kind: cause for cause in causes(dataclasses.replace(made, rounds=rounds))}
    assert found[kind].ns == 3 * 600 * MS
    assert found[kind].words == EXPLAINED[kind].words
    assert found[kind].remedy == EXPLAINED[kind].remedy
    assert found["tools"].ns == 3 * 202 * MS
