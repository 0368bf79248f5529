"""Connections per user over several machines."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from app.backplane import claims as claims_module
from app.backplane.claims import UserClaims
from app.backplane.client import Backplane
from app.config import Settings
from app.supervisor import Supervisor
from tests.support.valkeys import ValkeyProcess
from tests.support.waiting import until
from workers.shared.slots import SlotTable
from workers.shared.worker_slots import WorkerSlots

Make = Callable[[], Awaitable[UserClaims]]


@pytest.fixture
async def machine(
    valkey: ValkeyProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Make]:
    """Makes a machine with one worker each time."""
    monkeypatch.setattr(claims_module, "RENEWAL_INTERVAL", 0.1)
    monkeypatch.setattr(claims_module, "RETRY_INTERVAL", 0.1)
    made: list[tuple[UserClaims, Backplane]] = []

    async def make() -> UserClaims:
        table = SlotTable(tmp_path / f"slots-{len(made)}")
        slots = WorkerSlots(table, table.claim_row(1), Settings())
        backplane = Backplane(valkey.url, Settings(), "test")
        claims = UserClaims(backplane, slots, 3)
        claims.start(Supervisor())
        made.append((claims, backplane))
        return claims

    yield make
    for claims, backplane in made:
        await claims.close()
        await backplane.close()


async def held(valkey: ValkeyProcess, claims: UserClaims) -> dict[str, int]:
    words = await valkey.command("HGETALL", claims._mine)
    counts = dict(zip(words[::2], words[1::2], strict=True))
    counts.pop(b"", None)
    return {name.decode()[1:]: int(count) for name, count in counts.items()}


async def test_the_cap_holds_over_machines(machine: Make) -> None:
    first, second = await machine(), await machine()
    assert await first.claim("ann")
    assert await second.claim("ann")
    assert await first.claim("ann")
    assert not await second.claim("ann")
    assert not await first.claim("ann")
    assert await second.claim("bob")
    first.release("ann")
    await until(lambda: not first._steps)
    await first.claim("bob")  # behind the release
    assert await second.claim("ann")
    assert not await second.claim("ann")


async def test_claims_at_once_never_exceed_the_cap(machine: Make) -> None:
    machines = [await machine() for _ in range(3)]
    users = [f"user{n}" for n in range(50)]
    answers = await asyncio.gather(
        *(claims.claim(user) for user in users for claims in machines for _ in range(3))
    )
    assert sum(answers) == 3 * len(users)
    for start in range(0, len(answers), 9):
        assert sum(answers[start : start + 9]) == 3


async def test_claims_of_one_pass_go_in_one_round_trip(
    machine: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims = await machine()
    assert await claims.claim("ann")
    sent = 0
    send = claims._send

    async def count(steps: Any) -> Any:
        nonlocal sent
        sent += bool(steps)
        return await send(steps)

    monkeypatch.setattr(claims, "_send", count)
    assert all(await asyncio.gather(*(claims.claim(f"user{n}") for n in range(500))))
    assert sent <= 2


async def test_a_dead_worker_gives_its_claims_back(
    valkey: ValkeyProcess, machine: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims_module, "LEASE", 0.5)
    monkeypatch.setattr(claims_module, "_LINGER", 0.5)
    dead, alive = await machine(), await machine()
    for _ in range(3):
        assert await dead.claim("ann")
    assert not await alive.claim("ann")
    assert 0 < await valkey.command("PTTL", dead._mine) <= 1000
    assert dead._task is not None
    dead._task.cancel()

    async def free() -> bool:
        return await alive.claim("ann")

    async with asyncio.timeout(3):
        while not await free():
            await asyncio.sleep(0.02)


async def test_a_client_that_gives_up_holds_nothing(valkey: ValkeyProcess, machine: Make) -> None:
    claims = await machine()
    assert await claims.claim("ann")
    tasks = [asyncio.create_task(claims.claim("ann")) for _ in range(2)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert await claims.claim("bob")
    await until(lambda: not claims._steps)
    assert await claims.claim("bob")
    assert await held(valkey, claims) == {"ann": 1, "bob": 2}
    assert await claims.claim("ann")
    assert await claims.claim("ann")


async def test_without_the_backplane_the_machine_decides(
    valkey: ValkeyProcess, machine: Make
) -> None:
    first, second = await machine(), await machine()
    assert await first.claim("ann")
    assert await first.claim("bob")
    valkey.kill()
    await until(lambda: first._away and second._away)
    assert await first.claim("ann")
    assert await first.claim("ann")
    assert not await first.claim("ann")
    first.release("bob")
    assert await second.claim("ann")
    await valkey.restart(emptied=True)
    await until(lambda: not first._away and not second._away)
    assert await held(valkey, first) == {"ann": 3}
    assert await held(valkey, second) == {"ann": 1}
    second.release("ann")
    assert not await second.claim("ann")


async def test_a_backplane_that_lost_its_claims_gets_them_again(
    valkey: ValkeyProcess, machine: Make
) -> None:
    claims = await machine()
    assert await claims.claim("ann")
    await valkey.command("FLUSHALL")
    other = await machine()
    for _ in range(2):
        assert await claims.claim("ann")
    assert not await other.claim("ann")


async def test_an_adopted_connection_counts_whatever_the_cap(
    valkey: ValkeyProcess, machine: Make
) -> None:
    old, successor = await machine(), await machine()
    for _ in range(3):
        assert await old.claim("ann")
    successor.adopt("ann")
    old.release("ann")
    assert await successor.claim("bob")
    assert await old.claim("bob")
    assert await held(valkey, successor) == {"ann": 1, "bob": 1}
    assert await held(valkey, old) == {"ann": 2, "bob": 1}
    assert not await old.claim("ann")


async def test_leaving_gives_everything_back(valkey: ValkeyProcess, machine: Make) -> None:
    leaving, other = await machine(), await machine()
    for _ in range(3):
        assert await leaving.claim("ann")
    await leaving.close()
    assert await held(valkey, leaving) == {}
    assert await other.claim("ann")


async def test_a_lease_from_before_the_clock_was_set_back_ends_in_time(
    valkey: ValkeyProcess, machine: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that died an hour ahead of the server's time holds its users for one lease."""
    monkeypatch.setattr(claims_module, "LEASE", 0.5)
    seconds, _ = await valkey.command("TIME")
    ahead = (int(seconds) + 3600) * 1000
    dead = claims_module._WORKERS + b":dead"
    await valkey.command("ZADD", claims_module._WORKERS, ahead, "dead")
    await valkey.command("HSET", dead, "", 3, "uann", 3)
    await valkey.command("PEXPIREAT", dead, ahead)
    living = await machine()
    assert await living.claim("bob")

    async def is_free() -> bool:
        return await living.claim("ann")

    async with asyncio.timeout(10):
        while not await is_free():
            await asyncio.sleep(0.05)
    assert await valkey.command("EXISTS", dead) == 0


