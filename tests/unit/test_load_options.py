"""Options of a load test: from Locust's parsed ones and back, and what is refused."""

import argparse
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from profiler.errors import UsageError
from profiler.load.declared import COUNT, TEXT, Options, add_options, option
from profiler.load.experiment import secrets_in_environment
from profiler.load.messages import Prepare, pack, unpack
from profiler.load.options import (
    DEFAULT_STRATEGIES,
    LoadOptions,
    asked,
    conditions,
    without_default_strategies,
)
from profiler.rundir import Anchor, RunDirectory
from profiler.strategies import parse_strategies


class Parser(argparse.ArgumentParser):
    """Takes the keywords that Locust's parser adds."""

    def add_argument(  # type: ignore[override]
        self, *args: Any, include_in_web_ui: bool = True, is_secret: bool = False, **kwargs: Any
    ) -> Any:
        return super().add_argument(*args, **kwargs)


def parse(*arguments: str) -> LoadOptions:
    parser = Parser()
    parser.add_argument("--host")
    LoadOptions.add_to_locust(parser)
    return LoadOptions.from_namespace(parser.parse_args(arguments))


def test_defaults_are_the_dataclass_defaults() -> None:
    assert parse() == LoadOptions()


def test_default_strategies_are_what_their_names_are_read_as() -> None:
    assert parse_strategies([spec.text for spec in DEFAULT_STRATEGIES]) == DEFAULT_STRATEGIES


def test_strategies_come_repeated_and_with_commas_and_replace_the_default() -> None:
    assert parse().strategies == DEFAULT_STRATEGIES
    assert parse("--strategy", "gathered").strategies == parse_strategies("gathered")
    assert parse("--strategy=gathered, semaphore:2", "--strategy", "sequential").strategies == (
        parse_strategies("gathered,semaphore:2,sequential")
    )
    assert parse().strategies == DEFAULT_STRATEGIES  # the default was not appended to


