"""From a recording to work that can be run again."""

from __future__ import annotations

from dataclasses import replace

from profiler.prediction.fitting import fit_run
from profiler.prediction.predict import Question, predict
from profiler.prediction.simulation.load import SimulatedLoad, Trials
from profiler.records import LoopRecord
from profiler.strategies import parse_strategy
from tests.unit.prediction_data import recorded


def test_call_that_never_began_fails_at_once_and_loads_no_server() -> None:
    """Its arguments were not readable, or the agent has no such tool."""
    run, records = recorded((2, 4), ("gathered",), blocks=6)

    def unread(record: LoopRecord, name: str) -> LoopRecord:
        first, *rest = record.rounds
        left = replace(
            first.tool_calls[0],
            name=name,
            status="error",
            error_type="invalid_json",
            started_ns=None,
            ended_ns=first.tool_calls[0].ready_ns,
        )
        return replace(record, rounds=(replace(first, tool_calls=(left, *first.tool_calls[1:])), *rest))

    for name, servers in (("search", ["search"]), ("unknown", ["search", "unknown"])):
        fitted = fit_run(run, [unread(one, name) for one in records])
        assert [fit.name for fit in fitted.servers] == servers
        calls = [call for loop in fitted.loops for call in loop.rounds[0].calls]
        of_name = calls[::2]
        assert {(call.service_ns, call.failed, call.filled) for call in of_name} == {(0, True, False)}
        assert {fitted.system.tools[call.tool] for call in of_name} == {name}
        assert all(call.service_ns > 0 and not call.failed for call in calls[1::2])
    said = "unknown: none of its calls began: each is taken to fail at once"
    question = Question(parse_strategy("gathered"), SimulatedLoad(3), Trials(5.0))
    found = predict(fitted, question, replicates=3)
    assert (found.refused, found.warnings[-1:]) == ((), (said,))
    assert found.figures["failure_rate"].value == 1.0
    # No call at all began: such as of a model that breaks the arguments of every one.
    alone = []
    for one in records:
        first, *rest = unread(one, "unknown").rounds
        alone.append(replace(one, rounds=(replace(first, tool_calls=first.tool_calls[:1]), *rest)))
    assert predict(fit_run(run, alone), question, replicates=3).refused == (said,)
