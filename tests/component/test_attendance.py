"""The list of users and its announcements, over several workers that share a Valkey."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from app import attendance as module
from app.attendance import Attendance
from app.backplane import attendance as store_module
from app.backplane.attendance import AttendanceStore
from app.backplane.client import Backplane
from app.config import Settings
from app.errors import BackplaneUnavailable
from app.metrics import Metrics
from app.sessions.registry import Registry
from app.transport.connection import OPEN
from tests.support.valkeys import ValkeyProcess

Make = Callable[..., "Worker"]
_numbers = itertools.count()


class Worker:
    """One worker's part, with sessions as the tests want them."""

    def __init__(self, url: str, number: int, published: list[Any], rows: list[Any]) -> None:
        self.backplane = Backplane(url, Settings(), f"lab-{number}-1")
        kept, announced = frozenset({"status", "stats"}), frozenset({"status"})
        self.store = AttendanceStore(self.backplane, kept, announced)
        self.registry: Any = Registry()
        self.published = published
        self.fails = False
        self.row = SimpleNamespace(index=number, generation=1)
        rows.append(self.row)
        slots: Any = SimpleNamespace(rows=lambda: list(rows))
        self.metrics = Metrics()
        self.attendance = Attendance(
            self.store,
            self.registry,
            slots,
            kept=kept,
            announced=announced,
            publish=self.publish,
            metrics=self.metrics,
            worker_name=self.backplane.worker_name,
        )
        self.now = 0.0

    async def publish(self, type: str, event: str, data: Any) -> None:
        if self.fails:
            raise BackplaneUnavailable
        assert type == "system"
        self.published.append((event, data))

    def add(self, user: str | None, *types: str) -> str:
        id = f"c{next(_numbers)}"
        group = SimpleNamespace(types=frozenset(types or ("status",)))
        self.registry.by_id[id] = SimpleNamespace(user=user, welcomed=True, state=OPEN, group=group)
        return id

    def remove(self, *ids: str) -> None:
        for id in ids:
            del self.registry.by_id[id]

    async def look(self) -> None:
        self.now += 1.0
        await self.attendance.look(self.now)

    async def listed(self, type: str = "status", after: str = "", limit: int = 100) -> Any:
        return (await self.store.page(type, after, limit))[1]


@pytest.fixture
async def make(valkey: ValkeyProcess, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Make]:
    """Makes workers that never wait: what is gone has gone, and announcements may follow at once."""
    monkeypatch.setattr(store_module, "PASSING", 0.0)
    monkeypatch.setattr(store_module, "GRACE", 0.0)
    monkeypatch.setattr(store_module, "LEAST_PAUSE", 0.0)
    published: list[Any] = []
    rows: list[Any] = []
    made: list[Worker] = []

    def one() -> Worker:
        worker = Worker(valkey.url, len(made), published, rows)
        made.append(worker)
        return worker

    yield one
    for worker in made:
        await worker.backplane.close()


def names(published: list[Any]) -> list[tuple[str, list[str]]]:
    return [(event, [row["user"] for row in data["users"]]) for event, data in published]


async def test_users_of_all_workers_are_listed_by_name(make: Make) -> None:
    one, two = make(), make()
    one.add("ann", "status", "stats", "health")
    one.add("ann", "stats")
    two.add("ann", "status")
    two.add("zoë")
    two.add(None)
    two.add("bob", "health")
    for worker in (one, two):
        await worker.look()
    assert await one.listed() == {"ann": 2, "zoë": 1}
    assert await two.listed("stats") == {"ann": 2}
    assert await two.listed("health") == {}  # it is not kept
    assert (await one.store.page("status", "", 1)) == (2, {"ann": 1 + 1})
    assert (await one.store.page("status", "ann", 5)) == (2, {"zoë": 1})


async def test_the_first_connection_joins_and_the_last_one_leaves(make: Make) -> None:
    one, two = make(), make()
    here, there = one.add("ann"), two.add("ann")
    for worker in (one, two, one):
        await worker.look()
    assert names(one.published) == [("join", ["ann"])]
    one.remove(here)
    for _ in range(3):
        await one.look()
        await two.look()
    assert len(one.published) == 1
    two.remove(there)
    for _ in range(3):
        await two.look()
        await one.look()
    assert names(one.published) == [("join", ["ann"]), ("leave", ["ann"])]
    assert one.published[1][1] == {"users": [{"user": "ann", "types": ["status"]}], "total": 1}


