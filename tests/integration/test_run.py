"""Start, stop, and what stays between: processes, files, history."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import signal
import stat
import subprocess
import sys
import tempfile
import termios
from pathlib import Path
from typing import Any

import pytest

from tests.support import REPO
from tests.support.envelopes import walk
from tests.support.plain import PlainClient, spread
from tests.support.service import Service
from tests.support.sioclient import sio_clients
from tests.support.waiting import until


@pytest.fixture
def data_dir() -> Path:
    return Path(tempfile.mkdtemp(prefix="yj-data-")) / "data"


def test_ctrl_c_stops_everything() -> None:
    """SIGINT to the process group, as a terminal does; Valkey is in no terminal's way."""
    service = Service().start()
    assert service.process is not None
    assert service.valkey_pid() in {process.pid for process in service.processes()}
    assert len(service.worker_pids()) == 2
    os.killpg(service.process.pid, signal.SIGINT)
    assert service.process.wait(30) == 0
    service.stop()


def test_ctrl_c_while_starting() -> None:
    service = Service()
    process = service.spawn()
    try:
        # At the first sign of life of gunicorn itself, long before the workers serve.
        from tests.support.waiting import until_now

        until_now(service.worker_pids, "the first worker forked")
        os.killpg(process.pid, signal.SIGINT)
        process.wait(30)
        service.assert_nothing_left()
    finally:
        service.destroy()


class InTerminal(Service):
    """A service in a terminal of its own, as `make run` is; `nohup`: it ignores the terminal's end."""

    def __init__(self, *, nohup: bool = False, **settings: Any) -> None:
        super().__init__(**settings)
        self.nohup = nohup

    def spawn(self) -> subprocess.Popen[bytes]:
        ours, theirs = pty.openpty()
        self.terminal = ours

        def own_the_terminal() -> None:
            fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)
            os.tcsetpgrp(theirs, os.getpid())
            if self.nohup:
                signal.signal(signal.SIGHUP, signal.SIG_IGN)

        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gunicorn", "-c", "gunicorn.conf.py"],
                cwd=REPO,
                env=self.environ,
                stdin=theirs,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=own_the_terminal,  # noqa: PLW1509
            )
        os.close(theirs)
        Service.running.append(self)
        return self.process


async def test_a_terminal_that_is_closed_ends_the_service() -> None:
    service = InTerminal(DRAIN_SECONDS=0)
    async with service:
        client = await PlainClient.open(service)
        assert service.process is not None
        os.close(service.terminal)
        assert await client.wait_closed(40) == 1012
        assert await asyncio.to_thread(service.process.wait, 40) == 0
        assert "The terminal was closed" in service.log


async def test_a_reload_in_a_terminal_is_no_end() -> None:
    async with InTerminal(WORKERS=1) as service:
        await service.hup()
        assert (await service.publish())["seq"] == 1
        os.close(service.terminal)
        assert service.process is not None
        assert await asyncio.to_thread(service.process.wait, 40) == 0


async def test_with_nohup_it_outlives_its_terminal() -> None:
    async with InTerminal(nohup=True, WORKERS=1) as service:
        os.close(service.terminal)
        await service.hup()
        assert (await service.publish())["seq"] == 1


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 1012), (signal.SIGINT, 1001)])
async def test_clients_get_a_close_code_at_the_stop(signum: signal.Signals, code: int) -> None:
    """TERM drains, with a hint when to come back; INT stops at once. No close code is final."""
    service = Service()
    async with service:
        clients = await spread(service)
        async with sio_clients(service) as [sio]:
            await until(lambda: bool(sio.named("connected")), "connected")
            assert service.process is not None
            service.process.send_signal(signum)
            for client in clients:
                assert await client.wait_closed(40) == code
                if code == 1012:
                    hint = json.loads(client.socket.close_reason or "")["retryAfter"]
                    assert 0 < hint <= 10_000
            await until(lambda: bool(sio.reasons), "the end of the Socket.IO connection", 40)
            assert sio.reasons != ["server disconnect"]
            # A second signal while Python ends would be its exit code.
            await asyncio.to_thread(service.process.wait, 40)


