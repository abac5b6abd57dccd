"""What may be spent: prices, how far a limit reaches, and how workers share it."""

from __future__ import annotations

import random

import pytest

from profiler.errors import UsageError
from profiler.load.options import LoadOptions
from profiler.load.spending import Budget, Grants, LoopAccount, Price, price_of, spent_by
from profiler.loop.model import Reply
from profiler.providers import PROVIDERS, make_provider
from profiler.records import Attempt, LoopRecord, ModelCall, RoundRecord
from profiler.rundir import Spent


def test_price_is_the_users_else_the_tables_also_for_a_snapshot() -> None:
    assert price_of("gpt-4o") == Price(2.5, 10.0, cached=0.5)
    assert price_of("gpt-4o-2024-11-20") == price_of("gpt-4o")
    assert price_of("claude-sonnet-4-5-20250929") == price_of("claude-sonnet-4-5")
    assert price_of("claude-sonnet-4-5") == Price(3.0, 15.0, cached=0.1, written=1.25, written_1h=2.0)
    assert price_of("gpt-4o", "1/2") == Price(1.0, 2.0, cached=0.5)
    assert price_of("my-model") is None


def test_cost_is_what_is_billed_by_what_the_cache_did_with_the_input() -> None:
    """50,012 tokens in, of which 30,000 read from the cache and 20,000 written to it; 9 out."""
    spent = Spent(1, 1, 50_012, 9, cached_tokens=30_000, cache_written_tokens=20_000, reasoning_tokens=4)
    assert spent.uncached_tokens == 12
    assert Price(2.5, 10.0).cost(spent) == pytest.approx((50_012 * 2.5 + 90) / 1e6)
    anthropic = price_of("claude-sonnet-4-5")
    assert anthropic is not None
    assert anthropic.cost(spent) == pytest.approx((12 * 3 + 30_000 * 0.3 + 20_000 * 3.75 + 9 * 15) / 1e6)


@pytest.mark.parametrize(
    ("model", "cached", "written"),
    [
        *[("gpt-4o", 1.25, 2.5), ("gpt-4.1", 0.5, 2.0), ("gpt-5-mini", 0.025, 0.25)],
        *[("gpt-6.1-sol", 0.1, 2.5), ("gpt-6-luna", 0.01, 0.125)],
        *[("claude-haiku-4-5", 0.1, 1.25), ("claude-opus-5-5", 0.2, 5.0)],
    ],
)
def test_table_knows_what_the_caches_cost(model: str, cached: float, written: float) -> None:
    """USD per million tokens, as the providers' pages have them."""
    found = price_of(model)
    assert found is not None
    assert (found.input * found.cached, found.input * found.written) == pytest.approx((cached, written))


def test_price_may_say_what_cached_and_written_input_costs() -> None:
    assert Price.parse("3/15/0.30") == Price(3.0, 15.0, pytest.approx(0.1), 1.0)
    assert Price.parse("3/15/0.30/3.75") == Price(3.0, 15.0, pytest.approx(0.1), 1.25, 1.25)
    assert str(Price.parse("3/15/0.30/3.75")) == (
        "$3/$15 per million tokens in/out, $0.3 cached, $3.75 written to the cache"
    )
    # An hour in the cache costs as much more than minutes as it usually does.
    hour = Spent(1, 1, 1000, 0, cache_written_tokens=1000, cache_written_1h_tokens=400)
    known = price_of("claude-opus-5", "10/20/1/15")
    assert known is not None
    assert known.cost(hour) == pytest.approx((600 * 15 + 400 * 24) / 1e6)
    # What is left out is the model's, or what is usual for the API.
    assert price_of("claude-opus-5-5", "1/2") == Price(1.0, 2.0, 0.05, 1.25, 2.0)
    assert price_of("claude-opus-5-5", "1/2/1") == Price(1.0, 2.0, 1.0, 1.25, 2.0)
    assert LoadOptions(provider="anthropic", model="mine", price="1/2").model_price() == Price(
        1, 2, 0.1, 1.25, 2.0
    )
    assert LoadOptions(model="mine", price="1/2").model_price() == Price(1.0, 2.0)
    with pytest.raises(UsageError, match="--price 0/1/1: cached input cannot have a price"):
        LoadOptions(price="0/1/1")


