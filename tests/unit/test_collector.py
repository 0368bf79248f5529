"""The collector, driven sample by sample on a clock that is handed in."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import platform
import threading
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.metrics_core import Metric

from app.config import Settings, load
from app.errors import BackplaneUnavailable
from app.metrics import Metrics
from app.presence import Presence
from app.seconds import REST
from tests.support.clock import virtual_time
from tests.support.counts import counts_of
from tests.support.waiting import until
from workers.leader.collector import INTERVAL, Collector
from workers.leader.host import HostSample, HostSampler
from workers.leader.periods import PERIODS, Periods
from workers.shared.slots import READY, SlotTable
from workers.shared.worker_slots import WorkerSlots

CALM = HostSample(
    cpu_percent=10.0,
    cpus=2.0,
    memory_percent=40.0,
    memory_used=400,
    memory_total=1000,
    disk_percent=50.0,
    disk_used=500,
    disk_total=1000,
    uptime=123.4,
    load=(0.111, 0.222, 0.333),
)


class World:
    """What surrounds a collector; `tick` lets it take its next sample two seconds later."""

    def __init__(self, directory: Path, settings: Settings) -> None:
        self.settings = settings
        self.now = 1_700_000_000.0
        self.host: HostSample | Exception = CALM
        self.available = True
        self.published: list[tuple[str, str, dict[str, Any]]] = []
        self.fields: Mapping[str, str] = {}
        self.metrics = Metrics(["status"])
        table = SlotTable(directory / "slots")
        self.row = table.claim_row(1)
        table.set_state(self.row, READY)
        self.slots = WorkerSlots(table, self.row, settings)
        self.presence = Presence(self.get, self.set, self.clock, self.clock)
        self.collector = self.make()

    def make(self) -> Collector:
        """A collector as the next leader would run it."""
        return Collector(
            self.settings,
            self.slots,
            publish=self.publish,
            presence=self.presence,
            collect=lambda: counts_of(self.metrics.registry),
            sample_host=self.sample_host,
            clock=self.clock,
            monotonic=self.clock,
        )

    def clock(self) -> float:
        return self.now

    async def get(self) -> Mapping[str, str]:
        return self.fields

    async def set(self, fields: Mapping[str, str]) -> None:
        self.fields = fields

    def sample_host(self) -> HostSample:
        if isinstance(self.host, Exception):
            raise self.host
        return self.host

    async def publish(self, type: str, event: str, data: dict[str, object]) -> None:
        if not self.available:
            raise BackplaneUnavailable
        self.published.append((type, event, json.loads(json.dumps(data))))

    def change(self, **values: Any) -> None:
        self.host = dataclasses.replace(CALM, **values)

    async def tick(self, count: int = 1) -> list[tuple[str, str, dict[str, Any]]]:
        """Let time pass and samples be taken; return what was published meanwhile."""
        before = len(self.published)
        for _ in range(count):
            await self.collector.tick()
            self.now += 2
        return self.published[before:]

    async def events(self, count: int = 1) -> list[str]:
        """Likewise, but the names of the events, without those of statistics."""
        return [event for _, event, _ in await self.tick(count) if event != "stats_update"]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    return World(tmp_path, load({"DATA_DIR": str(tmp_path)}))


async def test_the_first_sample_tells_everything(world: World) -> None:
    assert world.slots.reserve_connection()
    published = await world.tick()
    status = [(type, data) for type, event, data in published if event == "status_update"]
    assert [type for type, _ in status] == ["status"]
    data = status[0][1]
    assert data["cpu"] == 10.0
    assert data["memory"] == 40.0
    assert data["disk"] == 50.0
    assert data["uptime"] == 123
    assert data["connections"] == 1
    assert data["workers"] == 1
    assert data["load"] == [0.11, 0.22, 0.33]
    assert data["presence"] == {"state": "offline", "task": None, "updatedAt": None}
    stats = [data for type, event, data in published if (type, event) == ("stats", "stats_update")]
    assert [data["period"] for data in stats] == list(PERIODS)
    assert all(list(data["periods"]) == list(PERIODS) for data in stats)


@pytest.mark.parametrize(("setting", "name"), [("", platform.node()), ("lab one", "lab one")])
async def test_the_machine_has_the_name_of_the_setting(
    tmp_path: Path, setting: str, name: str
) -> None:
    world = World(
        tmp_path,
        load({"DATA_DIR": str(tmp_path), "HOST_NAME": setting, "BACKPLANE_URL": "redis://x"}),
    )
    recorded = []

    async def record(host: str, *_: object) -> None:
        recorded.append(host)

    world.collector = Collector(
        world.settings,
        world.slots,
        publish=world.publish,
        presence=world.presence,
        collect=lambda: counts_of(world.metrics.registry),
        sample_host=world.sample_host,
        record=record,
        clock=world.clock,
        monotonic=world.clock,
    )
    world.change(cpu_percent=99.0)
    published = await world.tick(40)
    assert {event for _, event, _ in published} == {"status_update", "stats_update", "health_alert"}
    assert {data["host"] for _, _, data in published} == set(recorded) == {name}


async def test_a_status_that_does_not_change_comes_every_thirty_seconds(world: World) -> None:
    await world.tick()
    times = []
    for _ in range(60):
        at = world.now
        if "status_update" in await world.events():
            times.append(at - 1_700_000_000.0)
    assert times[0] == pytest.approx(30, abs=2)
    assert all(later - earlier <= 30 for earlier, later in pairwise(times))
    assert len(times) == 4


@pytest.mark.parametrize(
    ("change", "noticed"),
    [
        ({"cpu_percent": 11.9}, False),
        ({"cpu_percent": 12.0}, True),
        ({"cpu_percent": 8.0}, True),
        ({"memory_percent": 42.5}, True),
        ({"disk_percent": 51.0}, False),
        ({"disk_percent": 52.0}, True),
        ({"uptime": 999.0, "load": (9.0, 9.0, 9.0)}, False),
    ],
)
async def test_small_changes_are_not_published(
    world: World, change: dict[str, Any], noticed: bool
) -> None:
    await world.tick()
    world.change(**change)
    assert await world.events() == (["status_update"] if noticed else [])
    assert await world.events() == []


async def test_slow_changes_add_up(world: World) -> None:
    """They are compared with what was published, not with the sample before."""
    await world.tick()
    got = []
    for step in range(1, 7):
        world.change(cpu_percent=10.0 + 0.5 * step)
        got.append(bool(await world.events()))
    assert got == [False, False, False, True, False, False]


@pytest.mark.parametrize(
    ("had", "more", "noticed"), [(0, 1, True), (300, 2, False), (300, 3, True)]
)
async def test_connections_count_by_their_share(
    world: World, had: int, more: int, noticed: bool
) -> None:
    for _ in range(had):
        assert world.slots.reserve_connection()
    await world.tick()
    for _ in range(more):
        assert world.slots.reserve_connection()
    assert bool(await world.events()) is noticed


async def test_presence_that_falls_silent_is_published(world: World) -> None:
    await world.presence.update("working", "an issue")
    world.now += 2
    published = await world.tick()
    updated = round(1_700_000_000.0 * 1000)
    presence = {"state": "working", "task": "an issue", "updatedAt": updated}
    assert [data["presence"] for _, event, data in published if event == "status_update"] == [
        presence
    ]
    world.now += 600 - 10
    assert [data["presence"]["state"] for _, event, data in await world.tick()
            if event == "status_update"] == ["working"]  # fmt: skip
    world.now += 10
    assert [data["presence"]["state"] for _, event, data in await world.tick()
            if event == "status_update"] == ["offline"]  # fmt: skip


async def test_presence_that_is_said_again_is_no_news(world: World) -> None:
    await world.presence.update("working", "an issue")
    await world.tick()
    await world.presence.update("working", "an issue")
    assert await world.events() == []
    await world.presence.update("idle")
    world.now += 2
    assert await world.events() == ["status_update"]


async def test_an_alert_comes_after_three_samples_in_a_row(world: World) -> None:
    await world.tick()
    world.change(memory_percent=81.0)
    assert "health_alert" not in await world.events(2)
    world.change(memory_percent=80.0)
    assert "health_alert" not in await world.events()
    world.change(memory_percent=85.0)
    began = world.now
    assert "health_alert" not in await world.events(2)
    alerts = [item for item in await world.tick() if item[0] == "health"]
    assert alerts == [
        (
            "health",
            "health_alert",
            {
                "metric": "memory",
                "value": 85.0,
                "threshold": 80,
                "level": "warning",
                "message": "Memory usage is at 85 %, above 80 %.",
                "since": began * 1000,
            },
        )
    ]
    assert "health_alert" not in await world.events(20)


async def test_an_alert_is_cleared_five_points_below(world: World) -> None:
    world.change(disk_percent=97.0)
    alerts = [data for type, _, data in await world.tick(3) if type == "health"]
    assert [(data["metric"], data["level"]) for data in alerts] == [("disk", "critical")]
    world.change(disk_percent=85.0)
    assert "health_recovery" not in await world.events(10)
    world.change(disk_percent=84.9)
    assert "health_recovery" not in await world.events(2)
    recoveries = [item for item in await world.tick() if item[0] == "health"]
    assert [(event, data["metric"], data["level"]) for _, event, data in recoveries] == [
        ("health_recovery", "disk", "info")
    ]
    assert recoveries[0][2]["since"] == 1_700_000_000_000
    assert recoveries[0][2]["value"] == 84.9


async def test_statistics_come_in_rounds(world: World) -> None:
    seen: dict[str, int] = dict.fromkeys(PERIODS, 0)
    for _ in range(1800 // 2):
        for _, event, data in await world.tick():
            if event == "stats_update":
                seen[data["period"]] += 1
    assert seen == {"1m": 180, "5m": 60, "15m": 30, "1h": 6, "24h": 2}


async def test_statistics_count_what_the_workers_did(world: World) -> None:
    await world.tick(3)
    world.metrics.count_request("/status", "GET", 200)
    world.metrics.delivered["status"].inc(40)
    world.metrics.published["status"].inc(4)
    world.metrics.delivery_latency.observe_many(0.004, 40)
    world.metrics.errors["PARSE_ERROR"].inc()
    stats = [data for type, _, data in await world.tick(5) if type == "stats"]
    for figures in (stats[-1], stats[-1]["periods"]["1m"], stats[-1]["periods"]["24h"]):
        assert figures["requests"] == 1
        assert figures["deliveries"] == 40
        assert figures["published"] == 4
        assert figures["errors"] == 1
        assert figures["latency"]["count"] == 40
        assert figures["latency"]["avg"] == 4.0
        assert 2.5 < figures["latency"]["p50"] < 5


@virtual_time
async def test_it_samples_rarely_without_clients_unless_an_alarm_is_near(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    world, loop = World(tmp_path, load({"DATA_DIR": str(tmp_path)})), asyncio.get_running_loop()
    collector: Any = world.collector

    async def steps(count: int) -> list[float]:
        taken = []
        for _ in range(count):
            await collector.tick_in_loop()
            await collector._wait()
            taken.append(loop.time())
        return [round(later - earlier, 1) for earlier, later in pairwise(taken)]

    async def tick_in_loop() -> None:
        for alarm in collector._alarms:
            alarm.sample(world.sample_host().cpu_percent, 0.0)

    collector.tick_in_loop = tick_in_loop
    assert await steps(3) == [REST, REST]
    assert world.slots.reserve_connection()
    assert (await steps(3))[-1] == INTERVAL
    world.slots.release_connection()
    assert (await steps(3))[-1] == REST
    world.change(cpu_percent=95.0)
    assert await steps(2) == [INTERVAL], "three samples in a row raise an alarm"
    assert (await steps(3))[-1] == REST, "it is raised"


async def test_without_clients_metrics_are_added_up_where_figures_are_due(world: World) -> None:
    added: list[float] = []
    collect = world.collector._collect
    world.collector._collect = lambda: (added.append(world.now), collect())[1]
    began = world.now
    await world.tick(11)
    assert [at - began for at in added] == [0, 10, 20]
    assert world.slots.reserve_connection()
    await world.tick(5)
    assert [at - began for at in added[3:]] == [24, 28]


async def test_an_absent_backplane_is_logged_once_and_made_up_for(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "workers.leader.collector")
    world.available = False
    world.change(cpu_percent=95.0)
    assert await world.tick(10) == []
    world.available = True
    world.change(cpu_percent=96.0)
    published = await world.tick()
    health = [(event, data["value"]) for type, event, data in published if type == "health"]
    assert health == [("health_alert", 96.0)]
    assert [data["cpu"] for type, _, data in published if type == "status"] == [96.0]
    assert [data["period"] for type, _, data in published if type == "stats"] == list(PERIODS)
    assert [(record.levelname, bool(record.exc_info)) for record in caplog.records] == [
        ("WARNING", False),
        ("INFO", False),
    ]


async def test_an_alarm_that_came_and_went_unpublished_is_not_sent(world: World) -> None:
    world.available = False
    world.change(cpu_percent=95.0)
    await world.tick(5)
    world.change()
    await world.tick(5)
    world.available = True
    assert "health" not in {type for type, _, _ in await world.tick(5)}


async def test_a_part_that_fails_leaves_the_others_alone(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.host = RuntimeError("no sensors")
    published = await world.tick(3)
    assert {type for type, _, _ in published} == {"stats"}
    assert [bool(record.exc_info) for record in caplog.records] == [True]
    world.host = CALM
    assert "status_update" in await world.events()


async def test_the_next_leader_goes_on(world: World) -> None:
    world.metrics.published["status"].inc(100)
    await world.tick()
    world.metrics.published["status"].inc(7)
    world.change(cpu_percent=95.0)
    task = asyncio.create_task(world.collector.run())
    await until(lambda: bool(world.published))
    task.cancel()
    await asyncio.wait({task})
    world.published.clear()
    await world.tick(3)
    assert "health_alert" in {event for _, event, _ in world.published}
    await world.tick()  # what the clients know is kept with the next sample

    world.collector = world.make()
    task = asyncio.create_task(world.collector.run())
    before = len(world.published)
    await until(lambda: len(world.published) >= before + 6)
    task.cancel()
    await asyncio.wait({task})
    successors = world.published[before:]
    assert "health" not in {type for type, _, _ in successors}
    assert successors[-1][2]["periods"]["1h"]["published"] == 7
    world.change(cpu_percent=20.0)
    assert "health_recovery" in await world.events(3)


@pytest.mark.parametrize("content", ["", "[]", '{"periods": {}}', "\0"])
async def test_a_damaged_file_starts_anew(
    world: World, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    (world.settings.data_dir / "collector.json").write_text(content)
    task = asyncio.create_task(world.collector.run())
    await until(lambda: len(world.published) >= 6)
    task.cancel()
    await asyncio.wait({task})
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    json.loads((world.settings.data_dir / "collector.json").read_text())


async def test_a_save_that_is_cancelled_and_the_last_one_do_not_meet(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both write the same temporary file; the first one goes on in its thread."""
    inside, seen, may_go_on = list[int](), list[int](), threading.Event()
    begun = list[int]()
    dump, save = Periods.dump, Collector._save

    def noted_save(collector: Collector) -> None:
        begun.append(1)
        save(collector)

    def slow_dump(periods: Periods) -> Any:
        inside.append(1)
        seen.append(len(inside))
        may_go_on.wait(5)
        inside.pop()
        return dump(periods)

    monkeypatch.setattr(Periods, "dump", slow_dump)
    monkeypatch.setattr(Collector, "_save", noted_save)
    task = asyncio.create_task(world.collector.run())
    await until(lambda: bool(inside))
    task.cancel()
    await until(lambda: len(begun) == 2)
    for _ in range(1000):
        await asyncio.sleep(0)
    may_go_on.set()
    await asyncio.wait({task})
    assert seen == [1, 1]


