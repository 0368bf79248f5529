"""What others may have put where the service keeps its files: refused in one line at the start."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.service import Service
from workers.shared import paths


def _link(path: Path) -> None:
    path.symlink_to(path.parent)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


_AT = {
    "a lock": lambda data: data / "masters.lock",
    "the lock of Valkey": lambda data: data / "valkey" / "lock",
    "the pid file": lambda data: data / "gunicorn.pid",
    "the slot table": paths.slots_file,
}
_DIRECTORY_AT = {
    "the sockets": lambda data: data / "run",
    "Valkey": lambda data: data / "valkey",
    "the metrics": paths.metrics_dir,
}


@pytest.mark.parametrize("plant", [Path.mkdir, _link, os.mkfifo, _socket])
@pytest.mark.parametrize("where", _AT)
def test_in_the_place_of_a_file(where: str, plant: Callable[[Path], object]) -> None:
    _refused(_AT[where], plant, "not a plain file")


@pytest.mark.parametrize("plant", [Path.touch, _link, os.mkfifo, _socket])
@pytest.mark.parametrize("where", _DIRECTORY_AT)
def test_in_the_place_of_a_directory(where: str, plant: Callable[[Path], object]) -> None:
    _refused(_DIRECTORY_AT[where], plant, "not a directory")


def _refused(where: Callable[[Path], Path], plant: Callable[[Path], object], says: str) -> None:
    service = Service()
    path = where(service.data_dir)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        plant(path)
        process = service.spawn()
        assert process.wait(20) == 1
        (line,) = service.log.splitlines()
        assert says in line
        assert str(path) in line
    finally:
        if not path.is_dir() or path.is_symlink():
            path.unlink()  # a pipe would stop what removes the rest
        service.destroy()


async def test_nothing_is_open_to_other_users() -> None:
    """But the pid file, which tells a number that `ps` tells as well."""
    async with Service() as service:
        await service.publish("status", "something")
        assert (await service.get("/metrics")).status == 200
        shared = [paths.slots_file(service.data_dir), paths.metrics_dir(service.data_dir)]
        found = [*service.data_dir.iterdir(), *service.data_dir.glob("*/*"), *shared]
        found += shared[1].iterdir()
        inside_private = {"run", "valkey", shared[1].name}
        for path in found:
            mode = stat.S_IMODE(path.lstat().st_mode)
            if path.parent.name in inside_private or path.name == "gunicorn.pid":
                continue
            assert not mode & 0o077, f"{path}: {mode:o}"
