"""The emulator's scenario from a fit: it draws what was recorded, and the command that writes it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from profiler.cli import main
from profiler.prediction.fitting import fit_run
from profiler.prediction.scenario.file import correlation, not_known, plain_names, too_small, written
from profiler.prediction.scenario.fit import Counts, Fit, QuotaFit, ServerRule, Shape, Table
from profiler.prediction.scenario.parts import fit_of
from profiler.recordings.drafts import Tally
from profiler.records import RemoteCall
from profiler.rundir import RunDirectory
from profiler.scenarios import Quota, Scenario, parse_scenario
from tests.capacity_server import Shape as WorkShape
from tests.capacity_server import Tool
from tests.shaped_records import drawn, made_up, run_of, true
from tests.unit import recording_data

LOOPS = 600


def shape() -> WorkShape:
    tools = [Tool.parse(text) for text in ("search=0.4,weight=2", "fetch=0.1")]
    return WorkShape("7", tools, 0.8, 0.3, 0.2, (2, 3), (1, 6), 0.2, 40, 100)


@cache
def made() -> Fit:
    records = list(made_up(shape(), LOOPS))
    return fit_of(fit_run(run_of(LOOPS), records), records)


def read(fit: Fit) -> Scenario:
    return parse_scenario(written(fit), name="mine", source="mine.toml")


def server(rule: str = "none", name: str = "search", **more: object) -> ServerRule:
    given = {"identified": True, "sentence": "as it is", "calls": 100, "refused": 0, "seen": (1.0, 30.0)}
    return ServerRule(name, rule, **{**given, **more})  # type: ignore[arg-type]


def with_servers(*servers: ServerRule, places: tuple[int, int] = (0, 1)) -> Fit:
    tools = tuple(replace(tool, server=place) for tool, place in zip(made().tools, places, strict=True))
    return replace(made(), servers=servers, tools=tools)


# It draws what was recorded


@pytest.mark.slow
def test_what_the_emulator_draws_is_distributed_as_what_was_recorded() -> None:
    recorded, emulated = true(shape(), LOOPS), drawn(read(made()), 3000)
    # The own part of client and connection comes on top when it is asked.
    own = {"model": 0.001, "search": 0.0007, "fetch": 0.0007, "loop": 0.0}
    for name, seconds in recorded.seconds.items():
        for p, within in ((0.5, 0.06), (0.95, 0.06)):
            expected = float(np.quantile(seconds, p)) - own[name]
            assert float(np.quantile(emulated.seconds[name], p)) == pytest.approx(expected, rel=within), (
                name,
                p,
            )
    assert np.mean(emulated.tokens) == pytest.approx(np.mean(recorded.tokens), rel=0.05)
    assert len(emulated.seconds["search"]) / 3000 == pytest.approx(
        len(recorded.seconds["search"]) / LOOPS, rel=0.05
    )


def test_correlations_of_the_recording_become_shares_of_the_emulator() -> None:
    common = replace(made().shape.common, loop=0.2, round=0.35, size=0.2, model_calls=-0.1, output_tokens=0.9)
    found = correlation(replace(made(), shape=replace(made().shape, common=common)))
    assert (found["loop"], found["round"], found["size"]) == (0.2, 0.15, 0.2)
    assert (found["model"], found["output_tokens"], found["first_token"]) == (-0.05, 0.9, 0.0)
    alone = replace(common, loop=0.0, round=0.0, model_loop=0.4)
    found = correlation(replace(made(), shape=replace(made().shape, common=alone)))
    assert (found["size"], found["model"]) == (0.0, 0.4)


def test_file_is_small_and_says_where_it_comes_from() -> None:
    text = written(made())
    assert len(text) < 8_000
    assert text.startswith(f"# Behaves as model and tools did in a recording of {LOOPS} loops, ")
    assert "# - the model's time to the first token: replies were not streamed\n" in text
    assert "# strategies: sequential\n" in text


def test_file_of_a_thousand_tools_is_below_50_kilobytes() -> None:
    first = made().tools[0]
    tools = tuple(replace(first, name=f"tool_number_{n}_of_a_server", share=1 / (n + 1)) for n in range(1000))
    text = written(replace(made(), tools=tools))
    assert len(text.encode()) < 50_000
    kept = parse_scenario(text, name="m", source="m").tools
    assert 20 < len(kept) <= 100
    assert kept[0].name == "tool_number_0_of_a_server"
    assert f"{1000 - len(kept)} tools that were called least are left out" in text


# Servers, quotas, failures


def test_rules_of_servers_become_capacities() -> None:
    scenario = read(
        with_servers(
            server("refuse", capacity=20, refused=9, refusal_seconds=0.05, retry_after=2.0),
            server("queue", "fetch", capacity=8),
        )
    )
    search, fetch = scenario.tool("fetch"), scenario.tool("search")
    assert search.capacity is not None
    assert (search.capacity.concurrent, search.capacity.mode) == (20, "reject")
    assert (search.capacity.retry_after, search.capacity.refusal_seconds) == (2.0, pytest.approx(0.0493))
    assert fetch.capacity is not None
    assert (fetch.capacity.concurrent, fetch.capacity.mode, fetch.capacity.queue) == (8, "queue", 100_000)
    bounded = read(with_servers(server("queue", capacity=8, queue=5, refused=1), server("share", capacity=3)))
    queue, share = (bounded.tool(tool.name).capacity for tool in made().tools)
    assert queue is not None
    assert share is not None
    assert (queue.queue, share.mode, share.concurrent) == (5, "share", 3)


def test_rate_has_its_bucket_and_says_itself_when_to_come_again() -> None:
    scenario = read(with_servers(server("rate", rate=12.5, burst=6.0, refused=3, retry_after=1.0), server()))
    capacity = scenario.tool(made().tools[0].name).capacity
    assert capacity is not None
    assert (capacity.requests_per_second, capacity.burst, capacity.retry_after) == (12.5, 6, None)


def test_tools_of_one_server_share_its_capacity() -> None:
    scenario = read(with_servers(server("refuse", "server 1", capacity=20), places=(0, 0)))
    assert {tool.server for tool in scenario.tools} == {"server-1"}
    assert scenario.servers["server-1"].concurrent == 20


def test_quotas_of_the_model_s_server() -> None:
    requests = QuotaFit("requests", 1200.0, "headers", 60.0, True, True)
    fit = replace(made(), quotas=(requests,), retry_after="exact")
    assert read(fit).quota == Quota(requests_per_minute=1200, burst=0.05)
    tokens = QuotaFit("tokens", 30_000.0, "429s", None, True, True)
    found = read(replace(made(), quotas=(tokens,), retry_after="none")).quota
    assert found == Quota(input_tokens_per_minute=15_000, output_tokens_per_minute=15_000, retry_after="none")
    at_once = QuotaFit("concurrent", 7.0, "429s", None, True, True)
    assert read(replace(made(), quotas=(at_once,), retry_after="seconds")).quota == Quota(
        concurrent_requests=7, retry_after="seconds"
    )
    assert read(made()).quota is None


def test_refusing_model_without_a_quota_that_is_known_has_a_limit_at_once() -> None:
    model = replace(made().model, server=server("refuse", "model", capacity=5, refused=4))
    quota = read(replace(made(), model=model)).quota
    assert quota is not None
    assert quota.concurrent_requests == 5
    queueing = replace(made(), model=replace(made().model, server=server("queue", "model", capacity=5)))
    assert read(queueing).quota is None
    assert any("the emulator's model answers any number at once" in one for one in not_known(queueing))


def test_failures_are_those_of_the_tool_alone() -> None:
    first, second = made().tools
    tools = (replace(first, failed=(("http_500", 0.02), ("ValueError", 0.01))), second)
    scenario = read(replace(made(), tools=tools))
    assert [(fault.kind, fault.probability, fault.tools) for fault in scenario.faults] == [
        ("tool_http_500", 0.03, (first.name,))
    ]


def test_rounds_that_differ_are_written_one_by_one() -> None:
    shape = Shape(
        Counts((2,), (1.0,)), Counts((3,), (1.0,)), (Counts((6,), (1.0,)), Counts((1, 2), (0.5, 0.5))), 0.4
    )
    tools = tuple(replace(tool, by_round=(0.2, 0.8)) for tool in made().tools)
    scenario = read(replace(made(), shape=shape, tools=tools))
    assert [one.stated for one in scenario.loop.fan_out_by_round] == [(6.0,), (1.0, 2.0)]
    assert (scenario.loop.fan_out.stated, scenario.loop.same_tool) == ((3.0,), 0.4)
    assert {tool.weight for tool in scenario.tools} == {(0.2, 0.8)}


def test_durations_are_without_what_the_emulator_s_own_client_adds() -> None:
    fixed = Table("few", (0.1,) * 5, 40, 0.1)
    tools = tuple(replace(tool, seconds=fixed) for tool in made().tools)
    scenario = read(replace(made(), tools=tools))
    assert scenario.tools[0].duration.parameters == (0.0993,)


def test_names_of_tools_are_those_that_providers_take() -> None:
    assert plain_names(["find", "a b", "a.b", "a/b", "é" * 3]) == ["find", "a_b", "a_b_2", "a_b_3", "___"]
    odd = replace(made().tools[0], name='x"]\n[evil]\n')
    text = written(replace(made(), tools=(odd, made().tools[1])))
    assert {tool.name for tool in parse_scenario(text, name="m", source="m").tools} == {
        "x____evil__",
        "search",
    }


# The command


def recorded(path: Path, loops: int = 40, canary: str = "fine") -> RunDirectory:
    """An imported recording with content in all that can have some."""
    drafts = [
        recording_data.loop(
            [recording_data.exact("find", 100, 300 + n), recording_data.exact("read", 100, 200 + 2 * n)],
            [recording_data.exact("find", 700, 800 + n)],
            at=n * 10_000.0,
        )
        for n in range(loops)
    ]
    run = recording_data.run_of(*drafts, title=canary)
    records = [
        replace(
            record,
            prompt=canary,
            text=canary,
            agent=canary,
            rounds=tuple(
                replace(
                    one,
                    tool_calls=tuple(
                        replace(
                            call,
                            id=canary,
                            arguments=canary,
                            result=canary,
                            remote=RemoteCall(f"https://{canary}.example", "http"),
                        )
                        for call in one.tool_calls
                    ),
                )
                for one in record.rounds
            ),
        )
        for record in recording_data.records(*drafts, tally=Tally())
    ]
    return recording_data.directory_of(path, run, records)


def test_command_writes_a_scenario_of_an_imported_recording_without_its_content(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = recorded(tmp_path, canary="CANARY")
    output = tmp_path / "mine.toml"
    assert main(["scenario", "--from", str(directory.path), "-o", str(output)]) == 0
    text, said = output.read_text(), capsys.readouterr()
    assert "CANARY" not in text + said.out + said.err
    assert "made by: profiler import" in text
    scenario = parse_scenario(text, name="mine", source="mine.toml")
    assert sorted(tool.name for tool in scenario.tools) == ["find", "read"]
    assert "from 40 loops with 120 calls of 2 tools\nnot known:\n" in said.err
    assert f"next: profiler compare --scenario {output} --strategy gathered" in said.err
    assert main(["scenario", "--from", str(directory.path)]) == 0
    assert capsys.readouterr().out == text


def test_command_refuses_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = str(recorded(tmp_path, loops=5).path)
    taken = tmp_path / "there.toml"
    taken.write_text("")
    cases = {
        ("--from", str(tmp_path / "nothing")): "not a run directory: it has no run.json",
        (
            "--from",
            small,
        ): "too small: 5 whole loops with 15 calls whose durations are known; 20 loops and 50",
        ("--from", small, "-o", str(taken)): "exists already",
        ("--from", small, "--prompt", "x"): "--prompt is about an agent",
        ("--from", small, "--agent", "a:b"): "not allowed with",
        (): "one of the arguments --from --agent is required",
    }
    for arguments, message in cases.items():
        with pytest.raises(SystemExit) as raised:
            raise SystemExit(main(["scenario", *arguments]))
        error = capsys.readouterr().err
        assert (raised.value.code, message in error) == (2, True), error
        assert len(error.strip().splitlines()) == 1


def test_small_recordings_are_too_small_and_others_not() -> None:
    assert too_small(made()) is None
    few = replace(made(), source=replace(made().source, loops=19))
    assert "19 whole loops" in (too_small(few) or "")