def damaged(kept: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy of what the collector keeps with something else in one place."""
    copy = json.loads(json.dumps(kept))
    place = copy
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    return copy


ODD: list[Any] = [None, True, -1, 1.5, 2**62, 10**400, float("nan"), "x", [], {}, [[1]]]
PLACES: list[tuple[Any, ...]] = [
    ("periods",),
    ("periods", "version"),
    ("periods", "bounds"),
    ("periods", "seen"),
    ("periods", "sum"),
    ("periods", "sum", 0),
    ("periods", "fine"),
    ("periods", "fine", 0),
    ("periods", "fine", 0, 0),
    ("periods", "coarse", 0, 3),
    ("alarms",),
    ("alarms", "cpu"),
    ("alarms", "cpu", "since"),
    ("alarms", "cpu", "raised"),
    ("alarms", "disk", "told"),
]


@pytest.mark.parametrize("path", PLACES, ids=lambda path: "-".join(map(str, path)))
async def test_whatever_the_file_holds_the_collector_goes_on(
    world: World, path: tuple[Any, ...]
) -> None:
    world.change(cpu_percent=99.0)
    await world.tick(10)
    world.collector._save()
    file = world.settings.data_dir / "collector.json"
    kept = json.loads(file.read_text())
    for value in ODD:
        file.write_text(json.dumps(damaged(kept, path, value)))
        world.collector = world.make()
        world.collector._load()
        world.change(cpu_percent=10.0)
        got = await world.tick(5)
        assert {"status", "stats"} <= {type for type, _, _ in got}, value
        assert "adding up the metrics" not in world.collector._failing
        json.dumps([data for _, _, data in got], allow_nan=False)
        figures = next(data for type, _, data in got if type == "stats")
        assert abs(figures["periods"]["24h"]["published"]) < 2**53


@pytest.mark.parametrize("content", ["[" * 100_000, "9" * 10_000, "x" * (17 * 1024 * 1024)])
async def test_a_file_that_cannot_be_parsed(world: World, content: str) -> None:
    (world.settings.data_dir / "collector.json").write_text(content)
    world.collector._load()
    assert {"status", "stats"} <= {type for type, _, _ in await world.tick(5)}


async def test_what_may_block_runs_in_threads(world: World) -> None:
    sampler = HostSampler(world.settings.data_dir)
    families = world.metrics.registry.collect
    blocked: list[int] = []

    def sample_host() -> HostSample:
        blocked.append(threading.get_ident())
        return sampler.sample()

    def collect() -> Iterable[Metric]:
        blocked.append(threading.get_ident())
        return families()

    world.sample_host = sample_host  # type: ignore[method-assign]
    world.metrics.registry.collect = collect  # type: ignore[method-assign]
    await world.make().tick()
    assert len(blocked) == 2
    assert threading.get_ident() not in blocked
    assert {type for type, _, _ in world.published} == {"status", "stats"}
