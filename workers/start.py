"""Starts the service; where one with the same DATA_DIR runs, beside it, as its successor.

    python -m workers.start             for containers: the caller ends the old one
    python -m workers.start --replace   ends the old one when every new worker serves

A new master that is no child of the old one gets the listening sockets from a worker, and gives
them to gunicorn as systemd would. From then on it is as after USR2: both masters belong to one
service, new clients reach workers of both, and when the old one gets TERM its workers hand
over what they serve. A successor that cannot start leaves the old one as it was.

Both must see the same DATA_DIR, /dev/shm and process ids, and be of the same user.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from app import config
from app.command_line import make_parser
from app.config import Settings
from app.errors import SettingsError
from workers import logs
from workers.handoff.channel import LISTENERS, MessageSocket, close_all
from workers.reload.command import NotRunning, find_master
from workers.reload.watch import Failed, Watch, end_one, find_second_master
from workers.shared import paths
from workers.shared.listening import address_of, stands_for
from workers.shared.processes import SUCCESSOR
from workers.shared.slots import READY, SlotTable

logger = logging.getLogger(__name__)

FIRST_FD = 3
"""Where gunicorn looks for the sockets (sd_listen_fds(3))."""
_MOST = 16


@dataclass(frozen=True)
class ListeningSockets:
    """The listening sockets of a service that runs.

    The descriptors are the caller's.
    """

    master: int
    descriptors: list[int]


def ask(settings: Settings) -> ListeningSockets | None:
    """Get the listening sockets of the service that runs; None when none does.

    Raises:
        Failed: one runs, but no worker of it gives them.
    """
    try:
        master = find_master(settings.data_dir)
    except NotRunning:
        return None
    second = find_second_master(paths.pid_files(settings.data_dir).second, master)
    if second is not None:
        raise Failed(
            f"master {second} is taking the place of master {master} already; {end_one(master, second)}"
        )
    table = SlotTable(paths.slots_file(settings.data_dir), settings.max_total_connections)
    table.sweep()
    reason = "no worker of it serves"
    for row in table.rows():
        if row.state != READY:
            continue
        try:
            return ListeningSockets(
                master, asyncio.run(_ask_worker(paths.successor_socket(settings.data_dir, row.pid)))
            )
        except (OSError, EOFError, ValueError) as error:
            reason = f"worker {row.pid}: {error}"
    raise Failed(f"master {master} runs, but its listening sockets cannot be obtained: {reason}")


async def _ask_worker(path: Path) -> list[int]:
    """Ask one worker.

    Raises:
        OSError, EOFError, ValueError: it does not answer, or with nothing.
    """
    with closing(MessageSocket.connect(path)) as connection:
        await connection.send({"kind": LISTENERS, "states": []})
        _, descriptors = await connection.receive()
    if not descriptors:
        raise ValueError("it has no listening socket")
    return descriptors


def take(received: ListeningSockets, bind: str) -> list[int]:
    """The descriptors to listen on; none when BIND has changed, for then it listens anew."""
    kept, addresses = [], []
    for descriptor in received.descriptors:
        listener = socket.socket(fileno=descriptor)
        addresses.append(address_of(listener))
        kept.append(listener.detach())
    if stands_for(bind, addresses):
        return kept
    logger.warning("BIND is %s, no longer %s: it is listened on anew", bind, ", ".join(addresses))
    close_all(kept)
    return []


def place(descriptors: Sequence[int], environ: Mapping[str, str]) -> dict[str, str]:
    """Put listening sockets where gunicorn looks for them; the environment that says so."""
    # Out of the way first: one of them may be where another is to go.
    spare = [os.dup(descriptor) for descriptor in descriptors]
    high = [_above(descriptor, FIRST_FD + _MOST) for descriptor in spare]
    close_all(descriptors)
    for number, descriptor in enumerate(high, FIRST_FD):
        os.dup2(descriptor, number, inheritable=True)
    close_all(high)
    return {**environ, "LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(high))}


def _above(descriptor: int, least: int) -> int:
    """The same file under a number that is not below `least`; closes the old one."""
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, least)
    os.close(descriptor)
    return moved


def end_predecessor(watch: Watch, successor: int) -> int:
    """In a process of its own: end the old master when the new one serves; the exit code."""
    try:
        watch.await_successor(successor)
    except Failed as error:
        logger.error("The old service goes on: %s", error)
        return 1
    return 0


def main(arguments: Sequence[str] | None = None) -> None:
    """Become gunicorn.

    Raises:
        SystemExit: it cannot start; bears the line that says why.
    """
    parser = make_parser("python -m workers.start", __doc__)
    parser.add_argument("--replace", action="store_true", help="end the old service")
    options = parser.parse_args(arguments)
    os.chdir(paths.home())
    try:
        settings = config.load(os.environ, Path(".env"))
        logs.set_up(settings.log_level.upper(), settings.log_format)
        received = ask(settings)
    except (SettingsError, Failed, PermissionError) as error:
        raise logs.ending(str(error)) from None
    environ = dict(os.environ)
    if received is not None:
        environ[SUCCESSOR] = str(received.master)
        descriptors = take(received, settings.bind)
        if options.replace:
            _start_watch(settings, received.master, descriptors)
        if descriptors:
            environ = place(descriptors, environ)
    if note := os.environ.get("MASTER_PID_FILE"):
        Path(note).write_text(f"{os.getpid()}\n")
    command = [sys.executable, "-m", "gunicorn", "-c", str(paths.configuration())]
    os.execve(sys.executable, command, environ)  # noqa: S606


def _start_watch(settings: Settings, old: int, descriptors: Sequence[int]) -> None:
    """Start the process that ends the old master; it is no child of the new one."""
    watch = Watch(settings.data_dir, old, config.public(settings))
    successor = os.getpid()
    between = os.fork()
    if between:
        os.waitpid(between, 0)
        return
    code = 1
    try:
        if os.fork() == 0:
            close_all(descriptors)
            code = end_predecessor(watch, successor)
        else:
            code = 0
    finally:
        os._exit(code)


if __name__ == "__main__":
    main()