async def test_a_session_that_passes_to_another_worker_stays_listed(make: Make) -> None:
    one, two = make(), make()
    id = one.add("ann")
    await one.look()
    one.remove(id)
    await one.look()  # it is on its way
    assert await two.listed() == {"ann": 1}
    two.add("ann")
    await two.look()
    await one.look()
    assert await two.listed() == {"ann": 1}
    assert names(one.published) == [("join", ["ann"])]


async def test_the_grace(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "GRACE", 3600.0)
    one = make()
    id = one.add("ann")
    await one.look()
    one.remove(id)
    for _ in range(4):
        await one.look()
    assert await one.listed() == {}
    assert names(one.published) == [("join", ["ann"])]


async def test_a_storm_is_two_messages_with_some_of_the_names(make: Make) -> None:
    one, two = make(), make()
    ids = [one.add(f"user{number:04}") for number in range(5000)]
    await two.look()
    await one.look()
    for _ in range(3):  # two has the turn
        await two.look()
    [(event, data)] = one.published
    assert (event, data["total"], len(data["users"])) == ("join", 5000, 200)
    assert data["users"][0] == {"user": "user0000", "types": ["status"]}
    assert two.metrics.announced_unnamed._value.get() == 4800
    one.remove(*ids)
    await one.look()
    await one.look()
    await two.look()
    assert [(event, data["total"]) for event, data in one.published[1:]] == [("leave", 5000)]
    assert await one.listed() == {}


async def test_long_names_are_bounded_in_bytes(make: Make) -> None:
    one = make()
    for number in range(100):
        one.add(f"{number:03}" + "語" * 125)
    await one.look()
    [(_, data)] = one.published
    assert data["total"] == 100
    assert 0 < len(data["users"]) < 50


async def test_two_announcements_are_a_second_apart(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "LEAST_PAUSE", 3600.0)
    one = make()
    one.add("ann")
    await one.look()
    one.add("bob")
    for _ in range(3):
        await one.look()
    assert names(one.published) == [("join", ["ann"])]
    monkeypatch.setattr(store_module, "LEAST_PAUSE", 0.0)
    await one.look()
    assert names(one.published)[1:] == [("join", ["bob"])]


async def test_what_could_not_be_published_is_announced_later(make: Make) -> None:
    one = make()
    one.add("ann")
    one.fails = True
    for _ in range(2):
        await one.look()
    assert one.published == []
    one.fails = False
    one.add("bob")
    await one.look()
    assert names(one.published) == [("join", ["ann", "bob"])]


async def test_users_of_a_worker_that_is_gone_leave(make: Make) -> None:
    one, two = make(), make()
    for number in range(450):  # more than one call removes
        two.add(f"user{number}")
    two.add("ann")
    one.add("ann")
    for worker in (one, two, one):
        await worker.look()
    assert (await one.store.page("status", "", 1))[0] == 451
    one.attendance._slots = SimpleNamespace(rows=lambda: [one.row])  # type: ignore[assignment]
    for _ in range(2):
        await one.look()
    assert await one.listed() == {"ann": 1}
    assert [(event, data["total"]) for event, data in one.published] == [
        ("join", 1),
        ("join", 450),
        ("leave", 450),
    ]


async def test_a_worker_whose_lease_ended_says_all_again(make: Make) -> None:
    one, two = make(), make()
    for number in range(30):
        two.add(f"user{number:02}")
    for worker in (one, two):
        await worker.look()
    await one.store.end([two.backplane.worker_name.encode()])
    await one.look()
    assert await one.listed() == {}
    for _ in range(2):  # notices, and says them again
        await two.look()
    assert len(await one.listed()) == 30


async def test_an_emptied_backplane_is_filled_again(make: Make, valkey: ValkeyProcess) -> None:
    one = make()
    for number in range(500):
        one.add(f"user{number:03}")
    await one.look()
    await valkey.command("FLUSHALL")
    for _ in range(2):
        await one.look()
    assert (await one.store.page("status", "", 1))[0] == 500


