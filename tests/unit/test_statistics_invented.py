"""That calls were refused since an emulated model had made up their arguments."""

from __future__ import annotations

from dataclasses import replace

import pytest

from profiler.mcp.session import EMULATOR
from profiler.rundir import McpServer
from profiler.statistics.invented import invented
from tests.unit.statistics_data import run as a_run

SHOP = McpServer("shop", "stdio", "shop", title="Shop")


@pytest.mark.parametrize(
    ("server", "arguments", "counts", "said"),
    [
        (SHOP, {}, {"shop": (5, 10)}, True),
        (SHOP, {}, {"shop": (4, 10)}, False),
        (SHOP, {}, {}, False),
        (SHOP, {}, {"shop": (0, 0)}, False),
        (replace(SHOP, title=EMULATOR), {}, {"shop": (10, 10)}, False),
        (SHOP, {"base_url": "http://127.0.0.1:1/v1"}, {"shop": (10, 10)}, False),
        (SHOP, {"agent": "app:answer"}, {"shop": (10, 10)}, False),
        (SHOP, {"direct": True}, {"shop": (10, 10)}, False),
    ],
)
def test_refused_calls_of_an_emulated_model_are_said(server, arguments, counts, said):
    run = a_run((), mcp_servers=(server,), arguments=arguments)
    found = list(invented(run, counts))
    assert [(one.kind, one.leads, one.invalid) for one in found] == [
        ("invented_arguments", True, False)
    ] * said
    if said:
        assert "the tools of shop refused 5 of 10 calls" in found[0].detail
        assert "profiler mcp load --args-from" in found[0].remedy
