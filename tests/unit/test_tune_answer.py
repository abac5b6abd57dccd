"""What the answer of a search says, also where there is little to say; snippets that run."""

from __future__ import annotations

import asyncio
import textwrap
from dataclasses import replace

import pytest

from profiler.limits.known import parse_quota
from profiler.over import parse_over
from profiler.statistics.comparison import Ratio
from profiler.statistics.quantiles import Estimate
from profiler.tune.answer import AtLoad, choose, per_second, python_snippet, render, seconds, toml_fragment
from profiler.tune.candidates import equivalent, shape
from profiler.tune.dial import dial_of
from profiler.tune.quotas import advise, demand
from tests.unit.tune_data import answer, loop, scored


def test_choice_is_the_simplest_of_those_without_a_difference():
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


def test_answer_is_a_sentence_with_its_evidence():
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


def test_value_that_looked_better_before_and_was_not_measured_again_is_named():
    final = [scored("semaphore:48", 5.7), scored("gathered", 0.9, 0.16, shown=True)]
    looked_better = scored("semaphore:20", 6.1, 1.07)
    assert answer(final, [scored("semaphore:44", 5.8, 1.02), final[0]]).overlooked is None
    found = answer(final, [looked_better, final[0]])
    assert found.overlooked == (
        "semaphore:20 looked better in an earlier stage (6.1/s [5.79, 6.41]) and was not measured again "
        "beside it: a longer --budget has time for that"
    )
    assert f"{found.overlooked}." in render(found)


def test_answer_says_so_where_gathering_is_as_good():
    found = answer([scored("semaphore:48", 5.7), scored("gathered", 5.65, 0.99)], [])
    assert found.sentence == (
        "gathered: at this load gathering is as good as any limit: goodput 5.65/s [5.37, 5.93]; "
        "no difference shown from semaphore:48, 5.7/s [5.42, 5.99]"
    )
    assert found.headroom is None


def test_answer_says_first_what_is_invalid():
    assert render(answer([scored("gathered", 1.0)], [], invalid=("invalid: the client",))).startswith(
        "invalid: the"
    )


def test_choice_ignores_a_difference_that_does_not_matter():
    best, close = scored("semaphore:64", 5.0), scored("gathered", 4.9, 0.98, shown=True, width=0.02)
    assert equivalent(close.against_best)
    assert not equivalent(close.against_best, wider=3)
    assert choose([best, close]) == (close, True)
    found = answer([best, close], [])
    assert found.sentence.endswith("; within 5 % of semaphore:64, 5/s [4.75, 5.25]")


@pytest.mark.parametrize(
    "spec", ["gathered", "semaphore:48", "adaptive", "eager+semaphore:8", "semaphore:8+rate:5/s"]
)
def test_snippet_runs(spec):
    code = python_snippet(spec, "rate:500/min+tokens:30000/min")
    from profiler.testing import ScriptedModel

    body = "async def main(model, tools):\n" + textwrap.indent(code, "    ") + "    return loop\n"
    scope: dict = {}
    exec(body, scope)
    made = asyncio.run(scope["main"](ScriptedModel([]), []))
    assert made.strategy.spec == spec
    assert made.model.gate.rules[1].text == "tokens:30000/min"


def test_strategy_for_an_agent_is_pasted_as_what_its_own_code_has_to_do():
    code = python_snippet("semaphore:4", "rate:500/min", agent="my_app:agent")
    assert 'gate = Gate("semaphore:4")  # one for the process' in code
    assert (
        "# where tools run in threads: threading.BoundedSemaphore(4), and `with` it around each call" in code
    )
    assert code.endswith("\n# model requests: rate:500/min (profiler.limited.LimitedModel)\n")
    assert "ToolLoop" not in code
    assert "BoundedSemaphore" not in python_snippet("adaptive", agent="my_app:agent")
    nothing = python_snippet("gathered", agent="my_app:agent")
    assert nothing == "# nothing to change: the calls of a reply may all run at once\n"


def test_setting_of_an_agent_is_pasted_as_the_call_of_its_factory():
    import tomllib

    code = python_snippet("calls=8 mode=fast", None, agent="my_app.agents:make_agent")
    assert code == "from my_app.agents import make_agent\n\nmake_agent(..., calls=8, mode='fast')\n"
    limited = python_snippet("calls=8", "rate:500/min", agent="my_app:make_agent")
    assert limited.endswith("\n# model requests: rate:500/min (profiler.limited.LimitedModel)\n")
    parsed = tomllib.loads(toml_fragment("calls=8 fast=true mode=x", "rate:500/min"))
    assert parsed == {
        "agent": {"calls": 8, "fast": True, "mode": "x"},
        "profiler": {"limits": {"model": "rate:500/min"}},
    }


SETTING = dial_of(parse_over("calls=1..32"))


def test_of_values_that_are_as_good_the_smallest_is_chosen():
    final = [valued(32, 5.0), valued(8, 4.95, 0.99), valued(4, 4.0, 0.8, shown=True)]
    assert choose(final, SETTING)[0].spec == "calls=8"
    close = replace(
        valued(4, 4.8, 0.96, shown=True), against_best=Ratio(0.96, 0.955, 0.965, 0.01, shown=True)
    )
    assert choose([*final[:2], close], SETTING)[0].spec == "calls=4"  # shown to be within 5 %
    failing = replace(valued(2, 4.95, 0.99), failures=Estimate(0.2))
    assert choose([*final[:2], failing], SETTING)[0].spec == "calls=8"


