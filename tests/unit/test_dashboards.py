"""Dashboards and rules: the rules of the house, without Grafana and without Prometheus."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest
import yaml

from profiler import dashboards, metrics
from profiler.cli import main
from profiler.errors import UsageError
from tools.dashboards import build, rules
from tools.dashboards.board import SLO_SECONDS
from tools.dashboards.panels import Scope

ROOT = Path(__file__).parents[2]
FILES = dashboards.files()
BOARDS = {name: json.loads(text) for name, text in FILES.items() if name.endswith(".json")}
RULES = [rule for group in yaml.safe_load(FILES["rules.yml"])["groups"] for rule in group["rules"]]
ALERTS = [rule for rule in RULES if "alert" in rule]

PANELS = [
    pytest.param(panel, id=f"{board['uid']}-{panel['title']}")
    for board in BOARDS.values()
    for panel in board["panels"]
    if panel["type"] != "row"
]

NOT_SHOWN: dict[str, str] = {}
"""Metric → why it is on no panel and in no rule."""

ADDED_BY_PROMETHEUS = {"job", "instance", "testid", "le"}

EVERY = (*metrics.TABLE, *metrics.COLLECTOR_TABLE, *metrics.PROXY_TABLE)

BY_NAME = {metric.name: metric for metric in EVERY}

SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("",), "gauge": ("",)}

EXPOSED = {metric.name + suffix: metric for metric in EVERY for suffix in SUFFIXES[metric.kind]}


def board_queries() -> list[tuple[str, str]]:
    found = []
    for name, board in BOARDS.items():
        for panel in board["panels"]:
            found += [(f"{name}: {panel['title']}", t["expr"]) for t in panel.get("targets", [])]
        for variable in board["templating"]["list"]:
            if variable["type"] == "query":
                found.append((f"{name}: variable {variable['name']}", variable["query"]["query"]))
        found += [(f"{name}: annotation {a['name']}", a["expr"]) for a in board["annotations"]["list"]]
    return found


QUERIES = board_queries() + [(rule.get("alert") or rule["record"], rule["expr"]) for rule in RULES]

RECORDED = {rule["record"] for rule in RULES if "record" in rule}


def names_in(query: str) -> set[str]:
    """Raw metrics that a query reads; names of recordings contain a colon."""
    return {n for n in re.findall(r"[a-zA-Z_:][\w:]*", without_strings(query)) if n.startswith("toolloop_")}


def without_strings(query: str) -> str:
    return re.sub(r'"[^"]*"', '""', query)


# Panels


@pytest.mark.parametrize("panel", PANELS)
def test_panel_says_what_it_shows_and_in_which_unit(panel):
    assert panel["title"]
    assert "?" in panel["description"], "a description says which question is answered"
    assert len(panel["description"]) > 60
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["targets"]


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_titles_and_ids_are_unique(board):
    for key in ("id", "title"):
        values = [panel[key] for panel in board["panels"]]
        assert len(values) == len(set(values))


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_panels_do_not_overlap_and_fit_the_grid(board):
    cells = [p["gridPos"] for p in board["panels"]]
    for a, b in itertools.combinations(cells, 2):
        apart = (
            a["x"] + a["w"] <= b["x"]
            or b["x"] + b["w"] <= a["x"]
            or a["y"] + a["h"] <= b["y"]
            or b["y"] + b["h"] <= a["y"]
        )
        assert apart, (a, b)
    assert all(c["x"] >= 0 and c["x"] + c["w"] <= 24 for c in cells)


def test_ten_rows_are_there_in_order():
    rows = [p["title"] for p in BOARDS["toolloop.json"]["panels"] if p["type"] == "row"]
    assert rows == [
        "Verdict",
        "Strategies side by side",
        "Fan-out and stragglers",
        "Tools",
        "MCP servers",
        "Model",
        "Rate limits",
        "Recorded loops",
        "Generator health",
        "SLO",
    ]


@pytest.mark.parametrize("panel", PANELS)
def test_percentiles_are_never_stacked(panel):
    stacked = panel["fieldConfig"]["defaults"].get("custom", {}).get("stacking", {}).get("mode") == "normal"
    if stacked or panel["type"] == "barchart":
        assert not any("quantile" in t["expr"] for t in panel["targets"])


@pytest.mark.parametrize("panel", PANELS)
def test_query_goes_to_the_chosen_data_source_under_a_name_of_its_own(panel):
    assert {t["datasource"]["uid"] for t in panel["targets"]} == {"${datasource}"}
    names = [t["refId"] for t in panel["targets"]]
    assert len(names) == len(set(names))


def test_strategy_has_one_colour_on_all_graphs_that_show_strategies():
    colours = {}
    for param in PANELS:
        panel = param.values[0]
        if not any(t["legendFormat"].startswith("{{strategy}}") for t in panel["targets"]):
            continue
        if panel["type"] == "stat":
            continue  # coloured by what the value means
        found = [
            (o["matcher"]["options"], p["value"]["fixedColor"])
            for o in panel["fieldConfig"]["overrides"]
            for p in o["properties"]
            if p["id"] == "color"
        ]
        colours[panel["title"]] = [c for p, c in found if re.search(p[1:-1], "semaphore:8 p95")]
    assert len(colours) > 8
    assert {tuple(c) for c in colours.values()} == {("#D9A17F",)}


# Queries


@pytest.mark.parametrize(("where", "query"), QUERIES, ids=[w for w, _ in QUERIES])
def test_queries_name_only_metrics_that_exist(where, query):
    recorded = {n for n in re.findall(r"[a-z_]+:[\w:]+", without_strings(query)) if ":toolloop_" in n}
    assert names_in(query) or recorded, query
    assert names_in(query) <= EXPOSED.keys()
    assert recorded <= RECORDED


@pytest.mark.parametrize(("where", "query"), QUERIES, ids=[w for w, _ in QUERIES])
def test_queries_use_only_labels_that_their_metrics_have(where, query):
    known = set(ADDED_BY_PROMETHEUS)
    for name in names_in(query):
        metric = EXPOSED[name]
        known |= set(metric.labels)
        for inside in re.findall(rf"{name}\{{([^}}]*)\}}", query):
            matched = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", inside))
            assert matched <= {*metric.labels, *ADDED_BY_PROMETHEUS}, name
    if any(":" in n for n in re.findall(r"[a-z_:]+", without_strings(query))):
        known |= {"strategy"}
    for labels in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", query):
        assert {label.strip() for label in labels.split(",")} <= known, query


@pytest.mark.parametrize(("where", "query"), QUERIES, ids=[w for w, _ in QUERIES])
def test_counters_are_always_under_a_rate(where, query):
    if query.startswith("label_values"):
        return
    over_time = r"(?:rate|increase|last_over_time|timestamp)\("
    for name in names_in(query):
        if EXPOSED[name].kind == "gauge":
            continue
        for match in re.finditer(rf"\b{name}\b", query):
            assert re.search(rf"{over_time}$", query[: match.start()]), f"{name} is bare in {query}"


@pytest.mark.parametrize("panel", PANELS)
def test_windows_follow_the_scrape_interval_or_the_time_range(panel):
    burn = panel["title"] == "Burn rate"  # whose windows are its definition
    for target in panel["targets"]:
        windows = set(re.findall(r"\[([^\]:]+)(?::[^\]]*)?\]", target["expr"]))
        if not burn:
            assert windows <= {"$__range" if target["instant"] else "$__rate_interval"}
    if burn:
        assert [t["legendFormat"] for t in panel["targets"]] == ["5m", "30m", "1h", "6h"]


@pytest.mark.parametrize(("where", "query"), QUERIES, ids=[w for w, _ in QUERIES])
def test_ratios_and_quantiles_of_nothing_are_gaps(where, query):
    for quotient in re.findall(r" / (?:on \(\w+\) group_left \(\) )?(\S)", query):
        assert quotient == "(" or query.rstrip(")").endswith(("0.01", "/ 0.01")), query
    if "histogram_quantile" in query:
        assert query.count("histogram_quantile") == query.count(">= 0"), query


def test_metric_is_shown_or_excused():
    shown = {EXPOSED[name].name for _, query in QUERIES for name in names_in(query)}
    assert shown.isdisjoint(NOT_SHOWN), "excused, and shown all the same"
    assert BY_NAME.keys() - shown == set(NOT_SHOWN)


def test_query_cannot_ask_for_a_label_that_its_metric_lacks():
    with pytest.raises(ValueError, match="toolloop_loop_rounds has no label tool"):
        Scope().select(metrics.LOOP_ROUNDS, "_sum", tool="=search")


# Variables


def test_variables_are_reloaded_with_the_time_range():
    variables = {v["name"]: v for v in BOARDS["toolloop.json"]["templating"]["list"]}
    assert list(variables) == ["datasource", "job", "instance", "testid", "strategy", "tool", "slo"]
    for name in ("job", "instance", "testid", "strategy", "tool"):
        variable = variables[name]
        assert variable["refresh"] == 2, "2 is: on time range change"
        assert variable["multi"]
        assert variable["includeAll"]
        # Production has no testid: All has to include series without one.
        assert variable["allValue"] == (".*" if name == "testid" else ".+")


@pytest.mark.parametrize("panel", [p for p in PANELS if p.id.startswith("toolloop-")])
def test_query_heeds_the_variables(panel):
    for target in panel["targets"]:
        for inside in re.findall(r"toolloop_\w+\{([^}]*)\}", target["expr"]):
            for name in ("job", "instance", "testid"):
                assert f'{name}=~"${name}"' in inside
        for name in names_in(target["expr"]):
            if "strategy" in EXPOSED[name].labels:
                assert 'strategy=~"$strategy"' in target["expr"]


def test_slo_is_a_bucket_bound():
    slo = next(v for v in BOARDS["toolloop.json"]["templating"]["list"] if v["name"] == "slo")
    bounds = [f"{bound:.10g}" for bound in metrics.ROUND_BUCKETS]
    assert slo["query"].split(",") == bounds
    assert slo["current"]["value"] in bounds
    assert SLO_SECONDS in [float(b) for b in bounds]


# Rules


def test_alert_says_what_is_wrong_and_where_to_read_on():
    sections = re.findall(r"^### (\w+)$", FILES["README.md"], re.MULTILINE)
    assert sections == [alert["alert"] for alert in ALERTS]
    for alert in ALERTS:
        notes = alert["annotations"]
        assert notes["runbook_url"] == f"dashboards/README.md#{alert['alert'].lower()}"
        assert notes["summary"]
        assert notes["description"]
        assert alert["labels"]["severity"] in ("page", "ticket", "info")


def test_runbook_sections_name_panels_that_exist():
    shown = {panel.values[0]["title"] for panel in PANELS}
    shown |= {p["title"] for p in BOARDS["toolloop.json"]["panels"] if p["type"] == "row"}
    for alert in rules.alerts():
        for name in re.findall(r"\*([^*]+)\*", alert.look):
            assert name in shown or any(title.startswith(name) for title in shown), name


# Files


def test_committed_files_are_what_the_package_writes():
    assert dashboards.check(ROOT / "dashboards") == []
    # Whoever runs the stack there lists processes in targets/*.json.
    assert {name for name in names_below(ROOT / "dashboards") if not name.startswith("targets/")} == {
        name for name in FILES if not name.startswith("targets/")
    }


def test_package_holds_what_the_tool_builds():
    """When this fails, run `python -m tools.dashboards`."""
    built = build()
    assert built == {name: (dashboards.DIRECTORY / name).read_text("utf-8") for name in built}


@pytest.mark.parametrize("prefix", [dashboards.PREFIX, "acme_agents_", "_"])
@pytest.mark.parametrize("datasource", [None, dashboards.DATASOURCE_UID, "mimir-1", "0"])
def test_written_files_differ_in_metric_names_and_the_data_source_alone(tmp_path, datasource, prefix):
    written = dashboards.write(tmp_path, datasource, prefix)
    assert written == [tmp_path / name for name in FILES]
    chosen = {"selected": True, "text": datasource, "value": datasource} if datasource else {}
    for name, text in FILES.items():
        expected = text.replace("uid: toolloop-prometheus", f"uid: {datasource or 'toolloop-prometheus'}")
        if name.endswith(".json"):
            board = json.loads(text)
            assert [v["current"] for v in board["templating"]["list"] if v["type"] == "datasource"] == [{}]
            board["templating"]["list"][0]["current"] = chosen
            expected = json.dumps(board, indent=2, ensure_ascii=False) + "\n"
        assert (tmp_path / name).read_bytes().decode() == expected.replace("toolloop_", prefix)


def test_package_has_no_file_that_it_does_not_write():
    assert names_below(dashboards.DIRECTORY) == FILES.keys()


def names_below(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}


def test_check_names_file_and_line(tmp_path):
    dashboards.write(tmp_path)
    assert dashboards.check(tmp_path) == []
    path = tmp_path / "rules.yml"
    path.write_text(path.read_text().replace("for: 2m", "for: 3m"))
    (tmp_path / "compose.yaml").unlink()
    line = FILES["rules.yml"].splitlines().index("        for: 2m") + 1
    differences = dashboards.check(tmp_path)
    assert [d.partition(" ")[0] for d in differences] == [f"{path}:{line}:", f"{tmp_path}/compose.yaml:"]


def test_data_source_and_a_prefix_of_ones_own(tmp_path):
    dashboards.write(tmp_path, datasource="mimir-1", prefix="acme_agents_")
    text = (tmp_path / "toolloop.json").read_text()
    chosen = json.loads(text)["templating"]["list"][0]["current"]
    assert chosen["value"] == "mimir-1"
    assert "toolloop_" not in text + (tmp_path / "rules.yml").read_text()
    assert "acme_agents_loop_duration_seconds_bucket" in text
    source = yaml.safe_load((tmp_path / "provisioning/datasources/prometheus.yml").read_text())
    assert source["datasources"][0]["uid"] == "mimir-1"


def test_check_takes_the_options_that_the_files_were_written_with(tmp_path, capsys):
    chosen = ["--datasource", "mimir-1", "--prefix", "acme_agents_"]
    assert main(["dashboards", "--out", str(tmp_path), *chosen]) == 0
    assert main(["dashboards", "--check", str(tmp_path), *chosen]) == 0
    assert capsys.readouterr().err == ""
    assert main(["dashboards", "--check", str(tmp_path)]) == 1
    assert f"{tmp_path}/toolloop.json:" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "value"), [("prefix", "9_"), ("prefix", 'a"b'), ("datasource", "a b")])
def test_name_that_cannot_be_one_is_refused(tmp_path, option, value):
    with pytest.raises(UsageError, match=f"--{option}"):
        dashboards.write(tmp_path, **{option: value})


@pytest.mark.filterwarnings("ignore:Prefer using dashboardv2:DeprecationWarning")  # Grafana 11 has no v2
@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_grafanas_own_schema_takes_everything(board):
    from grafana_foundation_sdk.cog import plugins
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.models.dashboard import Dashboard

    plugins.register_default_plugins()
    read = json.loads(JSONEncoder().encode(Dashboard.from_json(json.loads(json.dumps(board)))))
    assert list(lost(board, read)) == []
    assert board["schemaVersion"] == 42


def lost(ours, read, path=""):
    """Where what the schema read lacks or changes something of ours; it may add defaults."""
    if isinstance(ours, dict) and isinstance(read, dict):
        for key, value in ours.items():
            yield from lost(value, read[key], f"{path}/{key}") if key in read else [f"{path}/{key}"]
    elif isinstance(ours, list) and isinstance(read, list) and len(ours) == len(read):
        for index, (a, b) in enumerate(zip(ours, read, strict=True)):
            yield from lost(a, b, f"{path}/{index}")
    elif ours != read:
        yield path


def test_services_listen_on_loopback_alone_and_images_are_pinned():
    compose = yaml.safe_load(FILES["compose.yaml"])
    prometheus, grafana = compose["services"]["prometheus"], compose["services"]["grafana"]
    assert "--web.listen-address=127.0.0.1:9090" in prometheus["command"]
    assert "--enable-feature=exemplar-storage" in prometheus["command"]
    assert grafana["environment"]["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"
    assert grafana["environment"]["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    for service in (prometheus, grafana):
        assert re.fullmatch(r"[\w/]+:v?\d+\.\d+\.\d+", service["image"])
        assert "ports" not in service
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            if source.startswith("./"):
                assert any(name.startswith(source.removeprefix("./")) for name in FILES), source


def test_exemplars_lead_somewhere():
    source = yaml.safe_load(FILES["provisioning/datasources/prometheus.yml"])["datasources"][0]
    destination = source["jsonData"]["exemplarTraceIdDestinations"][0]
    assert destination["name"] == "trace_id"
    assert "${__value.raw}" in destination["url"]
    heatmaps = [p.values[0] for p in PANELS if p.values[0]["type"] == "heatmap"]
    assert len(heatmaps) == 3
    asked = {panel["title"] for panel in heatmaps for t in panel["targets"] if t["exemplar"]}
    assert asked == {"Round duration, every round", "Call duration, every call"}


def test_test_runs_link_into_the_dashboard_with_test_and_time():
    table = next(
        p for p in BOARDS["test-runs.json"]["panels"] if p["title"] == "Test runs" and p["type"] == "table"
    )
    links = [
        link for o in table["fieldConfig"]["overrides"] for p in o["properties"] if p["id"] == "links"
        for link in p["value"]
    ]  # fmt: skip
    assert len(links) == 1
    assert links[0]["url"].startswith(f"/d/{BOARDS['toolloop.json']['uid']}?")
    assert "var-testid=" in links[0]["url"]
    headings = next(t for t in table["transformations"] if t["id"] == "organize")["options"]["renameByName"]
    for field in re.findall(r"__data\.fields\.(\w+)", links[0]["url"]):
        assert field in headings.values()
