"""What leader and workers tell each other survives the way between them."""

import msgpack
import pytest

from profiler.arrivals import Arrivals
from profiler.errors import UsageError
from profiler.load.messages import (
    Beat,
    Begin,
    Calibration,
    ClientMeasured,
    Cut,
    Dismiss,
    Drained,
    End,
    Grant,
    Heard,
    Hello,
    MeasureClient,
    Prepare,
    Pulse,
    Ready,
    Records,
    Returned,
    ToLeader,
    ToWorker,
    TrialState,
    pack,
    unpack,
    wire_name,
)
from profiler.load.options import LoadOptions
from profiler.rundir import Anchor, ClientHealth, Spent
from profiler.strategies import parse_strategies

TWO = parse_strategies("gathered,semaphore:2")
OPTIONS = LoadOptions(strategies=TWO, levels=(2, 4), max_cost=1.5, price="1/2")
MESSAGES = (
    Prepare(OPTIONS, "http://127.0.0.1:1", 1, 2, "a machine", Anchor(2, 1), "http://127.0.0.1:2"),
    Prepare(LoadOptions(arrivals="6/s", max_in_flight=5), "http://127.0.0.1:1", 0, 1, "", Anchor(2, 1)),
    Begin(3, None, 999, "gathered", 1, 2, seed=7, limited=True, think_seconds=0.5, spread_seconds=1.0),
    Begin(4, 0, 1, "gathered", 0, 1, seed=7, arrivals=Arrivals(6.0, 20, constant=True), max_in_flight=3),
    Grant(4, 12),
    End(30.0),
    Cut(),
    Hello(),
    Hello("0.1.0", "compare.py", "0a1b2c3d", 7, 6),
    Beat(12),
    Heard(12),
    Dismiss(),
    Returned(3, 20.5),
    Ready("openai: http_401", 3),
    Ready(None, 0, 0.2, "m", 9464, Calibration(32, 500, 0.5, 0.004), Spent(1, 2, 30, 4), "http_503"),
    MeasureClient("http://127.0.0.1:7", ("lean", "sdk")),
    ClientMeasured((("lean", 0.0001), ("sdk", 0.002))),
    ClientMeasured(()),
    Pulse(4, TrialState(7, 1, 30, 2, 1, 5_000_000), 37, asks=True, spent=Spent(0, 60, 900, 120)),
    Records(b'{"id":"\xc3\xa9"}\n', 1),
    Drained(4, 2, 9, 10, 1, 0, 9, Spent(0, 27), ClientHealth("worker 0", 4, 0.5, None, 0.9)),
    Drained(4),
)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_message_arrives_as_it_was_sent(message: ToWorker | ToLeader) -> None:
    sent = msgpack.dumps(pack(message))  # as Locust does between processes
    assert unpack(type(message), msgpack.loads(sent)) == message
    assert unpack(type(message), pack(message)) == message  # and within one
    assert hash(message) == hash(unpack(type(message), pack(message)))


def test_message_has_a_wire_name_of_its_own() -> None:
    kinds = (ToWorker | ToLeader).__args__
    assert {type(message) for message in MESSAGES} == set(kinds)
    assert {wire_name(kind) for kind in kinds} == {f"toolcall_{kind.__name__.lower()}" for kind in kinds}
    assert len(kinds) == 16


def test_options_that_cannot_be_are_refused_on_arrival_too() -> None:
    data = pack(MESSAGES[0])
    with pytest.raises(UsageError, match="unknown strategy 'serial'"):
        unpack(Prepare, {**data, "options": {**data["options"], "strategies": ["serial"]}})
