"""Workers read from the replica of their machine, and from the primary when that cannot be."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from app.errors import BackplaneUnavailable
from tests.support.backplane import draft
from tests.support.ports import free_port
from tests.support.replicas import LONG, Machine, Way
from tests.support.sentinels import Sentinels, ServerProcess
from tests.support.waiting import until


class Primary:
    """The shared server."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.port = free_port()
        self._starts = 0
        self.process = self._start()

    def _start(self, *more: str) -> ServerProcess:
        self._starts += 1
        words = ["--port", str(self.port), "--bind", "127.0.0.1", "--appendonly", "yes"]
        words += ["--save", "", "--repl-diskless-sync-delay", "0", "--dir", str(self._root)]
        return ServerProcess(self._root / f"log{self._starts}", self.port, *words, *more)

    def restart(self) -> None:
        """Kill it and start it again with its data."""
        self.process.close()
        self.process = self._start()


@pytest.fixture
def primary() -> Iterator[Primary]:
    with tempfile.TemporaryDirectory(prefix="yj-p-") as root:
        server = Primary(Path(root))
        yield server
        server.process.close()


@pytest.fixture
async def way(primary: Primary) -> AsyncIterator[Way]:
    async with Way(primary.port) as way:
        yield way


@contextlib.asynccontextmanager
async def machine(way: Way, **settings: object) -> AsyncIterator[Machine]:
    async with Machine(f"redis://127.0.0.1:{way.port}/0", **settings) as made:  # type: ignore[arg-type]
        yield made


async def test_workers_read_from_the_replica(way: Way, primary: Primary) -> None:
    async with machine(way) as lab:
        await lab.reads(replica=True)
        async with lab.stream():
            await lab.goes_on()
        await lab.assert_nothing_lost()
        names = [client["name"] for client in primary.process.client.client_list()]
        assert not [name for name in names if name.startswith("yujian-read")]
        assert all(worker.backplane.available for worker in lab.workers)
        assert all(worker.reader.reconnects == 0 for worker in lab.workers)


@pytest.mark.parametrize("how", ["kill", "stop"])
async def test_a_replica_that_ends_costs_nothing(way: Way, how: str) -> None:
    async with machine(way) as lab:
        await lab.reads(replica=True)
        async with lab.stream():
            await lab.goes_on()
            getattr(lab, how)()
            await lab.reads(replica=False)
            await lab.goes_on()
            if how == "stop":
                lab.cont()
            await lab.reads(replica=True)
            await lab.goes_on()
        await lab.assert_nothing_lost()
        assert all(worker.backplane.errors.total() == 0 for worker in lab.workers)


async def test_a_replica_whose_link_is_cut_is_read_again_when_it_is_back(way: Way) -> None:
    async with machine(way) as lab:
        await lab.reads(replica=True)
        async with lab.stream():
            await lab.goes_on()
            way.refuses = True
            way.cut()
            await lab.reads(replica=False)
            await lab.goes_on()
            way.refuses = False
            await lab.reads(replica=True)
            await lab.goes_on()
        await lab.assert_nothing_lost()


async def test_a_replica_that_is_behind_is_not_read(way: Way) -> None:
    async with machine(way) as lab:
        await lab.reads(replica=True)
        async with lab.stream():
            await lab.goes_on()
            way.freeze()
            await lab.reads(replica=False)
            note = lab.notes.read()
            assert note is not None
            assert note.seconds_behind > 0
            assert note.bytes_behind > 0
            await lab.goes_on()
            way.thaw()
            await lab.reads(replica=True)
            await lab.goes_on()
        await lab.assert_nothing_lost()


async def test_a_frozen_link_is_given_up(way: Way) -> None:
    async with machine(way) as lab:
        await lab.reads(replica=True)
        async with lab.stream():
            way.freeze()
            links = way.links
            await until(lambda: way.links > links, "the replica connects anew", LONG)
            way.thaw()
            await lab.reads(replica=True)
        await lab.assert_nothing_lost()


async def test_a_full_resync_is_no_new_epoch(way: Way, primary: Primary) -> None:
    async with machine(way) as lab:
        await lab.reads(replica=True)
        async with lab.stream():
            await lab.goes_on()
            for _ in range(3):
                # Without its backlog the primary can only send everything.
                primary.process.client.config_set("repl-backlog-size", 16384)
                syncs = primary.process.client.info("stats")["sync_full"]  # type: ignore[index]
                way.refuses = True
                way.cut()
                await lab.goes_on(100)
                way.refuses = False
                await lab.reads(replica=True)
                assert primary.process.client.info("stats")["sync_full"] > syncs  # type: ignore[index]
        await lab.assert_nothing_lost()


async def test_a_primary_that_restarts_loses_nothing(way: Way, primary: Primary) -> None:
    async with machine(way) as lab:
        await lab.reads(replica=True)
        async with lab.stream():
            await lab.goes_on()
            primary.restart()
            await lab.goes_on()
            await lab.reads(replica=True)
            await lab.goes_on()
        await lab.assert_nothing_lost()