@pytest.mark.parametrize("spec", ["1", "1/2/3/4/5", "1/2/x", "1/2/-3", "a/b", "-1/2", "inf/1", "nan/1", ""])
def test_price_that_is_none_is_refused(spec: str) -> None:
    with pytest.raises(UsageError, match="expected IN/OUT"):
        LoadOptions(price=spec)


def test_default_models_are_those_of_the_providers_and_have_a_price() -> None:
    for name, provider in PROVIDERS.items():
        assert make_provider(name, base_url="http://127.0.0.1:9").model == provider.default_model
        assert price_of(provider.default_model) is not None


def test_cost_can_be_limited_only_where_the_price_is_known() -> None:
    with pytest.raises(UsageError, match=r"the price of my-model is unknown: say it with --price IN/OUT"):
        LoadOptions(max_cost=1.0, model="my-model")
    with pytest.raises(UsageError, match="which model the agent uses is unknown"):
        LoadOptions(max_cost=1.0, agent="my:agent")
    budget = LoadOptions(max_cost=1.5, model="my-model", price="2/8").budget()
    assert budget == Budget({"cost": 1.5}, Price(2.0, 8.0))
    assert LoadOptions(max_cost=1.0).budget().price == price_of("gpt-4o")
    with pytest.raises(UsageError, match="--max-requests must be at least 1"):
        LoadOptions(max_requests=0)


@pytest.mark.parametrize("amount", [0.0, -1.0, float("nan"), float("inf")])
def test_cost_is_an_amount_above_nothing(amount: float) -> None:
    with pytest.raises(UsageError, match="--max-cost must be an amount above 0"):
        LoadOptions(max_cost=amount)


def test_spending_counts_every_attempt_as_a_request_and_the_tokens_that_replies_name() -> None:
    failed = RoundRecord(0, 0, 9, ModelCall("openai", "m", 0, 9, attempts=(Attempt(0, 1, 429),) * 3))
    good = RoundRecord(
        1,
        9,
        20,
        ModelCall("openai", "m", 9, 20, input_tokens=70, output_tokens=5, attempts=(Attempt(9, 20),)),
    )
    unseen = RoundRecord(2, 20, 30, ModelCall("openai", "m", 20, 30, input_tokens=1, output_tokens=2))
    record = LoopRecord("r", "gathered", "openai", "m", 0, 30, "ok", (failed, good, unseen))
    assert spent_by(record) == Spent(0, 5, 71, 7, replies=3, unknown_replies=1)


def test_spending_counts_what_the_cache_did_and_the_replies_that_do_not_say_their_tokens() -> None:
    said = ModelCall(
        *("anthropic", "m", 0, 9),
        input_tokens=50_012,
        output_tokens=9,
        cached_tokens=30_000,
        cache_written_tokens=20_000,
        reasoning_tokens=4,
    )
    unsaid = ModelCall("anthropic", "m", 0, 9, output_tokens=5)
    cut = ModelCall("anthropic", "m", 0, 9, "cancelled", "cancelled", attempts=(Attempt(0, 9, 200),))
    refused = ModelCall("anthropic", "m", 0, 9, "error", "http_429", attempts=(Attempt(0, 9, 429),))
    lost = ModelCall(
        "anthropic", "m", 0, 9, "error", "connection", attempts=(Attempt(0, 4, 307), Attempt(5, 9))
    )
    rounds = tuple(RoundRecord(n, 0, 9, model) for n, model in enumerate((said, unsaid, cut, refused, lost)))
    found = spent_by(LoopRecord("r", "gathered", "anthropic", "m", 0, 9, "ok", rounds))
    assert found == Spent(0, 6, 50_012, 14, 30_000, 20_000, 4, replies=3, unknown_replies=2)
    assert found.asked == (
        "6 requests, 50,012 tokens in (30,000 cached, 20,000 written to the cache), 14 out (4 of reasoning); "
        "tokens of 2 of 3 replies are not known"
    )


