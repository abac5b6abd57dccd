"""Which request a starting tool belongs to: what fits decides, and what cannot be told apart is counted."""

from __future__ import annotations

import contextvars
import threading

from profiler.loop.model import CallRequest
from profiler.watch.profiler import Profiler


def asked(loop, *requests):
    """A round of a loop that asks for these calls, each (id, arguments as JSON)."""
    round_ = loop.begin_round("openai-chat", "m")
    round_.unclaimed += [(CallRequest(id_, "search", arguments), 0) for id_, arguments in requests]
    return round_


def outside(function, *args, **kwargs):
    """Run a function in a thread without the context of any loop."""
    thread = threading.Thread(target=contextvars.Context().run, args=(function, *args), kwargs=kwargs)
    thread.start()
    thread.join()


def watching(*loops):
    """The records of open loops, by name, after `loops[-1]` has run; the others each set one up."""
    records = []
    prof = Profiler([records.append])
    search = prof.tool(lambda **arguments: None, name="search")
    contexts = []
    for name, set_up in loops[:-1]:
        context = contextvars.Context()
        entered = prof.loop(name)
        set_up(context.run(entered.__enter__))
        contexts.append((context, entered))
    loops[-1](search)
    for context, entered in contexts:
        context.run(entered.__exit__, None, None, None)
    return {record.name: record for record in records}, prof


def ids(record):
    return [call.id for call in record.tool_calls]


def test_in_a_thread_without_context_the_loop_whose_arguments_fit_has_the_call():
    records, prof = watching(
        ("older", lambda loop: asked(loop, ("a", '{"ms": 500}'))),
        ("younger", lambda loop: asked(loop, ("b", '{"ms": 100}'))),
        lambda search: [outside(search, ms=100), outside(search, ms=500)],
    )
    assert (ids(records["older"]), ids(records["younger"])) == (["a"], ["b"])
    assert [record.ambiguous_calls for record in records.values()] == [0, 0]
    assert prof.orphan_calls == 0


def test_a_call_that_fits_no_open_loop_belongs_to_none():
    records, prof = watching(
        ("older", lambda loop: asked(loop, ("a", '{"ms": 500}'))),
        ("younger", lambda loop: asked(loop, ("b", '{"ms": 100}'))),
        lambda search: outside(search, ms=7),
    )
    assert [ids(record) for record in records.values()] == [[], []]
    assert prof.orphan_calls == 1
    assert sum(record.orphan_calls for record in records.values()) == 1  # once, in the next record


def test_equal_calls_are_interchangeable_in_a_round_and_ambiguous_between_loops_and_rounds():
    same = '{"q": "x"}'
    records, _ = watching(
        ("one", lambda loop: asked(loop, ("a", same), ("b", same))),
        lambda search: [outside(search, q="x"), outside(search, q="x")],
    )
    assert (sorted(ids(records["one"])), records["one"].ambiguous_calls) == (["a", "b"], 0)
    records, _ = watching(
        ("one", lambda loop: asked(loop, ("a", same))),
        ("two", lambda loop: asked(loop, ("b", same))),
        lambda search: outside(search, q="x"),
    )
    assert sum(record.ambiguous_calls for record in records.values()) == 1
    records, _ = watching(
        ("one", lambda loop: (asked(loop, ("a", same)), asked(loop, ("b", same)))),
        lambda search: outside(search, q="x"),
    )
    assert (ids(records["one"]), records["one"].ambiguous_calls) == (["b"], 1)


def test_a_late_call_joins_the_round_that_asked_for_it():
    records, _ = watching(
        ("one", lambda loop: (asked(loop, ("a", '{"q": "x"}')), asked(loop, ("b", '{"q": "y"}')))),
        lambda search: outside(search, q="x"),
    )
    assert [ids_of_round(round_) for round_ in records["one"].rounds] == [["a"], []]
    assert records["one"].ambiguous_calls == 0


def ids_of_round(round_):
    return [call.id for call in round_.tool_calls]