async def test_an_emptied_primary_is_a_new_epoch_once(way: Way, primary: Primary) -> None:
    async with machine(way) as lab:
        await lab.reads(replica=True)
        for number in range(1, 4):
            await lab.publish(number)
        await lab.assert_nothing_lost()
        primary.process.client.flushall()
        await lab.publish(4)
        await until(
            lambda: all(len(worker.bodies) == 4 for worker in lab.workers), "all have it", LONG
        )
        for worker in lab.workers:
            (gap,) = [gap for gap in worker.gaps if gap.type == "status"]
            assert gap.reason == "epoch"
            assert worker.bodies == lab.stored
        assert len({worker.reader.positions["status"] for worker in lab.workers}) == 1
        await lab.reads(replica=True)


async def test_the_leader_may_change(way: Way) -> None:
    async with machine(way) as lab:
        await lab.reads(replica=True)
        pid = lab.pid
        async with lab.stream():
            await lab.unlead()
            await lab.reads(replica=False)
            await lab.goes_on()
            lab.lead()
            await lab.reads(replica=True)
            await lab.goes_on()
        assert lab.pid == pid
        await lab.assert_nothing_lost()


async def test_a_password_is_used_and_not_shown(primary: Primary) -> None:
    primary.process.client.acl_setuser(
        "lab", enabled=True, passwords=["+s3cret-word"], keys=["*"], categories=["+@all"]
    )
    async with Machine(f"redis://lab:s3cret-word@127.0.0.1:{primary.port}/3") as lab:
        await lab.reads(replica=True)
        async with lab.stream():
            await lab.goes_on()
        await lab.assert_nothing_lost()
        assert "s3cret" not in Path(f"/proc/{lab.pid}/cmdline").read_text()


async def test_without_the_right_to_follow_the_primary_is_read(primary: Primary) -> None:
    primary.process.client.acl_setuser(
        "lab",
        enabled=True,
        passwords=["+word"],
        keys=["*"],
        categories=["+@all"],
        commands=["-psync"],
    )
    async with Machine(f"redis://lab:word@127.0.0.1:{primary.port}") as lab:
        async with lab.stream():
            await lab.goes_on()

            def says_why() -> bool:
                note = lab.notes.read()
                return note is not None and "not in sync" in note.words

            await until(says_why, "the note says why", LONG)
            assert not any(worker.route.is_read for worker in lab.workers)
            with lab.client() as client:
                await until(
                    lambda: client.info("replication")["master_link_status"] == "up",
                    "it is copied by SYNC, for which it has the right",
                    LONG,
                )
            await until(says_why, "the note still says why", LONG)
            primary.process.client.acl_setuser("lab", enabled=True, commands=["+psync"])
            await lab.reads(replica=True)
        await lab.assert_nothing_lost()


async def test_a_primary_that_is_too_large_is_not_copied(primary: Primary) -> None:
    async with Machine(f"redis://127.0.0.1:{primary.port}", memory=1000) as lab:
        await lab.publish(1)

        def says_why() -> bool:
            note = lab.notes.read()
            return note is not None and "may have here" in note.words

        await until(says_why, "the note says why", LONG)
        with lab.client() as client:
            assert client.role()[0] == "master"
            assert client.dbsize() == 0


async def test_a_primary_that_counts_its_replicas_is_not_followed(primary: Primary) -> None:
    """`min-replicas-to-write` is for replicas that can save a message."""
    async with Machine(f"redis://127.0.0.1:{primary.port}") as lab:
        await lab.reads(replica=True)
        primary.process.client.config_set("min-replicas-to-write", 1)
        await lab.reads(replica=False)
        with lab.client() as client:
            await until(lambda: client.role()[0] == "master", "it follows nothing", LONG)
        primary.process.client.config_set("min-replicas-to-write", 0)
        await lab.reads(replica=True)


@pytest.mark.parametrize("wait", [0, 1])
async def test_with_sentinels_it_follows_a_replica_and_a_failover(wait: int) -> None:
    with Sentinels() as sentinels:
        async with Machine(sentinels.url, backplane_wait=wait) as lab:
            await lab.reads(replica=True)
            with lab.client() as client:
                followed = client.info("replication")["master_port"]  # type: ignore[index]
            assert followed in [one.port for one in sentinels.replicas()]
            async with lab.stream():
                await lab.goes_on()
                old = sentinels.primary()
                old.kill()
                await asyncio.to_thread(sentinels.fail_over_once)
                await lab.goes_on()
                await lab.reads(replica=True)
                await lab.goes_on()
            if wait:
                await lab.assert_nothing_lost()
            assert sentinels.primary() is not old
            with lab.client() as client:
                followed = client.info("replication")["master_port"]  # type: ignore[index]
            assert followed != sentinels.primary().port
            for one in sentinels.sentinels:
                names = one.client.execute_command("SENTINEL", "REPLICAS", "lab")
                assert ":0" not in str(names)


async def test_a_replica_of_a_machine_confirms_nothing(primary: Primary) -> None:
    """BACKPLANE_WAIT counts replicas that can save a message."""
    url = f"redis://127.0.0.1:{primary.port}"
    async with Machine(url) as lab:  # follows the primary itself: it waits for none
        await lab.reads(replica=True)
        async with Machine(url, workers=0, backplane_wait=1) as other:
            deadline = asyncio.get_running_loop().time() + 1.5
            with pytest.raises(BackplaneUnavailable, match="0 of 1 replicas have confirmed"):
                await other._publisher.store([draft()], deadline)