async def test_keys_of_another_program_are_set_aside(make: Make, valkey: ValkeyProcess) -> None:
    one = make()
    for name in ("users", "workers", "came", "n:status"):
        await valkey.command("SET", "{rt:attendance}:" + name, "x")
    one.add("ann")
    for _ in range(4):
        await one.look()
    assert await one.listed() == {"ann": 1}
    assert ("join", ["ann"]) in names(one.published)


async def test_entries_of_another_program_stop_nothing(
    make: Make, valkey: ValkeyProcess, caplog: pytest.LogCaptureFixture
) -> None:
    one = make()
    one.add("ann")
    await one.look()
    prefix = "{rt:attendance}:"
    odd = [b"\xff\xfe", b"ann", b"foreign"]
    for name in ("came", "gone", "n:status"):
        for user in odd:
            await valkey.command("ZADD", prefix + name, "0", user)
    for user in (b"\xff\xfe", b"foreign"):
        entry = b"w \xff:1,status:" + b"9" * 5000 + b";w;,;: status:-1"
        await valkey.command("HSET", prefix + "users", user, entry)
        await valkey.command("HSET", prefix + "announced", user, b"\xff,status")
    await valkey.command("ZADD", prefix + "workers", "0", b"\xff worker")
    await valkey.command("SET", prefix.encode() + b"w:\xff worker", "x")
    one.add("bob")
    for _ in range(3):
        await one.look()
    assert await one.listed() == {"ann": 1, "bob": 1}
    assert ("join", ["bob"]) in names(one.published)
    assert "without a valid name" in caplog.text
    assert "not up to date" not in caplog.text
    for name in ("came", "gone"):
        assert await valkey.command("ZCARD", prefix + name) == 0
    assert await valkey.command("ZRANGE", prefix + "workers", "0", "-1") == [
        one.backplane.worker_name.encode()
    ]


async def test_a_full_list_refuses_and_counts(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "MOST_USERS", 2)
    one = make()
    ids = [one.add(name) for name in ("ann", "bob", "zoe")]
    await one.look()
    assert await one.listed() == {"ann": 1, "bob": 1}
    assert one.metrics.attendance_refused._value.get() == 1
    one.remove(ids[0])
    for _ in range(3):
        await one.look()
    assert await one.listed() == {"bob": 1, "zoe": 1}


async def test_more_changes_than_a_look_tells_follow(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_CHANGES", 100)
    one = make()
    ids = [one.add(f"user{number:03}") for number in range(250)]
    for expected in (100, 200, 250):
        await one.look()
        assert (await one.store.page("status", "", 1))[0] == expected
    one.remove(*ids)
    await one.look()
    for expected in (150, 50, 0):
        await one.look()
        assert (await one.store.page("status", "", 1))[0] == expected


async def test_everything_vanishes_without_renewal(make: Make, valkey: ValkeyProcess) -> None:
    one = make()
    one.add("ann", "status", "stats")
    await one.look()
    assert await valkey.command("KEYS", "{rt:attendance}*")
    await one.look()
    one.now += module.RENEWAL
    await one.look()  # renews what has come since as well
    keys = await valkey.command("KEYS", "{rt:attendance}*")
    assert len(keys) >= 6
    for key in keys:
        assert await valkey.command("PTTL", key) > 0, key


async def test_a_worker_that_stops_takes_its_users_with_it(make: Make) -> None:
    one, two = make(), make()
    one.add("ann")
    await one.look()
    await one.attendance.close()
    await two.look()
    assert await two.listed() == {}


async def test_users_stay_listed_while_they_pass_to_another_worker(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = make(), make()
    one.add("ann")
    await one.look()
    monkeypatch.setattr(store_module, "PASSING", 60.0)
    await one.attendance.close()
    await two.look()  # before it has looked at those that it was given
    assert await two.listed() == {"ann": 1}
    two.add("ann")
    await two.look()
    monkeypatch.setattr(store_module, "PASSING", 0.0)
    await one.store.end_own()
    await two.look()
    assert await two.listed() == {"ann": 1}
    assert names(two.published) == [("join", ["ann"])]
