"""All the real programs at once: Caddy, gunicorn, Prometheus, Alertmanager and the scripts.

What each does alone is in the neighbouring tests; here one outage goes through all of them.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.caddy import SITE, Caddy, address
from tests.support.copies import Done, Installed
from tests.support.monitoring import MONITORING, needs_alertmanager, needs_prometheus
from tests.support.ports import free_port
from tests.support.program import Program, run
from tests.support.receiver import Receiver
from tests.support.service import TOKEN
from tests.support.streams import Fleet, Ticker, spread_of
from tests.support.waiting import until

pytestmark = [pytest.mark.timeout(300), needs_prometheus, needs_alertmanager, pytest.mark.long]

CLIENTS = 200
OLD, NEW = "1.0.0", "1.0.1"
"""Versions: the one that is deployed first, and the one that follows."""


class Site:
    """The service with everything around it, as on a host.

    Args:
        home: for what is written.
        receiver: the webhook that gets the alerts.
    """

    def __init__(self, home: Path, receiver: Receiver) -> None:
        https_port = free_port()
        self.home = home
        self.receiver = receiver
        self.service = Installed(
            WORKERS=2,
            TRUSTED_PROXIES="127.0.0.1",
            ALLOWED_ORIGINS=f"https://{SITE}:{https_port}",
        )
        self.version(OLD)
        self.caddy = Caddy(address(self.service), https_port=https_port)
        self.prometheus_url = f"http://127.0.0.1:{free_port()}"
        self.alertmanager_url = f"http://127.0.0.1:{free_port()}"
        self.prometheus: Program

    # Programs

    def start(self, stack: ExitStack) -> None:
        """Start everything; the service by its first deployment."""
        stack.callback(self.service.destroy)
        stack.enter_context(self.caddy)
        self.deploy("started for the first time")
        configuration = self._quick_monitoring()
        stack.enter_context(
            Program(
                self.home / "alertmanager.log",
                configuration / "start-alertmanager.sh",
                f"--web.listen-address={self.alertmanager_url.removeprefix('http://')}",
                "--cluster.listen-address=",
                f"--storage.path={self.home / 'alertmanager'}",
                ALERT_WEBHOOK_URL=f"{self.receiver.url}/alerts",
                BACKEND_URL=self.service.base,
                PUBLISH_TOKEN=TOKEN,
                TMPDIR=str(self.home),
            )
        )
        self.prometheus = stack.enter_context(
            Program(
                self.home / "prometheus.log",
                "prometheus",
                f"--config.file={configuration / 'prometheus.yml'}",
                f"--storage.tsdb.path={self.home / 'prometheus'}",
                f"--web.listen-address={self.prometheus_url.removeprefix('http://')}",
            )
        )

    def _quick_monitoring(self) -> Path:
        """The repository's monitoring of these ports, looking every second; thresholds stay.

        Prometheus finds its targets within 11 s, which must not look like an outage.
        """
        copy = self.home / "monitoring"
        shutil.copytree(MONITORING, copy)
        prometheus = self.prometheus_url.removeprefix("http://")
        for name, pattern, new, count in (
            ("prometheus.yml", r"(scrape_interval|scrape_timeout): 1\d?s", r"\1: 1s", 2),
            ("prometheus.yml", r"evaluation_interval: 15s", "evaluation_interval: 1s", 1),
            ("prometheus.yml", r"localhost:9090", prometheus, 1),
            ("alerts.yml", r"(?s)(alert: BackendDown\n.*?for: )1m", r"\g<1>15s", 1),
            ("alertmanager.yml", r"group_(wait|interval): \w+", r"group_\1: 1s", 2),
        ):
            text, found = re.subn(pattern, new, (copy / name).read_text(), count=count)
            assert found == count, f"{pattern} in {name}"
            (copy / name).write_text(text)
        targets = copy / "targets"
        (targets / "backend.yml").write_text(f"- targets: [{address(self.service)}]\n")
        alertmanager = self.alertmanager_url.removeprefix("http://")
        (targets / "alertmanager.yml").write_text(f"- targets: [{alertmanager}]\n")
        (targets / "sites.yml").write_text("[]\n")
        return copy

    def halt(self) -> None:
        """Stop the service as its operator does, and wait for its end."""
        pid = int((self.service.data_dir / "gunicorn.pid").read_text())
        os.kill(pid, signal.SIGTERM)
        self.service.assert_nothing_left()

    # Scripts

    @property
    def through_caddy(self) -> tuple[str, ...]:
        """Options of the scripts that look at the service as clients do."""
        root = str(self.caddy.root_certificate)
        return "--base-url", self.caddy.api, "--connect", "127.0.0.1", "--ca", root

    def deploy(self, how: str, *, code: int = 0) -> Any:
        """`deploy-websocket.sh`; its report."""
        options = ("--json", "--timeout", "30")
        done = self.service.run("deploy-websocket.sh", *options, *self.through_caddy)
        assert done.code == code, done
        assert how in done.json["how"]
        return done.json

    def verify(self) -> tuple[int, dict[str, str]]:
        """`verify-deployment.sh`: its exit code, and the state of each check."""
        options = ("--json", "--days", "0")
        done = self.service.run("verify-deployment.sh", *options, *self.through_caddy)
        return done.code, {row["check"]: row["state"] for row in done.json["checks"]}

    def health_check(self) -> int:
        """`health-check.sh` with the webhook, through Caddy: its exit code."""
        return run(
            MONITORING / "health-check.sh",
            *("--state", self.home / "health-check/state"),
            *("--webhook", f"{self.receiver.url}/health-check"),
            *("--timeout", "4"),
            self.caddy.api,
            CURL_CA_BUNDLE=str(self.caddy.root_certificate),
        ).returncode

    def rollback(self, *arguments: str) -> Done:
        return self.service.run("rollback.sh", "--json", *arguments)

    def version(self, version: str) -> None:
        """Bring the code of a version, which runs once it is deployed."""
        text, found = re.subn(
            r'(__version__ = )".*"', rf'\1"{version}"', self.service.read("app/__init__.py")
        )
        assert found == 1
        (self.service.root / "app/__init__.py").write_text(text)

    # What is seen

    async def running_version(self) -> str:
        """The version that answers through Caddy."""
        async with self.caddy.session() as http, http.get(f"{self.caddy.api}/status") as answer:
            assert answer.status == 200
            version: str = (await answer.json())["version"]
            return version

    async def configuration(self) -> str:
        """What Caddy runs with."""
        url = f"http://{self.caddy.environ['CADDY_ADMIN']}/config/"
        async with aiohttp.ClientSession() as http, http.get(url) as answer:
            return await answer.text()

    async def value(self, query: str) -> float | None:
        """The one value that Prometheus has for a query; None: it has none, or does not serve."""
        url = f"{self.prometheus_url}/api/v1/query"
        try:
            async with (
                aiohttp.ClientSession() as http,
                http.get(url, params={"query": query}) as answer,
            ):
                if answer.status != 200:
                    return None
                result = (await answer.json())["data"]["result"]
        except aiohttp.ClientError:
            return None
        return float(result[0]["value"][1]) if result else None

    async def is_scraped(self, connections: int) -> bool:
        """Whether Prometheus knows so many connections of the service."""
        return await self.value('realtime_connections{job="backend"}') == connections

    def alerts_of(self, alert: str) -> list[dict[str, Any]]:
        """What the webhook got of an alert."""
        return [
            one
            for post in self.receiver.posts
            for one in post["alerts"]
            if one["labels"]["alertname"] == alert
        ]

    async def has_informed_clients(self, event: str) -> bool:
        """Whether clients were informed of the outage by this event."""
        history = await self.service.history("health")
        return ("BackendDown", event) in [(m["data"]["metric"], m["event"]) for m in history]


@asynccontextmanager
async def running(home: Path) -> AsyncIterator[Site]:
    """Everything in operation, and stopped at the end."""
    with ExitStack() as stack:
        site = Site(home, stack.enter_context(Receiver()))
        try:
            await asyncio.to_thread(site.start, stack)
            yield site
            await asyncio.to_thread(site.halt)
        except BaseException as error:
            log = site.service.data_dir / "service.log"
            error.add_note(f"service log:\n{log.read_text()[-6000:] if log.exists() else ''}")
            raise


async def test_an_outage_and_two_versions_under_load(tmp_path: Path) -> None:
    async with running(tmp_path) as site:
        head = {"Authorization": f"Bearer {TOKEN}"}
        session = site.caddy.session(base_url=site.caddy.api, headers=head)
        async with (
            Fleet(site.service, kind=site.caddy.stream) as fleet,
            Ticker(site.service, 0.1, session=session) as ticker,
        ):
            await fleet.open(CLIENTS)
            await goes_on(fleet, ticker)
            await until(lambda: site.is_scraped(CLIENTS), "Prometheus knows the clients", 60)
            backup = await renewals_that_no_client_notices(site, fleet, ticker)
            await an_outage(site, fleet)
            await a_return(site, fleet, ticker)
            await back_to_the_old_version(site, fleet, backup)


async def goes_on(fleet: Fleet, ticker: Ticker) -> None:
    """Wait until every client has messages that were published after now, and all before."""
    before = ticker.last
    await until(lambda: ticker.last > before + 3, "publishing goes on")
    await fleet.all_at(ticker.last)
    ticker.check(fleet.streams)
    for stream in fleet.streams:
        seqs = sorted(stream.ids.values())
        assert seqs == list(range(seqs[0], seqs[-1] + 1)), "a message came twice, or not at all"


async def renewals_that_no_client_notices(site: Site, fleet: Fleet, ticker: Ticker) -> str:
    """Reload Caddy, then deploy, badly and well; returns the backup of the old version."""
    await asyncio.to_thread(site.caddy.reload, HEALTH_INTERVAL="2s")
    assert '"interval":2000000000' in await site.configuration()
    await goes_on(fleet, ticker)
    fleet.check_untouched()

    good = site.service.read("app/main.py")
    site.service.change("app/main.py", "import asyncio", "import nothing_of_this_name")
    report = await asyncio.to_thread(site.deploy, "nothing", code=13)
    assert report["rolled_back"] is True
    assert site.service.read("app/main.py") == good

    site.version(NEW)
    old = spread_of(site.service)
    report = await asyncio.to_thread(site.deploy, "SIGHUP")
    assert (report["handed_over"], report["noticed"]) == (CLIENTS, 0)
    workers = spread_of(site.service)
    assert len(old) == len(workers) == 2
    assert not old.keys() & workers.keys()
    assert await site.running_version() == NEW
    await goes_on(fleet, ticker)
    fleet.check_untouched()

    code, checks = await asyncio.to_thread(site.verify)
    assert (code, set(checks.values())) == (0, {"ok"}), checks
    assert await asyncio.to_thread(site.health_check) == 0
    fleet.check_untouched()
    assert not site.alerts_of("BackendDown")
    backup: str = report["backup"]
    return backup


async def an_outage(site: Site, fleet: Fleet) -> None:
    """Stop the service: every monitor notices, each in its own way."""
    fleet.back = True
    await asyncio.to_thread(site.halt)
    await until(lambda: all(stream.closes for stream in fleet.streams), "every client is closed")
    assert {code for code, _ in fleet.closes} <= {1001, 1012}, fleet.closes[:5]
    (code, checks), health, _ = await asyncio.gather(
        asyncio.to_thread(site.verify),
        asyncio.to_thread(site.health_check),
        until(lambda: site.alerts_of("BackendDown"), "the webhook gets BackendDown", 60),
    )
    assert code == 11
    assert checks == {
        "http": "failed",
        "endpoints": "failed",
        "handshake": "failed",
        "containers": "failed",
        "caddy": "ok",
        "ports": "ok",
        "certificate": "ok",
    }
    assert health == 11
    assert [one["status"] for one in site.alerts_of("HealthCheckHttp")] == ["firing"]
    assert [one["status"] for one in site.alerts_of("HealthCheckWebsocket")] == ["firing"]
    [down] = site.alerts_of("BackendDown")
    assert down["status"] == "firing"
    assert down["labels"]["severity"] == "critical"
    assert down["labels"]["instance"] == address(site.service)
    assert down["annotations"]["runbook_url"] == "https://lab.yujian.team/runbook.html#backenddown"


async def a_return(site: Site, fleet: Fleet, ticker: Ticker) -> None:
    """Start the service again: the webhook and the clients are informed, and clients get what they missed."""
    # Alertmanager does not report an alert that has ended before it could be sent, so
    # Prometheus looks away until the clients' message has come.
    os.kill(site.prometheus.pid, signal.SIGSTOP)
    await asyncio.to_thread(site.deploy, "started for the first time")
    await until(
        lambda: site.has_informed_clients("health_alert"), "clients are informed of BackendDown", 60
    )
    os.kill(site.prometheus.pid, signal.SIGCONT)

    await goes_on(fleet, ticker)
    assert all(stream.recovered and all(stream.recovered) for stream in fleet.streams)
    assert not [gap for stream in fleet.streams for gap in stream.gaps]
    await site.service.wait_connections(CLIENTS)

    await until(lambda: len(site.alerts_of("BackendDown")) > 1, "the webhook gets the end", 60)
    assert [one["status"] for one in site.alerts_of("BackendDown")] == ["firing", "resolved"]
    await until(
        lambda: site.has_informed_clients("health_recovery"), "clients are informed of the end", 60
    )
    await until(lambda: site.is_scraped(CLIENTS), "Prometheus knows the clients", 60)
    assert await asyncio.to_thread(site.health_check) == 0
    for name in ("HealthCheckHttp", "HealthCheckWebsocket"):
        assert [one["status"] for one in site.alerts_of(name)] == ["firing", "resolved"]


async def back_to_the_old_version(site: Site, fleet: Fleet, backup: str) -> None:
    """Roll back: a damaged backup is refused, a good one taken; no client is closed."""
    closed = len(fleet.closes)
    damaged = site.service.backups / "20000101_000000"
    shutil.copytree(site.service.backups / backup, damaged)
    [base] = damaged.glob("data/appendonlydir/*.base.rdb")
    base.write_bytes(base.read_bytes()[:-1])
    done = await asyncio.to_thread(site.rollback, damaged.name)
    assert (done.code, done.json["ok"]) == (2, False), done
    assert await site.running_version() == NEW

    done = await asyncio.to_thread(site.rollback, backup)
    assert (done.code, done.json["ok"]) == (0, True), done
    assert await site.running_version() == OLD
    sent = await site.service.publish("status", "after_rollback")
    await until(
        lambda: all(sent["id"] in stream.ids for stream in fleet.streams),
        "a message after the rollback at every client",
    )
    fleet.check_faults()
    assert len(fleet.closes) == closed
    for stream in fleet.streams:
        assert {gap["reason"] for gap in stream.gaps} == {"epoch"}
        assert stream.epoch == sent["epoch"]
