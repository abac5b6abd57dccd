"""The search, its answer, quotas, snippets: pure."""

from __future__ import annotations

import asyncio
import textwrap
from dataclasses import replace

import pytest

from profiler import UsageError
from profiler.load.options import LoadOptions
from profiler.records import Attempt, LoopRecord, ModelCall, RoundRecord, ToolCall
from profiler.statistics.comparison import Ratio
from profiler.statistics.quantiles import Estimate
from profiler.tune.answer import Answer, choose, python_snippet, render, toml_fragment
from profiler.tune.candidates import (
    Candidate,
    affordable,
    block_seconds,
    equivalent,
    first_limits,
    on_one_scale,
    overheads,
    pilot,
    refine,
    settled,
    settled_limit,
    shape,
    survivors,
)
from profiler.tune.quotas import Quota, advise, demand, parse_quota, seen_quota
from profiler.tune.search import Search

S = 1_000_000_000


def scored(
    spec: str, score: float | None, ratio: float | None = None, shown: bool = False, width: float = 0.05
) -> Candidate:
    """A candidate whose intervals are ± `width` of its score."""
    estimate = Estimate(None) if score is None else Estimate(score, score * (1 - width), score * (1 + width))
    limit = int(spec.split(":")[1]) if spec.startswith("semaphore:") else None
    against = (
        None if ratio is None else Ratio(ratio, ratio * (1 - width), ratio * (1 + width), 0.01, shown=shown)
    )
    return Candidate(spec, limit, estimate, estimate, estimate, Estimate(1.0), Estimate(0.0), 10.0, against)


def test_a_ladder_reaches_from_the_mean_to_the_peak_or_lies_around_a_guess():
    assert first_limits(16, 1) == [1, 2, 4, 8, 16]
    assert first_limits(1) == [1]
    assert first_limits(160, 10, guess=20) == [10, 14, 20, 28, 40]
    assert first_limits(4, guess=2) == [1, 2, 3, 4]
    assert first_limits(5, 40) == [5]  # a peak below the mean is no peak: nothing was lost there


def test_refining_looks_between_the_best_and_its_neighbours():
    found = refine({10: 3.0, 20: 5.0, 40: 4.0})
    assert 20 in found
    assert all(10 < limit < 40 for limit in found)
    assert len(found) == 5
    assert max(refine({10: 3.0, 20: 5.0})) > 20  # the best is the last: look beyond it
    assert min(refine({10: 5.0, 20: 3.0})) < 10
    assert refine({}) == []
    assert 1 in refine({1: 5.0, 2: 5.0})


def test_who_is_shown_to_be_worse_is_out():
    found = [
        scored("gathered", 1.0, 0.2, shown=True),
        scored("semaphore:8", 4.9, 0.98),
        scored("semaphore:16", 5.0),
        scored("adaptive", None),
    ]
    assert [one.spec for one in survivors(found)] == ["semaphore:16", "semaphore:8"]


def test_rungs_of_different_lengths_are_put_on_one_scale():
    """The same system, of which the first rung saw a quarter more than the last."""
    first = [scored("gathered", 1.0), scored("semaphore:10", 5.0), scored("semaphore:20", 10.0)]
    last = [scored("gathered", 2.0), scored("semaphore:16", 6.4), scored("semaphore:20", 8.0)]
    curve = on_one_scale([first, last])
    assert [(one.limit, one.score.value) for one in curve] == [(10, pytest.approx(4.0)), (16, 6.4), (20, 8.0)]
    assert curve[0].goodput.high == pytest.approx(4.0 * 1.05)


def test_the_shape_of_a_curve():
    curve = [
        scored("semaphore:5", 2.0, 0.4, shown=True),
        scored("semaphore:10", 4.8, 0.96, shown=True),
        scored("semaphore:18", 4.95, 0.99),
        scored("semaphore:20", 5.0),
        scored("semaphore:22", 4.9, 0.98),
        scored("semaphore:40", 1.0, 0.2, shown=True),
    ]
    found = shape(curve, 20)
    assert (found.best, found.knee, found.cliff, found.low, found.high) == (20, 10, 40, 18, 22)
    assert shape(curve[:4], 20).cliff is None
    curve[4] = scored(
        "semaphore:22", 2.0, 0.4, width=1.0
    )  # not shown, for want of loops: no reason to name it
    assert shape(curve, 20).high == 20


def test_the_simplest_of_those_without_a_difference_is_chosen():
    best = scored("adaptive", 5.0)
    assert (
        choose([best, scored("gathered", 4.9, 0.98), scored("semaphore:8", 4.95, 0.99)])[0].spec == "gathered"
    )
    chosen, as_good = choose(
        [best, scored("gathered", 1.0, 0.2, shown=True), scored("semaphore:8", 4.95, 0.99)]
    )
    assert (chosen.spec, as_good) == ("semaphore:8", False)
    assert choose([best, scored("semaphore:8", 4.0, 0.8, shown=True)])[0].spec == "adaptive"
    # Of two that are alike, the one under which fewer fail.
    failing = replace(scored("semaphore:22", 5.0), failures=Estimate(0.1))
    assert choose([failing, scored("semaphore:20", 4.95, 0.99)])[0].spec == "semaphore:20"
    # Not shown, but far behind: too few loops are no proof that it is as good.
    assert choose([best, scored("gathered", 4.0, 0.8, width=0.5)])[0].spec == "adaptive"