def test_replies_that_do_not_say_their_tokens_count_as_the_others() -> None:
    budget = Budget({"tokens": 1000, "cost": 1.0}, Price(100.0, 1000.0))
    spent = Spent(10, 40, 450, 30, replies=40, unknown_replies=10)
    assert budget.used(spent, "tokens") == pytest.approx(480 * 40 / 30)
    assert budget.used(spent, "cost") == pytest.approx((450 * 100 + 30 * 1000) / 1e6 * 40 / 30)
    assert budget.stopped("tokens", spent) == (
        "stopped at --max-tokens 1000: 640 used, if the 10 of 40 replies that do not say their tokens were "
        "like the others"
    )
    assert budget.stopped("cost", spent).startswith("stopped at --max-cost 1: $0.1 spent, if the 10 of 40 ")
    assert budget.describe(spent).endswith(
        "tokens of 10 of 40 replies are not known: at least $0.075 at $100/$1000 per million tokens in/out"
    )
    # None is known: nothing to go by, so one loop at a time.
    assert budget.used(Spent(1, 2, 0, 0, replies=2, unknown_replies=2), "tokens") == 0


def test_room_is_the_least_of_all_limits_less_what_is_under_way() -> None:
    budget = Budget({"loops": 100, "requests": 250, "tokens": 10_000}, None)
    spent = Spent(50, 150, 4000, 1000)  # a loop: 3 requests, 100 tokens
    assert budget.room(spent, 0) == (33, "requests")
    assert budget.room(spent, 30) == (3, "requests")
    assert budget.room(spent, 40) == (0, "requests")
    assert Budget({"cost": 1.0}, Price(100.0, 1000.0)).room(Spent(10, 30, 1000, 100), 5) == (35, "cost")


def test_while_it_is_unknown_what_a_loop_costs_one_may_be_under_way() -> None:
    budget = Budget({"tokens": 1000})
    assert budget.room(Spent(1, 3, 0, 0), 0) == (1, "tokens")
    assert budget.room(Spent(1, 3, 0, 0), 1) == (0, "tokens")


def test_limit_that_ended_a_run_is_said_with_what_was_spent() -> None:
    budget = Budget({"requests": 500, "cost": 0.5}, Price(1.0, 2.0))
    spent = Spent(170, 503, 400_000, 51_000)
    assert budget.stopped("requests", spent) == "stopped at --max-requests 500: 503 sent"
    assert budget.stopped("cost", spent) == "stopped at --max-cost 0.5: $0.502 spent"
    assert budget.describe(spent) == (
        "170 loops, 503 requests, 400,000 tokens in, 51,000 out: $0.502 at $1/$2 per million tokens in/out"
    )


def test_budget_without_a_limit_grants_nothing_and_counts_everything() -> None:
    grants = Grants(Budget())
    grants.begin()
    assert grants.heard("a", 5, 2, Spent(0, 9, 90, 9), asks=False) is None
    assert (grants.limited, grants.exhausted()) == (False, None)
    assert grants.total == Spent(3, 9, 90, 9)
    grants.closed("a", 5, Spent(0, 15, 150, 15))
    assert grants.total == Spent(5, 15, 150, 15)


def test_worker_that_is_lost_had_spent_the_average_on_what_it_had_under_way() -> None:
    grants = Grants(Budget({"requests": 1000}))
    grants.spent = Spent(10, 30, 0, 0)
    grants.begin()
    assert grants.heard("a", 0, 0, Spent(), asks=True) == 1
    assert grants.heard("a", 1, 1, Spent(), asks=True) == 2
    assert grants.heard("a", 1, 1, Spent(), asks=True) == 2  # said again, not granted again
    grants.lost("a")
    assert grants.total == Spent(12, 36, 0, 0)


class Worker:
    """Agents that ask, begin what they are granted, and spend as they like."""

    def __init__(self, name: str, agents: int) -> None:
        self.name, self.agents = name, agents
        self.granted = self.begun = 0
        self.running: list[int] = []
        self.spent = Spent()
        self.most_under_way = 0


