"""The dashboard and the alerts over a real Prometheus that scrapes a real service."""

from __future__ import annotations

import asyncio
import json
import math
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest

from tests.support.monitoring import MONITORING, needs_prometheus
from tests.support.plain import PlainClient
from tests.support.ports import free_port
from tests.support.program import Program
from tests.support.service import Service
from tests.support.sioclient import sio_clients
from tests.support.waiting import until

GRAFANA = MONITORING / "grafana"
DASHBOARD: dict[str, Any] = json.loads(
    (GRAFANA / "dashboards" / "yujian-presence.json").read_text()
)
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def queries() -> list[str]:
    """Every expression, with Grafana's variables as it would put them for a scrape each second."""
    return [
        target["expr"].replace("$__rate_interval", "4s").replace("$instance", ".*")
        for panel in PANELS
        for target in panel["targets"]
    ]


class Prometheus:
    """The HTTP API of one that runs."""

    def __init__(self, address: str, session: aiohttp.ClientSession) -> None:
        self._base = f"http://{address}/api/v1"
        self._session = session

    async def ask(self, path: str, **params: str) -> Any:
        async with self._session.get(f"{self._base}/{path}", params=params) as response:
            answer = await response.json()
        assert answer["status"] == "success", (params, answer)
        return answer["data"]

    async def ready(self) -> bool:
        try:
            return bool(await self.ask("query", query='up{job="backend"} == 1'))
        except aiohttp.ClientError:
            return False

    async def has_data(self, expr: str) -> bool:
        """Whether a query has results, and each is a number."""
        found = (await self.ask("query", query=expr))["result"]
        return bool(found) and all(math.isfinite(float(one["value"][1])) for one in found)

    async def lines(self, expr: str) -> list[dict[str, str]]:
        """The labels of each line that a query draws."""
        return [one["metric"] for one in (await self.ask("query", query=expr))["result"]]


@pytest.fixture
async def prometheus(service: Service, tmp_path: Any) -> AsyncIterator[Prometheus]:
    """One with our own configuration, but for the targets and a scrape each second."""
    home = tmp_path / "monitoring"
    shutil.copytree(MONITORING, home)
    config = home / "prometheus.yml"
    config.write_text(
        re.sub(r"(scrape|evaluation)_(interval|timeout): \w+", r"\1_\2: 1s", config.read_text())
    )
    targets = home / "targets" / "backend.yml"
    targets.write_text(targets.read_text().replace("backend:3001", f"127.0.0.1:{service.port}"))
    for name in ("alertmanager", "sites"):
        (home / "targets" / f"{name}.yml").write_text("[]\n")
    address = f"127.0.0.1:{free_port()}"
    program = Program(
        tmp_path / "prometheus.log",
        "prometheus",
        f"--config.file={config}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address={address}",
        "--log.level=warn",
        GOMAXPROCS="1",
    )
    async with aiohttp.ClientSession() as session:
        with program:
            running = Prometheus(address, session)
            await until(running.ready, "Prometheus scrapes the service")
            yield running


@needs_prometheus
async def test_every_query_and_every_rule_has_data(
    service: Service, prometheus: Prometheus
) -> None:
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(sio_clients(service))
        plain = await stack.enter_async_context(await PlainClient.open(service, user="ann"))

        async def live() -> None:
            while True:
                await service.publish("status")
                await plain.request("ping", {})
                await asyncio.sleep(0.2)

        life = asyncio.create_task(live())
        stack.callback(life.cancel)
        missing = queries()

        async def complete() -> bool:
            missing[:] = [expr for expr in missing if not await prometheus.has_data(expr)]
            return not missing

        try:
            await until(complete, "data for every query", 30)
        except AssertionError as error:
            error.add_note("\n".join(missing))
            raise
        assert not life.done(), life.result()
        for expr in queries():
            lines = await prometheus.lines(expr)
            assert lines == [{}] or {} not in lines, f"a line without a name beside others: {expr}"

        (total,) = (await prometheus.ask("query", query="sum(realtime_connections)"))["result"]
        assert int(total["value"][1]) >= 2

    rules = [rule for group in (await prometheus.ask("rules"))["groups"] for rule in group["rules"]]
    assert rules
    assert [rule["name"] for rule in rules if rule["health"] != "ok"] == []
    assert [rule["name"] for rule in rules if rule["state"] == "firing"] == []
    used = {name for rule in rules for name in re.findall(r"\brealtime_\w+", rule["query"])}
    assert len(used) >= 10
    empty = [name for name in sorted(used) if not await prometheus.has_data(name)]
    assert empty == []


def test_panels_are_complete() -> None:
    assert len(PANELS) >= 20
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert len({panel["title"] for panel in PANELS}) == len(PANELS)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


def test_the_dashboard_uses_the_provisioned_data_source() -> None:
    source = (GRAFANA / "provisioning" / "datasources" / "prometheus.yml").read_text()
    (uid,) = re.findall(r"^ +uid: (\S+)$", source, re.MULTILINE)
    named = set(re.findall(r'"uid": "([^"]+)"', json.dumps(DASHBOARD["panels"])))
    named |= {DASHBOARD["templating"]["list"][0]["datasource"]["uid"]}
    assert named == {uid}
    (interval,) = re.findall(r"timeInterval: (\w+)", source)
    assert f"  scrape_interval: {interval}\n" in (MONITORING / "prometheus.yml").read_text()