def answer(final: list[Candidate], curve: list[Candidate], **changes) -> Answer:
    setting, as_good = choose(final)
    values = {
        "setting": setting,
        "objective": "goodput",
        "final": tuple(final),
        "curve": tuple(curve),
        "shape": shape(curve, setting.limit) if setting.limit else None,
        "gathered_is_as_good": as_good,
        "loads": (),
        "scalability": None,
        "rates": (),
        "python": "",
        "toml": "",
        "effective": "",
        "runs": ("runs/1",),
        "seconds": 290.0,
    }
    return Answer(**{**values, **changes})


def test_the_answer_is_a_sentence_with_its_evidence():
    final = [
        scored("semaphore:48", 5.7),
        scored("gathered", 0.9, 0.16, shown=True),
        scored("semaphore:38", 5.4, 0.95),
    ]
    curve = [scored("semaphore:44", 5.6, 0.98), final[0], scored("semaphore:56", 5.65, 0.99)]
    found = answer(final, curve)
    assert found.sentence == (
        "semaphore:48, shared: goodput 5.7/s [5.42, 5.99] against 0.9/s [0.855, 0.945] for gathered; "
        "between 44 and 56 no difference shown"
    )
    assert found.headroom == (
        "headroom: at semaphore:38 (80 % of the limit) 95% of it are left: 5.4/s [5.13, 5.67]"
    )
    text = render(found)
    assert "knee at 44, no cliff seen" in text
    assert text.splitlines()[0] == found.sentence + "."


def test_where_gathering_is_as_good_the_answer_says_so():
    found = answer([scored("semaphore:48", 5.7), scored("gathered", 5.65, 0.99)], [])
    assert found.sentence == (
        "gathered: at this load gathering is as good as any limit: goodput 5.65/s [5.37, 5.93]; "
        "no difference shown from semaphore:48, 5.7/s [5.42, 5.99]"
    )
    assert found.headroom is None


def test_what_is_invalid_comes_first():
    assert render(answer([scored("gathered", 1.0)], [], invalid=("invalid: the client",))).startswith(
        "invalid: the"
    )


def test_time_is_cut_into_blocks_with_their_drains():
    assert block_seconds(60, trials=20, drain=1) == 2
    assert block_seconds(10, trials=20, drain=1) == 1  # never shorter than says anything


def test_long_drains_leave_fewer_blocks():
    assert affordable(60, candidates=5, blocks=8, drain=0.5) == 8
    assert affordable(60, candidates=5, blocks=8, drain=2.0) == 4
    assert affordable(5, candidates=5, blocks=8, drain=2.0) == 2


def test_settled_when_everything_is_told_apart_or_alike_with_room_to_spare():
    best = scored("semaphore:20", 5.0)
    far = scored("gathered", 1.0, 0.2, width=0.3)
    assert settled([best, far])
    assert settled([best, far, scored("semaphore:16", 4.95, 0.99, width=0.02)])
    # Shown at the end, but not when one looks more than once: 0.9 ± 8 % counts as ± 12 %.
    assert not settled([best, scored("semaphore:16", 4.5, 0.9, width=0.08)])
    assert not settled([best, far, scored("adaptive", 4.9, 0.98, width=0.05)])
    assert not settled([best, scored("adaptive", None)])
    assert settled([best, scored("gathered", 0.0)])  # not one loop ended well
    assert not settled([best])


def test_a_difference_that_does_not_matter_is_none():
    best, close = scored("semaphore:64", 5.0), scored("gathered", 4.9, 0.98, shown=True, width=0.02)
    assert equivalent(close.against_best)
    assert not equivalent(close.against_best, wider=3)
    assert choose([best, close]) == (close, True)
    found = answer([best, close], [])
    assert found.sentence.endswith("; within 5 % of semaphore:64, 5/s [4.75, 5.25]")


# ── records ────────────────────────────────────────────────────────────────────────────────────


def loop(
    start: int, limit: int | None, *, strategy: str = "adaptive", error: str | None = None, **model
) -> LoopRecord:
    call = ToolCall("c", "look", start, start, start, start + S, "error" if error else "ok", error)
    asked = ModelCall("openai", "gpt-4o", start, start, input_tokens=200, output_tokens=50, **model)
    round_ = RoundRecord(0, start, start + S, asked, start, start + S, (call, call), limit=limit)
    return LoopRecord(f"l{start}", strategy, "openai", "gpt-4o", start, start + S, "ok", (round_,), trial=0)


