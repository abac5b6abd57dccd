"""Which request a starting tool belongs to: what fits decides, and what cannot be told apart is counted."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import datetime
import decimal
import enum
import pathlib
import threading
from typing import NamedTuple

import pytest
from pydantic import BaseModel, ConfigDict, Field

from profiler.loop.model import CallRequest
from profiler.watch.arguments import EQUAL, FITTING, POSSIBLE, fit_of
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
    assert "3 calls of search were asked for and 2 were not seen: name the function that runs it" in said
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


class Unit(enum.Enum):
    METRIC = "metric"
    IMPERIAL = "imperial"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Query(BaseModel):
    city: str
    days: int = 1


class Aliased(BaseModel):
    city: str = Field(alias="from")


class Anything(BaseModel):
    model_config = ConfigDict(extra="allow")


@dataclasses.dataclass
class Trip:
    city: str
    days: int = 1


@dataclasses.dataclass(slots=True)
class Stay:
    first_day: datetime.date


class Point(NamedTuple):
    x: int
    y: int


MIDNIGHT = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    ("first", "second", "given"),
    [
        ('{"x": "metric"}', '{"x": "imperial"}', {"x": Unit.IMPERIAL}),
        ('{"x": "METRIC"}', '{"x": "IMPERIAL"}', {"x": Unit.IMPERIAL}),
        ('{"x": 1}', '{"x": 2}', {"x": Level.HIGH}),
        ('{"x": "2026-01-01T00:00:00Z"}', '{"x": "2026-01-02T01:00:00+01:00"}', {"x": MIDNIGHT}),
        ('{"x": "2026-01-01"}', '{"x": "2026-01-02"}', {"x": MIDNIGHT}),
        ('{"x": 1767225600}', '{"x": 1767312000}', {"x": MIDNIGHT}),
        ('{"x": "2026-01-01T00:00Z"}', '{"x": "2026-01-02T00:00Z"}', {"x": MIDNIGHT.replace(tzinfo=None)}),
        ('{"x": "2026-01-01"}', '{"x": "20260102"}', {"x": MIDNIGHT.date()}),
        ('{"x": "10:00"}', '{"x": "10:30"}', {"x": datetime.time(10, 30)}),
        ('{"x": 30}', '{"x": 60}', {"x": datetime.timedelta(minutes=1)}),
        ('{"x": 1.5}', '{"x": 2.5}', {"x": decimal.Decimal("2.50")}),
        ('{"x": "0.1"}', '{"x": "0.2"}', {"x": decimal.Decimal("0.2")}),
        ('{"x": "1"}', '{"x": "2"}', {"x": 2.0}),
        ('{"x": 1}', '{"x": 2}', {"x": "2.0"}),
        ('{"x": "/a"}', '{"x": "./b/c.csv"}', {"x": pathlib.Path("b/c.csv")}),
        ('{"x": ["c"]}', '{"x": ["b", "a", "a"]}', {"x": {"a", "b"}}),
        ('{"x": ["metric"]}', '{"x": ["imperial"]}', {"x": frozenset({Unit.IMPERIAL})}),
        ('{"x": ["2026-01-01"]}', '{"x": ["2026-01-02"]}', {"x": [MIDNIGHT.date()]}),
        ('{"x": "true"}', '{"x": "false"}', {"x": False}),
        ('{"x": true}', '{"x": false}', {"x": "false"}),
        ('{"x": "a"}', '{"x": "b"}', {"x": b"b"}),
        ('{"x": "a"}', '{"x": " b "}', {"x": "b"}),
        ('{"fromCity": "a"}', '{"fromCity": "b"}', {"from_city": "b"}),
        ('{"from": "a"}', '{"from": "b"}', {"from_": "b", "context": object()}),
        (
            '{"x": {"firstDay": "2026-01-01"}}',
            '{"x": {"firstDay": "2026-01-02"}}',
            {"x": Stay(MIDNIGHT.date())},
        ),
        ('{"x": {"x": 1, "y": 1}}', '{"x": {"x": 1, "y": 2}}', {"x": Point(1, 2)}),
        ('{"x": {"city": "a"}}', '{"x": {"city": "b"}}', {"x": Query(city="b")}),
        ('{"city": "a"}', '{"city": "b"}', {"query": Query(city="b")}),
        ('{"city": "a"}', '{"city": "b"}', {"context": Query(city="c"), "trip": Trip("b")}),
        ('{"from": "a"}', '{"from": "b"}', {"query": Aliased(**{"from": "b"})}),
        ('{"city": "a"}', '{"city": "b"}', {"query": Anything(city="b")}),
        ('{"city": "a", "days": 1}', '{"city": "a"}', {"query": Query(city="a")}),
        ('{"city": "a", "days": 1}', '{"city": "a", "days": 2}', {"query": {"city": "a", "days": 2}}),
        ('{"city": "a"}', '{"city": "b"}', {"city": Trip("b")}),
        ('{"city": "a"}', '{"city": "b"}', {"arguments": '{"city": "b"}'}),
    ],
)
def test_arguments_are_found_in_what_a_framework_made_of_them(first, second, given):
    records, _ = watching(
        ("one", lambda loop: asked(loop, ("a", first), ("b", second))),
        lambda search: outside(search, **given),
    )
    assert (ids(records["one"]), records["one"].ambiguous_calls) == (["b"], 0)


ALIKE = [
    # two requests that differ only in what a framework may change; as they are; what one would make of both
    ('{"x": "5"}', '{"x": 5}', {"x": "5"}, {"x": 5}, {"x": 5}),
    ('{"x": "5"}', '{"x": "5.0"}', {"x": "5"}, {"x": "5.0"}, {"x": 5.0}),
    ('{"x": " b "}', '{"x": "b"}', {"x": " b "}, {"x": "b"}, {"x": "b"}),
    ('{"x": "true"}', '{"x": true}', {"x": "true"}, {"x": True}, {"x": True}),
    ('{"x": 1}', '{"x": true}', {"x": 1}, {"x": True}, {"x": True}),
    ('{"x": "1"}', '{"x": 1}', {"x": "1"}, {"x": 1}, {"x": True}),
    ('{"x": 2}', '{"x": "2"}', {"x": 2}, {"x": "2"}, {"x": Level.HIGH}),
    ('{"x": "metric"}', '{"x": "METRIC"}', {"x": "metric"}, {"x": "METRIC"}, {"x": Unit.METRIC}),
    ('{"x": 2.5}', '{"x": "2.50"}', {"x": 2.5}, {"x": "2.50"}, {"x": decimal.Decimal("2.5")}),
    ('{"x": ["a", "b"]}', '{"x": ["b", "a"]}', {"x": ["a", "b"]}, {"x": ["b", "a"]}, {"x": {"a", "b"}}),
    ('{"x": "a/b"}', '{"x": "./a/b"}', {"x": "a/b"}, {"x": "./a/b"}, {"x": pathlib.Path("a/b")}),
    (
        '{"x": "2026-01-02"}',
        '{"x": "2026-01-02T00:00"}',
        {"x": "2026-01-02"},
        {"x": "2026-01-02T00:00"},
        {"x": MIDNIGHT.date()},
    ),
    ('{"x": {"a": 1}}', '{"x": {"a": 1, "b": 2}}', {"x": {"a": 1}}, {"x": {"a": 1, "b": 2}}, None),
    ('{"fromCity": "b"}', '{"from_city": "b"}', {"fromCity": "b"}, {"from_city": "b"}, {"from_city": "b"}),
    (
        '{"city": "a"}',
        '{"city": "a", "days": 1}',
        {"query": Query(city="a")},
        {"query": Query(city="a", days=1)},
        {"trip": Trip("a")},
    ),
    ('{"q": "x"}', '{"q": "x", "page": 1}', {"q": "x"}, {"q": "x", "page": 1}, {"q": "x", "page": 1}),
]


@pytest.mark.parametrize("context", [{}, {"context": None}])
@pytest.mark.parametrize(("first", "second", "one", "other", "both"), ALIKE)
def test_what_is_still_equal_is_told_apart_from_what_would_fit(first, second, one, other, both, context):
    for calls, wanted in (([one, other], ["a", "b"]), ([other, one], ["b", "a"])):
        records, _ = watching(
            ("one", lambda loop: asked(loop, ("a", first), ("b", second))),
            lambda search, calls=calls: [outside(search, **given, **context) for given in calls],
        )
        assert (ids(records["one"]), records["one"].ambiguous_calls) == (wanted, 0)


@pytest.mark.parametrize(("first", "second", "both"), [(a, b, both) for a, b, *_, both in ALIKE if both])
def test_two_calls_that_a_framework_made_equal_are_never_silently_swapped(first, second, both):
    for requests in ([("a", first), ("b", second)], [("b", second), ("a", first)]):
        records, _ = watching(
            ("one", lambda loop, requests=requests: asked(loop, *requests)),
            lambda search: [outside(search, **both), outside(search, **both)],
        )
        assert sorted(ids(records["one"])) == ["a", "b"]
        assert records["one"].ambiguous_calls == 1


@pytest.mark.parametrize("equal_in", ["older", "younger"])
def test_between_loops_the_equal_call_is_meant_and_counted_where_another_one_would_fit(equal_in):
    texts = {"older": '{"x": "5"}', "younger": '{"x": "5"}', equal_in: '{"x": 5}'}
    records, _ = watching(
        ("older", lambda loop: asked(loop, ("older", texts["older"]))),
        ("younger", lambda loop: asked(loop, ("younger", texts["younger"]))),
        lambda search: outside(search, x=5),
    )
    assert [id_ for record in records.values() for id_ in ids(record)] == [equal_in]
    assert records[equal_in].ambiguous_calls == 1


def test_equal_values_under_other_names_are_a_guess_and_counted():
    requests = ("a", '{"city": "a"}'), ("b", '{"city": "b"}')
    records, _ = watching(
        ("one", lambda loop: asked(loop, *requests)),
        lambda search: outside(search, location="b"),
    )
    assert (ids(records["one"]), records["one"].ambiguous_calls) == (["b"], 1)
    records, _ = watching(
        ("older", lambda loop: asked(loop, requests[0])),
        ("younger", lambda loop: asked(loop, requests[1])),
        lambda search: outside(search, location="b"),
    )
    assert (ids(records["older"]), ids(records["younger"])) == ([], ["b"])
    assert records["younger"].ambiguous_calls == 1


def test_a_next_try_is_that_of_the_failed_call_with_equal_arguments():
    records = []
    prof = Profiler([records.append])

    def fail(x):
        raise ValueError("no such place")

    search = prof.tool(fail, name="search")
    with prof.loop() as loop:
        asked(loop, ("text", '{"x": "5"}'), ("number", '{"x": 5}'))
        for x in (5, "5", 5):
            with pytest.raises(ValueError, match="no such place"):
                search(x=x)
    calls = {call.id: len(call.attempts) for call in records[0].tool_calls}
    assert calls == {"number": 2, "text": 0}
    assert records[0].ambiguous_calls == 1  # a framework may have turned "5" into 5


class Unseen(list):
    """A list to which one can add, and at which nobody looks."""

    def __iter__(self):
        raise AssertionError

    __reversed__ = __getitem__ = __contains__ = __iter__  # type: ignore[assignment]


def test_a_call_that_starts_does_not_look_at_all_before_it():
    """A tool that is called ten thousand times unasked would take longer each time."""
    prof = Profiler([])

    def search(**arguments):
        if arguments.get("city") == "Rome":
            raise ValueError
        if arguments.get("deeper"):
            search_(city="Oslo")

    search_ = prof.tool(search)
    with prof.loop() as loop:
        round_ = asked(loop, ("a", '{"city": "Rome"}'))
        unseen = round_.calls = Unseen()
        with contextlib.suppress(ValueError):
            search_(city="Rome")
        with contextlib.suppress(ValueError):
            search_(city="Rome")  # the next try
        search_(city="Bern")
        search_(deeper=True)
        round_.calls = list.copy(unseen)
    assert set(prof.failures.values()) == {0}
    assert [(call.request.id, len(call.tries), call.nested) for call in round_.calls] == [
        ("a", 1, False),
        ("", 0, False),
        ("", 0, False),
        ("", 0, True),
    ]


def test_one_argument_under_the_name_of_another_is_not_taken_for_it():
    assert fit_of('{"id": 1}', {"id": 2, "parent": {"id": 1}})[0] < POSSIBLE
    assert fit_of('{"id": 1}', {"parent": {"id": 1}, "number": 3}) == (FITTING, 1, 1, 1)
    assert fit_of('{"userId": 1, "user_id": 2}', {"user_id": 2, "userid": 1}) == (FITTING, 2, 1, 2)
    assert fit_of('{"userId": 1}', {"user_id": 1, "userid": 1})[0] == POSSIBLE  # which of the two?
    assert fit_of('{"userId": 1}', {"user_id": 2})[0] < POSSIBLE
    assert fit_of('{"id": 1}', {"id": 1}) == (EQUAL, 1, 1, 1)


class Uncooperative:
    """An object whose code fails, and which counts how often it is run."""

    asked = 0

    def fails(self, *arguments):
        type(self).asked += 1
        raise RuntimeError

    __eq__ = __hash__ = __getattr__ = __iter__ = __len__ = __bool__ = fails
    __class__ = property(fails)


@dataclasses.dataclass
class Lazy:
    """A dataclass that computes what it is asked for."""

    city: str
    asked = 0

    @property
    def computed(self):
        Lazy.asked += 1
        raise RuntimeError

    def __getattribute__(self, name):
        if name != "__dict__" and not name.startswith("__"):
            Lazy.asked += 1
        return object.__getattribute__(self, name)


def test_whatever_the_arguments_are_comparing_them_raises_nothing_and_runs_none_of_their_code():
    itself = {}
    itself.update(x=itself, y=itself, z=[itself])
    for given in (itself, [itself], {1: itself}, (itself, itself), Unit, object, float("nan"), 10**5000):
        for value in (
            "1",
            '"x"',
            "[1, 2]",
            '{"x": 1, "y": {"x": 2}}',
            '{"x": {"x": {"x": 1}}}',
            "NaN",
            "null",
        ):
            assert fit_of(f'{{"x": {value}}}', {"x": given})[0] in range(4)
            assert fit_of(f'{{"other": {value}}}', {"x": given})[0] in range(4)
    for value in ("[1, 2]", '{"x": 1}', "null"):
        for given in (Uncooperative(), [Uncooperative()], [Uncooperative(), 2]):
            fit_of(f'{{"x": {value}}}', {"x": given})
            fit_of(f'{{"other": {value}}}', {"x": given})
    assert Uncooperative.asked == 0
    lazy = Lazy("a")
    Lazy.asked = 0
    assert fit_of('{"city": "a"}', {"trip": lazy}) == (FITTING, 1, 1, 1)
    assert fit_of('{"trip": {"city": "a"}}', {"trip": lazy}) == (FITTING, 1, 0, 1)
    assert Lazy.asked == 0


def test_the_flags_of_the_applications_decimals_stay_as_they_are():
    flags = decimal.getcontext().flags.copy()
    assert fit_of('{"x": "no number"}', {"x": decimal.Decimal(1)})[0] == POSSIBLE
    assert fit_of('{"x": 0.5}', {"x": decimal.Decimal(1)})[0] == POSSIBLE
    assert decimal.getcontext().flags == flags


def test_of_calls_that_are_only_possible_the_one_with_these_names_is_meant():
    records, _ = watching(
        ("one", lambda loop: asked(loop, ("a", '{"day": "2026-01-02"}'), ("b", '{"when": "tomorrow"}'))),
        lambda search: [outside(search, when=object()), outside(search, day=MIDNIGHT.date())],
    )
    assert (ids(records["one"]), records["one"].ambiguous_calls) == (["b", "a"], 1)