def test_variants_are_crossed_with_strategies_that_were_named_and_are_part_of_them_from_then_on() -> None:
    agent = ("--agent", "my_app:make")
    alone = parse(*agent, "--variant", "calls=2,8", "--variant", "calls=16")
    assert alone.strategies == parse_strategies(["calls=2", "calls=8", "calls=16"])
    assert alone.variants == ()
    named = [part for spec in DEFAULT_STRATEGIES for part in ("--strategy", str(spec))]
    assert len(parse(*agent, "--variant", "calls=2,8", *named).strategies) == 6
    crossed = parse(*agent, "--strategy", "gathered", "--variant", "calls=2,8", "--variant", "fast=true")
    assert crossed.strategies == parse_strategies("gathered calls=2 fast=true,gathered calls=8 fast=true")
    assert parse(*crossed.arguments()) == crossed
    assert LoadOptions.from_json(orjson.loads(orjson.dumps(crossed.as_json()))) == crossed


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--variant", ",".join(f"a={n}" for n in range(17))], "--variant: 17 combinations"),
        (["--variant", "calls"], "--variant: 'calls': expected NAME=VALUE"),
        (["--variant", "a=1", "--strategy", "a=1"], "a has two values"),
        (["--strategy", ",".join(f"gathered a={n}" for n in range(17))], "16 settings of an agent at most"),
    ],
)
def test_variants_that_cannot_be_are_refused(given: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse("--agent", "my_app:make", *given)


def test_setting_that_would_be_read_as_a_tool_s_limit_has_to_come_first() -> None:
    own, of_tools = parse_strategies("b=2"), parse_strategies("semaphore:a=1")
    assert LoadOptions(strategies=own + of_tools).strategies == own + of_tools
    with pytest.raises(UsageError, match="--strategy b=2: name it before"):
        LoadOptions(strategies=of_tools + own)


def test_variant_without_an_agent_of_ones_own_is_refused() -> None:
    options = parse("--variant", "calls=2")
    with pytest.raises(UsageError, match="--variant calls=2: settings are those of an agent of your own"):
        options.check_variants()
    parse().check_variants()


def test_command_line_of_options_parses_to_the_same_options() -> None:
    options = LoadOptions(
        strategies=parse_strategies("gathered,semaphore:4@agent"),
        provider="anthropic",
        client="lean",
        scenario="instant",
        base_url="http://127.0.0.1:1",
        body=('thinking={"type": "enabled", "budget_tokens": 1024}', "stream_options=null"),
        ca="ca.pem",
        client_cert="me.pem",
        client_key="me.key",
        tools_url="http://127.0.0.1:2",
        model="m",
        allow_remote=True,
        tool_choice="required",
        parallel_tool_calls=False,
        stream=True,
        loop_timeout=7.5,
        max_rounds=2,
        trial_seconds=1.5,
        window_loops=3.0,
        until_seconds=99.0,
        climb=True,
        own_work=True,
        blocks=4,
        seed=9,
        dialect="gemini",
        drain_seconds=3.0,
        out="o",
        run_directory="r",
        metrics_port=9100,
        metrics=False,
        metrics_host="0.0.0.0",
        linger_seconds=1.0,
        agent="my_app:make",
        factory=True,
        arrivals="5/s",
        levels=(10, 20),
        max_in_flight=7,
        abort_on="errors>20%",
        slo="p95<2s",
        calibration_seconds=0.0,
        share_limit=True,
        max_loops=50,
        max_requests=500,
        max_tokens=9000,
        max_cost=1.25,
        price="2.5/10",
        record_content=True,
        redact="my:redact",
        model_limit="rate:500/min,burst=10+tokens:30000/min",
        mcp=("search=http://127.0.0.1:3/mcp", "time=python -m server --zone 'a, b'"),
        mcp_per_agent=True,
        mcp_client="sdk",
        allow_writes=("put", "drop"),
    )
    usual = LoadOptions()
    untouched = {f.name for f in fields(options) if getattr(options, f.name) == getattr(usual, f.name)}
    # An open load does not think, --ca and --insecure exclude each other, and the line has no secrets.
    # --variant is part of the strategies once it is read.
    # Calls without a model exclude an agent.
    direct = {"direct", "call", "call_arguments", "calls_from", "expected_agents"}
    assert untouched == {
        *("think_seconds", "insecure", "header", "query", "variants", "mcp_headers"),
        *direct,
    }
    hidden = ("--run-directory=r", "--window-loops=3", "--until-seconds=99", "--climb", "--own-work")
    assert parse(*options.arguments(), *hidden) == options
    data = orjson.loads(orjson.dumps(options.as_json()))
    assert LoadOptions.from_json({**data, "of a later version": 1}) == options
    thinking = LoadOptions(think_seconds=1.5)
    assert parse(*thinking.arguments()) == thinking


SERVER = ("files=http://127.0.0.1:1/mcp",)


def test_calls_without_a_model_are_of_one_server_and_one_strategy() -> None:
    options = LoadOptions(direct=True, mcp=SERVER, call=("search",), call_arguments='{"q": "snow"}')
    assert [spec.text for spec in options.strategies] == ["gathered"]
    assert options.server.name == "files"
    assert options.watched_url == "http://127.0.0.1:1/mcp"
    again = LoadOptions.from_json({**options.as_json(), **options.secrets()})
    assert again == options
    assert "snow" not in str(options.as_json()) + " ".join(options.arguments())  # arguments are content


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"call": ("search",)}, "--call is for calls without a model"),
        ({"direct": True}, "--mcp: name the one server"),
        ({"direct": True, "mcp": ("a=http://h/", "b=http://h/")}, "2 were named"),
        ({"direct": True, "mcp": SERVER, "call_arguments": "{}"}, "--args are those of one tool"),
        ({"direct": True, "mcp": SERVER, "calls_from": "f", "call": ("a",)}, "--args-from says which"),
        ({"direct": True, "mcp": SERVER, "agent": "a:b"}, "--agent asks a model"),
    ],
)
def test_calls_without_a_model_that_cannot_be_made_are_refused(given, said) -> None:
    with pytest.raises(UsageError, match=said):
        LoadOptions(**given)