def test_where_an_adaptive_limit_settled():
    records = [loop(i * S, limit) for i, limit in enumerate([8, 16, 32, 21, 20, 20, 19])]
    assert settled_limit(records) is None  # nothing was refused: it only grew
    records[3] = loop(3 * S, 21, error="http_429")
    assert settled_limit(records) == 20


def test_a_pilot_tells_the_peak_and_what_trials_cost():
    from types import SimpleNamespace

    trial = SimpleNamespace(strategy="gathered", started_ns=0, ended_ns=4 * S, drained_ns=5 * S)
    later = SimpleNamespace(strategy="adaptive", started_ns=6 * S, ended_ns=10 * S, drained_ns=12 * S)
    records = [loop(0, None, strategy="gathered"), replace(loop(S // 2, None, strategy="gathered"), id="b")]
    run = SimpleNamespace(trials=(trial, later), load=SimpleNamespace(users=10))
    found = pilot(run, records)
    assert (found.peak, found.mean, found.guess) == (4, 1.0, None)
    assert overheads(run, 18.0) == (2.0, 6.0)
    records.append(loop(S, None, strategy="gathered", error="http_429"))
    assert pilot(run, records).peak == 20  # ten agents that ask for two calls at once


# ── quotas ─────────────────────────────────────────────────────────────────────────────────────


def test_a_quota_by_hand():
    assert parse_quota("openai:rpm=500,tpm=30000") == Quota(
        "openai", {"requests": 500, "tokens": 30000}, "as given"
    )
    assert parse_quota("itpm=100").provider == "model"
    for wrong in ("openai", "openai:rpm=0", "openai:qpm=3", "openai:rpm=-1"):
        with pytest.raises(UsageError, match="--quota"):
            parse_quota(wrong)


def test_the_largest_rate_without_429s():
    taken = demand([loop(0, None), loop(S, None)])
    assert taken is not None
    assert (taken.requests, taken.input_tokens, taken.output_tokens, taken.tools) == (1, 200, 50, {"look": 2})
    advice = advise(parse_quota("openai:rpm=500,tpm=30000"), taken)
    assert advice is not None
    assert advice.loops_per_second == pytest.approx(2.0)  # 30,000 / 60 / 250
    assert advice.bound_by == "tokens"
    assert advice.shares == {"requests": pytest.approx(0.24), "tokens": pytest.approx(1.0)}
    assert advice.tools == {"look": pytest.approx(4.0)}
    assert advice.models == {"gpt-4o": 1.0}
    assert advice.limits == "rate:500/min+tokens:30000/min"
    assert advice.sentence == (
        "openai (as given): up to 2 loops/s (120/min) without a 429, bound by tokens; "
        "that uses 24% of requests, 100% of tokens"
    )
    split = advise(parse_quota("anthropic:itpm=12000,otpm=6000"), taken)
    assert split is not None
    assert (split.bound_by, split.limits) == ("input_tokens", "tokens:15000/min")  # 12,000 · 250 / 200


def test_the_quota_that_headers_state():
    def attempt(**headers: str) -> Attempt:
        return Attempt(0, 1, 200, rate_limits=headers)

    states = [
        attempt(**{"x-ratelimit-limit-requests": "360", "x-ratelimit-remaining-requests": "3"}),
        attempt(**{"x-ratelimit-limit-requests": "300", "x-ratelimit-limit-tokens": "-1"}),
    ]
    quota = seen_quota([loop(0, None, attempts=(one,)) for one in states])
    assert quota == Quota("openai", {"requests": 300.0}, "from its headers")
    unlimited = attempt(**{"x-ratelimit-limit-requests": "1000000", "x-ratelimit-limit-tokens": "1000000000"})
    assert seen_quota([loop(0, None, attempts=(unlimited,))]) is None


# ── snippets ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "spec", ["gathered", "semaphore:48", "adaptive", "eager+semaphore:8", "semaphore:8+rate:5/s"]
)
def test_the_snippet_runs(spec):
    code = python_snippet(spec, "rate:500/min+tokens:30000/min")
    from profiler.testing import ScriptedModel

    body = "async def main(model, tools):\n" + textwrap.indent(code, "    ") + "    return loop\n"
    scope: dict = {}
    exec(body, scope)
    made = asyncio.run(scope["main"](ScriptedModel([]), []))
    assert made.strategy.spec == spec
    assert made.model.gate.rules[1].text == "tokens:30000/min"


def test_the_toml_fragment_says_the_same():
    import tomllib

    parsed = tomllib.loads(toml_fragment("semaphore:48", "rate:500/min"))
    assert parsed == {"profiler": {"limits": {"strategy": "semaphore:48", "model": "rate:500/min"}}}


def test_what_cannot_be_searched_is_refused():
    with pytest.raises(UsageError, match="--budget must be at least 60"):
        Search(LoadOptions(), 10, budget=10)
    with pytest.raises(UsageError, match="--over magic"):
        Search(LoadOptions(), 10, over=("magic",))
    with pytest.raises(UsageError, match="add --stream"):
        Search(LoadOptions(), 10, over=("eager",))