@pytest.mark.parametrize("seed", range(20))
def test_workers_that_share_a_limit_pass_it_by_what_is_under_way_at_most(seed: int) -> None:
    """Random loops of 1 to 9 requests on workers of different size and speed, one of them without agents."""
    draws = random.Random(seed)
    limit = draws.choice([40, 300, 1000])
    grants = Grants(Budget({"requests": limit}))
    grants.spent = Spent(3, 3 * draws.randint(1, 9), 0, 0)
    workers = [Worker("a", draws.randint(1, 12)), Worker("b", draws.randint(1, 12)), Worker("idle", 0)]
    for _ in range(3):  # trials
        grants.begin()
        for one in workers:
            one.granted = one.begun = 0
            one.running, one.spent = [], Spent()
        for _ in range(100_000):
            one = draws.choice(workers)
            if one.running and draws.random() < 0.7:
                one.spent += Spent(0, one.running.pop(), 0, 0)
            while len(one.running) < one.agents and one.begun < one.granted:
                one.begun += 1
                one.running.append(draws.randint(1, 9))
            one.most_under_way = max(one.most_under_way, len(one.running))
            asks = len(one.running) < one.agents
            granted = grants.heard(one.name, one.begun, len(one.running), one.spent, asks)
            one.granted = one.granted if granted is None else granted
            if grants.exhausted() is not None or draws.random() < 0.001:
                break
        left = sum(len(one.running) for one in workers)
        for one in workers:
            grants.closed(one.name, one.begun, one.spent + Spent(0, sum(one.running), 0, 0))
        if grants.exhausted() is not None:
            break
    else:
        return  # three trials that ended for other reasons
    assert limit - 9 * (left + 2) <= grants.total.requests <= limit + 9 * left
    assert workers[2].granted == 0


def test_loops_are_never_one_too_many() -> None:
    grants = Grants(Budget({"loops": 10}))
    grants.spent = Spent(2, 4, 0, 0)
    grants.begin()
    begun, granted = {"a": 0, "b": 0}, {"a": 0, "b": 0}
    for name in "abab" * 20:
        begun[name] = granted[name]
        more = grants.heard(name, begun[name], begun[name], Spent(), asks=True)
        granted[name] = granted[name] if more is None else more
    assert sum(granted.values()) == 8
    assert grants.exhausted() == "loops"


def test_account_counts_what_passed_though_no_record_tells_of_it() -> None:
    """Three attempts: refused, a reply that broke off, one that said its tokens."""
    account = LoopAccount()
    for status in (429, 200, 200):
        account.sent()
        account.responded(status)
    account.read(Reply("", (), [], input_tokens=70, output_tokens=9, cached_tokens=30))
    assert account.spent == Spent(0, 3, 70, 9, cached_tokens=30, replies=2, unknown_replies=1)


def test_account_of_a_loop_in_threads_without_context_is_what_its_records_say() -> None:
    account = LoopAccount()
    account.record(record(attempts=2, given=50, taken=20))
    account.sent()
    assert account.spent == Spent(0, 2, 50, 20, replies=1)


def test_tokens_of_a_reply_that_was_tried_again_are_not_lost() -> None:
    """Its record has those of the last try alone."""
    account = LoopAccount()
    for taken in (None, 20):
        account.sent()
        account.responded(200)
        account.read(Reply("", (), [], input_tokens=50, output_tokens=taken))
    account.record(record(attempts=2, given=50, taken=20))
    assert account.spent == Spent(0, 2, 100, 20, replies=2, unknown_replies=1)


def record(attempts: int, given: int, taken: int) -> LoopRecord:
    tries = tuple(Attempt(0, 1, 200) for _ in range(attempts))
    model = ModelCall("openai", "m", 0, 1, input_tokens=given, output_tokens=taken, attempts=tries)
    return LoopRecord("l", "gathered", "openai", "m", 0, 1, "ok", (RoundRecord(0, 0, 1, model),))