@pytest.mark.parametrize(
    "foreign", [None, b"%b-77-1-\xff", b"%b-" + b"9" * 5000 + b"-2-x"], ids=["", "bytes", "digits"]
)
async def test_a_dead_workers_places_are_free_at_once(
    valkey: ValkeyProcess,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    foreign: bytes | None,
) -> None:
    """Those of its own machine free them, long before the lease ends; other programs' do not matter."""
    monkeypatch.setattr(claims_module, "RENEWAL_INTERVAL", 0.1)
    tables = [SlotTable(tmp_path / "slots") for _ in range(2)]
    backplanes, workers = [], []
    for table in tables:
        slots = WorkerSlots(table, table.claim_row(1), Settings())
        backplanes.append(Backplane(valkey.url, Settings(), slots.worker_name()))
        workers.append(UserClaims(backplanes[-1], slots, 2))
        workers[-1].start(Supervisor())
    dying, living = workers
    assert await dying.claim("ann")
    assert await dying.claim("ann")
    assert await held(valkey, dying) == {"ann": 2}
    assert not await living.claim("ann")
    # As after SIGKILL: the row is swept, and nothing is given back to the backplane.
    assert dying._task is not None
    dying._task.cancel()
    if foreign is not None:
        odd = foreign % backplanes[0].worker_name.partition("-")[0].encode()
        seconds, _ = await valkey.command("TIME")
        await valkey.command("ZADD", claims_module._WORKERS, int(seconds) * 1000 + 5000, odd)
    assert tables[1].free(os.getpid())  # the first row, which is the dying one's

    async def comes_in() -> bool:
        return await living.claim("ann")

    async with asyncio.timeout(5):  # of a lease of ten seconds
        while not await comes_in():
            await asyncio.sleep(0.05)
    assert await held(valkey, dying) == {}
    assert await held(valkey, living) == {"ann": 1}, "those of the living stay"
    assert "claims failed" not in caplog.text
    await living.close()
    for backplane in backplanes:
        await backplane.close()