def test_remote_server_needs_leave_without_a_model_too() -> None:
    remote = LoadOptions(direct=True, mcp=("far=https://mcp.example.com/mcp",))
    with pytest.raises(UsageError, match=r"far https://mcp\.example\.com/mcp is not this machine"):
        remote.check_targets({})
    replace(remote, allow_remote=True).check_targets({})


def test_web_form_sends_settings_as_text_or_split_at_its_commas() -> None:
    for given in (["calls=2", "8", "fast=true"], "calls=2,8,fast=true"):
        namespace = argparse.Namespace(**{**vars(_namespace()), "variant": given, "agent": "my_app:make"})
        found = LoadOptions.from_namespace(namespace)
        assert list(map(str, found.strategies)) == ["calls=2 fast=true", "calls=8 fast=true"]
        shown = argparse.Namespace(**{**vars(namespace), "strategy": list(map(str, DEFAULT_STRATEGIES))})
        assert LoadOptions.from_namespace(without_default_strategies(shown)) == found


def test_web_form_sends_text_where_the_default_is_none() -> None:
    namespace = argparse.Namespace(**vars(_namespace()))
    namespace.trial_seconds, namespace.blocks, namespace.base_url, namespace.strategy = (
        "2.5",
        "",
        "",
        "gathered",
    )
    options = LoadOptions.from_namespace(namespace)
    assert (options.trial_seconds, options.blocks, options.base_url) == (2.5, None, None)
    assert options.strategies == parse_strategies("gathered")
    namespace.blocks = "many"
    with pytest.raises(UsageError, match="--blocks many: 'many' is not a whole number"):
        LoadOptions.from_namespace(namespace)


def test_web_form_shows_no_key_and_what_it_sends_back_stands_for_the_one_of_the_command_line() -> None:
    given = [
        *(
            "--base-url",
            "http://127.0.0.1:1/v1?api-key=abcdefgh",
            "--header",
            "x-team=a,b",
            "--header",
            "n=c",
        ),
        *("--body", 'metadata={"token": "ijklmnop"}', "--provider", "anthropic"),
    ]
    parser = Parser()
    parser.add_argument("--host")
    LoadOptions.add_to_locust(parser)
    LoadOptions.hide_in_form(parser)
    form = parser.parse_args(given)
    assert (form.base_url, form.header, form.body, form.provider) == (
        "http://127.0.0.1:1/v1?api-key=[redacted]",
        "x-team=[redacted],n=[redacted]",
        'metadata={"token": "[redacted]"}',
        "anthropic",
    )
    form.header = form.header.split(",")  # as Locust reads what repeats
    assert asked(form, {}, parse(*given)).options == parse(*given)
    form.base_url = "http://127.0.0.1:2"
    assert asked(form, {}, parse(*given)).options.base_url == "http://127.0.0.1:2"


def test_what_looks_like_a_key_in_any_option_goes_by_another_way_than_run_json() -> None:
    options = LoadOptions(
        tools_url="http://127.0.0.1:1?token=abcdefgh",
        body=('metadata={"api_key": "ijklmnop"}',),
        model="sk-large",
    )
    public, secrets = options.as_json(), options.secrets()
    assert public["tools_url"] == "http://127.0.0.1:1?token=[redacted]"
    assert public["body"] == ['metadata={"api_key": "[redacted]"}']
    assert set(secrets) == {"tools_url", "body"}
    assert LoadOptions.from_json({**public, **secrets}, strategies=options.strategies) == options
    repeated = " ".join(options.arguments())
    assert "abcdefgh" not in repeated
    assert "ijklmnop" not in repeated