async def test_history_survives_a_restart(data_dir: Path) -> None:
    async with Service(data_dir=data_dir) as service:
        for number in range(30):
            sent = await service.publish("health", "kept", {"n": number})
        before = await service.full_history("health")
    async with Service(data_dir=data_dir) as service:
        assert await service.full_history("health") == before
        client = await PlainClient.open(service, types="")
        recover = {"health": {"epoch": sent["epoch"], "seq": sent["seq"] - 10}}
        answer = await client.request("subscribe", {"types": ["health"], "recover": recover})
        assert answer["data"]["types"]["health"]["recovered"] is True
        again = await service.publish("health", "kept", {"n": 30})
        assert (again["epoch"], again["seq"]) == (sent["epoch"], sent["seq"] + 1)
        await client.wait_seq("health", again["seq"])
        assert walk(client.received, "health").seqs == list(
            range(sent["seq"] - 9, again["seq"] + 1)
        )
        await client.close()


@pytest.mark.timeout(120)
async def test_kill_9_of_everything_loses_nothing_acknowledged(data_dir: Path) -> None:
    service = Service(data_dir=data_dir)
    try:
        service.start()
        sent = await service.publish_all(
            {"type": "status", "event": "kept", "data": n} for n in range(500)
        )
        for process in service.processes():
            process.kill()
    finally:
        service.destroy()
    async with Service(data_dir=data_dir) as again:
        kept = await again.full_history("status")
        assert [one["seq"] for one in kept] == [one["seq"] for one in sent]
        assert kept[-1]["epoch"] == sent[-1]["epoch"]
        assert await again.total_connections() == 0


@pytest.mark.timeout(120)
async def test_kill_9_of_the_master_leaves_nothing_running() -> None:
    """Workers see that their master is gone, leave, and the last one stops Valkey."""
    service = Service(allow_traceback=True)
    try:
        service.start()
        assert service.process is not None
        service.process.kill()
        service.process.wait()
        await until(lambda: not service.processes(), "workers and Valkey gone", 60)
    finally:
        service.destroy()


async def test_two_services_side_by_side() -> None:
    """Other data directory, other port: nothing is shared, nothing collides."""
    async with Service(WORKERS=1) as one, Service(WORKERS=1) as two:
        assert one.valkey_pid() != two.valkey_pid()
        assert (await one.publish())["seq"] == 1
        assert (await two.publish())["seq"] == 1
        client = await PlainClient.open(one)
        await one.wait_connections(1)
        assert await two.total_connections() == 0
        await client.close()


async def test_files_are_private() -> None:
    async with Service(WORKERS=1) as service:
        path = Path(service.valkey_socket())
        modes = [stat.S_IMODE(one.stat().st_mode) for one in (path, path.parent)]
        assert modes == [0o700, 0o700]


@pytest.mark.timeout(150)
async def test_reload_serves_with_new_workers() -> None:
    async with Service() as service:
        first = await service.publish("status", "before")
        clients = await spread(service, types="status")
        await asyncio.gather(*(client.barrier() for client in clients))
        await service.hup()
        second = await service.publish("status", "after")
        assert (second["epoch"], second["seq"]) == (first["epoch"], first["seq"] + 1)
        client = await PlainClient.open(service, types="status")
        await client.barrier()
        third = await service.publish("status", "again")
        await client.wait_seq("status", third["seq"])
        await client.close()
        for old in clients:  # handed over to new workers: nothing was missed
            await old.wait_seq("status", third["seq"])
            story = walk(old.received, "status")
            assert not story.gaps
            assert story.seqs[-2:] == [second["seq"], third["seq"]]
            await old.close()
        assert len(service._valkey_candidates()) == 1