def valued(value: int, *arguments, **more):
    return replace(scored(f"calls={value}", *arguments, **more), limit=value)


def test_answer_of_a_setting_is_held_against_its_largest_value():
    final = [valued(8, 5.0), valued(32, 2.0, 0.4, shown=True)]
    found = answer(final, final, baseline="calls=32", dial="calls", shape=shape(final[:1], 8))
    assert found.sentence == "calls=8: goodput 5/s [4.75, 5.25] against 2/s [1.9, 2.1] for calls=32"
    assert [line for line in render(found).splitlines() if line.startswith("   value")]


def test_toml_fragment_says_the_same():
    import tomllib

    parsed = tomllib.loads(toml_fragment("semaphore:48", "rate:500/min"))
    assert parsed == {"profiler": {"limits": {"strategy": "semaphore:48", "model": "rate:500/min"}}}


def test_answer_of_gathering_against_nothing_needs_no_comparison():
    found = answer([scored("gathered", 5.0)], [])
    assert found.sentence == (
        "gathered: at this load gathering is as good as any limit: goodput 5/s [4.75, 5.25]"
    )


def test_setting_that_is_no_semaphore_is_not_called_shared():
    final = [scored("adaptive", 5.0), scored("gathered", 4.0, 0.8, width=0.5)]
    found = answer(final, [])
    assert found.sentence == (
        "adaptive: goodput 5/s [4.75, 5.25] against 4/s [2, 6] for gathered (no difference shown)"
    )
    assert found.headroom is None


def test_headroom_needs_the_setting_at_four_fifths():
    final = [scored("semaphore:10", 5.0), scored("semaphore:9", 4.9, 0.98)]
    assert answer(final, final).setting.spec == "semaphore:10"
    assert answer(final, final).headroom is None
    without_score = [scored("semaphore:10", 5.0), scored("semaphore:8", None)]
    assert answer(without_score, without_score).headroom is None


def test_setting_is_the_first_one_where_nothing_has_a_score():
    setting, as_good = choose([scored("semaphore:8", None), scored("adaptive", None)])
    assert (setting.spec, as_good) == ("semaphore:8", False)


def test_figures_of_an_objective():
    p95 = replace(scored("semaphore:8", 2.0), p95=Estimate(0.5, 0.4, 0.6))
    assert answer([p95], [p95], objective="p95").sentence == "semaphore:8, shared: p95 0.5 s [0.4, 0.6]"
    throughput = replace(scored("semaphore:8", 2.0), throughput=Estimate(7.0))
    assert answer([throughput], [throughput], objective="throughput").sentence == (
        "semaphore:8, shared: throughput 7/s"
    )
    assert (per_second(Estimate(None)), seconds(Estimate(None))) == ("too few", "too few")
    assert (per_second(Estimate(5.678)), seconds(Estimate(1.234))) == ("5.68/s", "1.23 s")


def test_text_has_the_curve_other_loads_scalability_and_rates():
    final = [scored("semaphore:20", 5.0), scored("gathered", 1.0, 0.2, shown=True)]
    curve = [scored("semaphore:10", 4.0, 0.8, shown=True), final[0], scored("semaphore:40", 1.0)]
    taken = demand([loop(0, None)])
    assert taken is not None
    found = answer(
        final,
        curve,
        loads=(AtLoad(1.5, 30, final[0], final[1]), AtLoad(0.5, 10, final[0], None)),
        scalability="goodput peaks at about 40 [35, 50] agents",
        rates=(advise(parse_quota("openai:tpm=30000"), taken),),
        effective="semaphore:20: up to 20 calls at once",
        runs=("runs/1", "runs/2"),
    )
    lines = render(found).splitlines()
    assert "      20  5/s [4.75, 5.25]             1 s                        0.0%  ←" in lines
    assert "      10  4/s [3.8, 4.2]               1 s                        0.0%" in lines
    assert "knee at 20, cliff at 40" in lines
    assert "  +50% (30 agents): semaphore:20 5/s [4.75, 5.25]; gathered 1/s [0.95, 1.05]" in lines
    assert "  -50% (10 agents): semaphore:20 5/s [4.75, 5.25]" in lines
    assert "goodput peaks at about 40 [35, 50] agents" in lines
    assert "  look: 4 calls/s at that rate" in lines
    assert "  gpt-4o: 100% of the tokens" in lines
    assert lines[-1] == "290 s, 2 experiments: runs/1, runs/2"


def test_curve_is_shown_too_where_what_is_set_is_no_limit():
    final = [scored("adaptive", 5.0), scored("semaphore:20", 4.0, 0.8, shown=True)]
    curve = [scored("semaphore:10", 3.0), final[1]]
    lines = render(answer(final, curve, shape=shape(curve, 20))).splitlines()
    assert lines[:6] == [
        "adaptive: goodput 5/s [4.75, 5.25].",
        "",
        "   limit  goodput                      p95                        failed",
        "      10  3/s [2.85, 3.15]             1 s                        0.0%",
        "      20  4/s [3.8, 4.2]               1 s                        0.0%",
        "",
    ]
    assert lines[6:10] == [
        "knee at 20, no cliff seen",
        "",
        "in the same paired blocks:",
        "                strategy  goodput                      p95                        failed",
    ]