def _namespace() -> argparse.Namespace:
    parser = Parser()
    parser.add_argument("--host")
    LoadOptions.add_to_locust(parser)
    return parser.parse_args([])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--strategy", "serial"], "unknown strategy 'serial'"),
        (["--strategy", ","], "at least one strategy"),
        (["--strategy", "gathered,gathered"], "each strategy can be named once"),
        (["--blocks", "0"], "--blocks must be at least 1, not 0"),
        (["--max-rounds", "0"], "--max-rounds must be at least 1"),
        (["--trial-seconds", "0"], "--trial-seconds must be at least 0.1"),
        (["--arrivals", "often"], "--arrivals often: expected a rate such as 5/s"),
        (["--arrivals", "5/s", "--think", "1"], "--think is for a closed load"),
        (["--max-in-flight", "5"], "--max-in-flight is for an open load"),
        (["--levels", "10,many"], "--levels 10,many: expected numbers of users"),
        (["--levels", "10,10"], "each level can be named once"),
        (["--levels", "0,10"], "--levels must be at least 1, not 0"),
        (["--abort-on", "errors<5%"], "--abort-on 'errors<5%': expected something like errors>20%"),
        (["--slo", "fast"], "objective 'fast'"),
    ],
)
def test_options_that_cannot_be_are_refused_by_name(arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse(*arguments)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8100", "https://localhost/v1", "http://[::1]:9", "http://127.9.9.9"]
)
def test_this_machine_may_be_loaded(url: str) -> None:
    LoadOptions(base_url=url, tools_url=url).check_targets({})


@pytest.mark.parametrize(
    ("options", "environment", "named"),
    [
        (LoadOptions(base_url="https://api.example.com/v1"), {}, "--base-url"),
        (LoadOptions(tools_url="http://10.0.0.1"), {}, "--tools-url"),
        (LoadOptions(), {"PROFILER_TOOLS_URL": "http://10.0.0.1"}, "PROFILER_TOOLS_URL"),
        (LoadOptions(), {"PROFILER_WEATHER_URL": "https://wttr.in"}, "PROFILER_WEATHER_URL"),
        (LoadOptions(base_url="http://127.0.0.1.example.com"), {}, "--base-url"),
    ],
)
def test_anything_else_has_to_be_meant(options: LoadOptions, environment: dict[str, str], named: str) -> None:
    with pytest.raises(UsageError, match=f"^{named} .* needs --allow-remote"):
        options.check_targets(environment)
    from dataclasses import replace

    replace(options, allow_remote=True).check_targets(environment)


@dataclass(frozen=True)
class Asked(Options):
    """Options of a test."""

    name: str = option("--name", TEXT, "n", "a name", "g", ("do",))
    count: int = option("--count", COUNT, 2, "100 % of it", "g", ("do", "locust"))
    key: str | None = option("--key", TEXT, None, "a key", "h", ("do",), secret=True)


def test_secret_is_in_no_json_and_on_no_command_line() -> None:
    asked = Asked(count=3, key="sk-secret")
    assert asked.arguments() == ["--count", "3", "--key", "[redacted]"]
    assert asked.as_json() == {"name": "n", "count": 3}
    assert asked.secrets() == {"key": "sk-secret"}
    assert Asked.from_json({**asked.as_json(), **asked.secrets()}) == asked


def test_secret_reaches_locust_s_process_in_its_environment() -> None:
    assert secrets_in_environment(Asked(key="sk-secret")) == {"PROFILER_SECRETS": '{"key": "sk-secret"}'}
    assert secrets_in_environment(Asked(count=3)) == {}


SECRET = LoadOptions(
    base_url="https://h.example/openai/deployments/d?api-version=2024-10-21&sig=abc",
    header=("api-key=k1, k2=k3", "X-Team=blue"),
    query=("key=AIza-1",),
    allow_remote=True,
)