def test_changed_arguments_are_taken_for_the_only_call_there_is_until_one_fits():
    records, _ = watching(
        ("one", lambda loop: asked(loop, ("a", '{"q": "x"}'))), lambda search: outside(search, query="x")
    )
    assert (ids(records["one"]), records["one"].ambiguous_calls) == (["a"], 0)  # renamed: it may well be it
    records, _ = watching(
        ("one", lambda loop: asked(loop, ("a", '{"q": "x"}'))), lambda search: outside(search, q="X")
    )
    assert (ids(records["one"]), records["one"].ambiguous_calls) == (["a"], 1)
    records, _ = watching(
        ("one", lambda loop: asked(loop, ("a", '{"q": "x"}'))),
        lambda search: [outside(search, q="X"), outside(search, q="x")],
    )
    assert (ids(records["one"]), records["one"].ambiguous_calls) == (["", "a"], 0)


def test_the_most_particular_request_that_fits_is_meant():
    records, _ = watching(
        ("one", lambda loop: asked(loop, ("a", "{}"), ("b", '{"q": "x"}'))),
        lambda search: [outside(search, q="x", page=2), outside(search)],
    )
    assert (ids(records["one"]), records["one"].ambiguous_calls) == (["b", "a"], 0)


def test_a_loop_that_has_ended_gets_no_more_calls():
    records = []
    prof = Profiler([records.append])
    search = prof.tool(lambda **arguments: None, name="search")
    context = contextvars.Context()
    entered = prof.loop("ended")
    asked(context.run(entered.__enter__), ("a", "{}"))
    kept = context.copy()  # as a task has it that outlives the loop
    context.run(entered.__exit__, None, None, None)
    kept.run(search)
    assert (ids(records[0]), prof.orphan_calls) == ([], 1)
    assert records[0].unobserved_calls == 1


def test_what_watching_missed_is_in_the_metrics_and_in_words():
    from profiler import metrics
    from profiler.exporters.prometheus import PrometheusSink
    from profiler.report.timeline import render_timeline
    from profiler.statistics.table import tabulate

    sink, records = PrometheusSink(), []
    assert sink.values(metrics.ORPHAN_CALLS) == [((), 0)]
    prof = Profiler([sink, records.append])
    search = prof.tool(lambda **arguments: None, name="search")
    search()
    search()
    with prof.loop() as loop:
        asked(loop, ("a", '{"q": "x"}'), ("b", '{"q": "y"}'), ("c", '{"q": "z"}'))
        search(q="other")
    assert sink.values(metrics.ORPHAN_CALLS) == [((), 2)]
    assert sink.values(metrics.UNOBSERVED_CALLS) == [(("application",), 2)]
    assert sink.values(metrics.AMBIGUOUS_CALLS) == [(("application",), 1)]
    table = tabulate(records)
    assert (table.unobserved.sum(), table.orphans.sum(), table.ambiguous.sum()) == (2, 2, 1)
    said = " ".join(render_timeline(records[0], 400).split())
    assert "2 calls that the model asked for were run by no watched tool; is each tool wrapped" in said
    assert "2 calls of watched tools ran outside every loop; is prof.loop missing, or does a thread" in said
    assert "1 call could not be told apart; were arguments equal in two loops at once" in said


def test_old_records_tell_of_no_orphans():
    from profiler.records import decode, encode

    records, _ = watching(("one", lambda loop: None), lambda search: None)
    line = encode(records["one"]).replace(b'"orphan_calls":0,', b"")
    assert b"orphan_calls" not in line
    assert decode(line) == records["one"]


def test_one_and_true_are_told_apart():
    records = []
    prof = Profiler([records.append])
    search = prof.tool(lambda **arguments: None, name="search")
    with prof.loop() as loop:
        asked(loop, ("number", '{"n":1}'), ("truth", '{"n":true}'))
        search(n=True)
        search(n=1)
    assert ids(records[0]) == ["truth", "number"]
    assert records[0].ambiguous_calls == 0