async def index(valkey: ValkeyProcess) -> dict[str, set[str]]:
    words = await valkey.command("HGETALL", claims_module._INDEX)
    pairs = dict(zip(words[::2], words[1::2], strict=True))
    return {user.decode()[1:]: set(names.decode().split()) for user, names in pairs.items()}


def name(claims: UserClaims) -> str:
    return claims._backplane.worker_name


async def test_the_index_says_which_workers_hold_claims(
    valkey: ValkeyProcess, machine: Make
) -> None:
    first, second = await machine(), await machine()
    assert await first.claim("ann")
    assert await second.claim("ann")
    assert await second.claim("ann")
    assert await second.claim("bob")
    both = {name(first), name(second)}
    assert await index(valkey) == {"ann": both, "bob": {name(second)}}
    first.release("ann")
    second.release("ann")
    second.release("bob")
    assert await first.claim("cid")
    assert await second.claim("cid")
    assert await index(valkey) == {"ann": {name(second)}, "cid": both}
    await second.close()
    assert await index(valkey) == {"cid": {name(first)}}
    await first.close()
    assert await index(valkey) == {}
    assert await valkey.command("KEYS", "{rt:users}*") == []


async def test_a_dead_worker_leaves_the_index(
    valkey: ValkeyProcess, machine: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims_module, "LEASE", 0.5)
    monkeypatch.setattr(claims_module, "_PIECE", 7)
    dead, alive = await machine(), await machine()
    users = [f"user{n}" for n in range(50)]
    assert all(await asyncio.gather(*(dead.claim(user) for user in users)))
    assert await alive.claim("user0")
    assert dead._task is not None
    dead._task.cancel()

    async def only_the_living() -> bool:
        return await index(valkey) == {"user0": {name(alive)}}

    await until(only_the_living, "what is left of it is removed piece by piece", 10)

    async def has_gone() -> bool:
        return await valkey.command("EXISTS", dead._mine) == 0

    await until(has_gone, "its hash is removed", 10)
    assert await valkey.command("ZRANGE", claims_module._INDEXED, 0, -1) == [name(alive).encode()]


async def test_a_worker_whose_lease_ended_while_it_was_frozen_comes_back(
    valkey: ValkeyProcess, machine: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims_module, "LEASE", 0.3)
    frozen, alive = await machine(), await machine()
    assert await frozen.claim("ann")
    assert await frozen.claim("ann")
    assert frozen._task is not None
    frozen._task.cancel()

    async def is_forgotten() -> bool:
        return await index(valkey) == {}

    await until(is_forgotten, "its lease has ended", 10)
    frozen.start(Supervisor())
    assert await frozen.claim("bob")
    assert await index(valkey) == {"ann": {name(frozen)}, "bob": {name(frozen)}}
    assert await alive.claim("ann")
    assert not await alive.claim("ann")


async def test_workers_of_an_older_version_count(valkey: ValkeyProcess, machine: Make) -> None:
    """They keep a hash and a lease, and no index; until the last has gone, all are asked."""
    claims = await machine()
    assert await claims.claim("ann")
    seconds, _ = await valkey.command("TIME")
    old = claims_module._WORKERS + b":old"
    await valkey.command("ZADD", claims_module._WORKERS, (int(seconds) + 5) * 1000, "old")
    await valkey.command("HSET", old, "", 2, "uann", 2)
    assert not await claims.claim("ann")
    assert await claims.claim("bob")
    await valkey.command("DEL", old)
    await valkey.command("ZREM", claims_module._WORKERS, "old")
    assert await claims.claim("ann")


async def test_what_a_claim_costs_does_not_depend_on_the_number_of_workers(
    valkey: ValkeyProcess, machine: Make
) -> None:
    async def calls() -> int:
        """Commands that the server has run, those of scripts included."""
        lines = (await valkey.command("INFO", "commandstats")).decode().splitlines()
        return sum(int(line.split("calls=")[1].split(",")[0]) for line in lines if "calls=" in line)

    async def cost(claims: UserClaims, user: str) -> int:
        arguments = [*claims._begin(), claims._most, claims._reported, claims_module._PIECE]
        before = await calls()
        assert await claims._backplane.run(claims_module.CLAIM, [*arguments, "try", user]) == [1]
        return await calls() - before

    few = [await machine() for _ in range(2)]
    for claims in few:
        assert claims._task is not None
        assert await claims.claim("both")
        claims._task.cancel()
    alone = await cost(few[0], "new1")
    many = [await machine() for _ in range(20)]
    for claims in many:
        assert await claims.claim("many" + name(claims))
        assert claims._task is not None
        claims._task.cancel()
    few[0]._reported += 1
    assert await cost(few[0], "new2") == alone