def test_names_alone_of_headers_and_parameters_are_written(tmp_path: Path) -> None:
    made = conditions(SECRET, 2)
    url = "https://h.example/openai/deployments/d?api-version=[redacted]&sig=[redacted]"
    assert SECRET.arguments() == [
        *("--base-url", url, "--header", "api-key=[redacted]", "--header", "X-Team=[redacted]"),
        *("--query", "key=[redacted]", "--allow-remote"),
    ]
    directory = RunDirectory.create(tmp_path, made)
    written = (directory.path / "run.json").read_text()
    assert [word for word in ("2024-10-21", "abc", "k1", "k3", "blue", "AIza") if word in written] == []
    assert made.arguments["header"] == ["api-key=[redacted]", "X-Team=[redacted]"]
    parsed = argparse.Namespace(run_directory=str(directory.path))
    again = asked(parsed, secrets_in_environment(SECRET))
    assert again.options == replace(SECRET, run_directory=str(directory.path))
    assert unpack(Prepare, pack(Prepare(SECRET, "", 0, 1, "", Anchor(0, 0)))).options == SECRET


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--header", "api key=s3cret"], "--header: expected NAME=VALUE, such as api-key=…"),
        (["--header", "s3cret"], "--header: expected NAME=VALUE, such as api-key=…"),
        (
            ["--header", "a=s3cret\r\nb: c"],
            "--header: the value of a may have printable ASCII characters alone",
        ),
        (["--header", "Content-Length=3"], "--header: Content-Length is for the HTTP library to say"),
        (["--query", "s3cret"], "--query: expected NAME=VALUE, such as api-version=2024-10-21"),
        (["--body", "thinking"], "--body thinking: expected KEY=JSON, such as stream_options=null"),
        (
            ["--body", "reasoning_effort=low"],
            "--body reasoning_effort=low: no JSON after reasoning_effort= "
            '(a text is written reasoning_effort="…", quotes included)',
        ),
        (["--body", "x=NaN"], '--body x=NaN: no JSON after x= (a text is written x="…", quotes included)'),
        (
            ["--body", "x=1e999"],
            '--body x=1e999: no JSON after x= (a text is written x="…", quotes included)',
        ),
        (
            ["--body", 'x="\\ud800"'],
            '--body x="\\ud800": no JSON after x= (a text is written x="…", quotes included)',
        ),
        (["--body", "model=1"], "--body model=1: model is --model"),
        (["--body", "messages=[]"], "--body messages=[]: messages is what the loop writes"),
        (["--client-key", "k.pem"], "--client-key is the key of a certificate: add --client-cert"),
        (["--ca", "c", "--insecure"], "--insecure trusts every certificate: it makes --ca useless"),
    ],
)
def test_what_cannot_be_sent_is_refused_without_its_secrets(given: list[str], said: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse(*given)
    assert str(refused.value) == said


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (LoadOptions(ca="/nowhere.pem", base_url="https://127.0.0.1:1"), "--ca /nowhere.pem: No such file"),
        (
            LoadOptions(ca=__file__, base_url="https://127.0.0.1:1"),
            f"--ca {__file__}: no PEM file of the kind",
        ),
        (
            LoadOptions(client_cert=__file__, base_url="https://127.0.0.1:1"),
            f"--client-cert {__file__}: no PEM file of the kind that is needed",
        ),
        (
            LoadOptions(insecure=True, base_url="http://127.0.0.1:1?k=v"),
            "are for a --base-url with https://, not",
        ),
        (LoadOptions(insecure=True), "are for a --base-url with https://, not the emulator"),
    ],
)
def test_certificates_that_cannot_be_used_are_refused(given: LoadOptions, said: str) -> None:
    with pytest.raises(UsageError) as refused:
        given.check_targets({})
    assert said in str(refused.value)
    assert "k=v" not in str(refused.value)


def test_locust_s_process_reads_run_json_and_the_secrets_of_its_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No option is a secret yet: one that exists is declared as one."""
    price = LoadOptions.__dataclass_fields__["price"]
    monkeypatch.setattr(price, "metadata", {"option": replace(price.metadata["option"], secret=True)})
    options = LoadOptions(price="3.25/7.5")
    run = conditions(options, 2)
    assert "--price [redacted]" in " ".join(run.repeat)
    directory = RunDirectory.create(tmp_path, run)
    assert b"3.25" not in (directory.path / "run.json").read_bytes()
    parsed = argparse.Namespace(run_directory=str(directory.path))
    assert asked(parsed, secrets_in_environment(options)).options.price == "3.25/7.5"
    assert asked(parsed, {}).options.price is None


def test_command_has_its_options_in_their_groups() -> None:
    parser = argparse.ArgumentParser(prog="x", add_help=False)
    add_options(parser, "do", (Asked,), {"h": "what is hidden", "g": "", "empty": "not shown"})
    shown = " ".join(parser.format_help().split())
    assert shown.index("h: what is hidden") < shown.index("--key KEY a key")
    assert shown.index("g: --name NAME a name (default: n)") > shown.index("--key KEY")
    assert "--count N 100 % of it (default: 2)" in shown
    assert "empty" not in shown
    assert Asked.from_namespace(parser.parse_args(["--count", "7"])) == Asked(count=7)
    assert [one.flag for _, one in Asked.declared("locust")] == ["--count"]


SERVERS = ("--mcp", "files=python -m files", "--mcp", "web=https://example.org/mcp?key=hush")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--strategy", "semaphore:8@server"], "a limit of MCP servers: name them with --mcp"),
        (["--strategy", "semaphore:files/*=8"], "a limit of MCP servers: name them with --mcp"),
        (
            [*SERVERS, "--strategy", "semaphore:fles/*=8"],
            r"there is no MCP server 'fles' \(did you mean 'files'\?\); known: files, web",
        ),
        (["--mcp", "a=x", "--mcp", "a=y"], "two servers are named 'a'"),
        (["--mcp", "a='x"], "not a command"),
    ],
)
def test_limit_of_a_server_that_nobody_named_is_refused(given: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse(*given)


def test_limits_of_servers_that_are_named_are_taken() -> None:
    options = parse(*SERVERS, "--strategy", "semaphore:8@server,semaphore:files/*=2,web/*=3")
    assert [spec.text for spec in options.strategies] == [
        "semaphore:8@server",
        "semaphore:files/*=2,web/*=3",
    ]
    parse("--agent", "my_app:make", "--strategy", "semaphore:whatever/*=2")  # its servers are its own


def test_remote_server_needs_leave_and_an_agent_of_ones_own_asks_its_servers_itself() -> None:
    options = parse(*SERVERS)
    assert options.remote_servers == {"--mcp web": "https://example.org/mcp?key=hush"}
    with pytest.raises(UsageError) as error:
        options.check_targets({})
    assert str(error.value).startswith("--mcp web https://example.org/mcp?key=[redacted] is not this machine")
    assert "--allow-remote" in str(error.value)
    parse(*SERVERS, "--allow-remote").check_targets({})
    with pytest.raises(UsageError, match="let the agent ask the servers itself"):
        parse(*SERVERS, "--agent", "my_app:make").check_targets({})


def test_secrets_of_servers_are_kept_apart_from_what_is_shown() -> None:
    command = "files=env TOKEN=hush-1 serve --api-key hush-2 'a dir'"
    given = ("web:authorization=Bearer hush-3", "web:x=hush-4")
    options = LoadOptions(
        mcp=(command, "web=https://example.org/mcp?key=hush-5"), mcp_headers=given, allow_remote=True
    )
    shown = orjson.dumps(options.as_json()).decode() + " ".join(options.arguments())
    assert "hush" not in shown
    assert "serve --api-key [redacted] 'a dir'" in shown
    assert LoadOptions.from_json({**options.as_json(), **options.secrets()}) == options
    files, web = options.servers
    assert files.command == ("env", "TOKEN=hush-1", "serve", "--api-key", "hush-2", "a dir")
    assert (files.headers, web.headers) == ({}, {"authorization": "Bearer hush-3", "x": "hush-4"})
    assert "hush" not in repr(web.headers.keys()) + files.shown + web.shown
