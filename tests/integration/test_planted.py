"""What others may have put where the service keeps its files: refused in one line at the start."""

from __future__ import annotations

import os
import shutil
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.service import Service
from workers import master
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
def test_in_the_place_of_a_file(
    where: str,
    plant: Callable[[Path], object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "not a plain file" in _refusal(_AT[where], plant, tmp_path, monkeypatch)


@pytest.mark.parametrize("plant", [Path.touch, _link, os.mkfifo, _socket])
@pytest.mark.parametrize("where", _DIRECTORY_AT)
def test_in_the_place_of_a_directory(
    where: str,
    plant: Callable[[Path], object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "not a directory" in _refusal(_DIRECTORY_AT[where], plant, tmp_path, monkeypatch)


def _refusal(
    where: Callable[[Path], Path],
    plant: Callable[[Path], object],
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    """Why a master ends there; its settings are not read anew for each."""
    data_dir = home / "data"
    settings = {
        "data_dir": str(data_dir),
        "backplane_url": "",
        "bind": "127.0.0.1:0",
        "max_total_connections": 10,
    }
    monkeypatch.setattr(master, "_read", lambda _: (settings, {}))
    with _planted(where(data_dir), plant) as path:
        with pytest.raises(PermissionError) as raised:
            master.Master(home)
        (line,) = str(raised.value).splitlines()
        assert str(path) in line
    shutil.rmtree(paths.metrics_dir(data_dir), ignore_errors=True)
    paths.slots_file(data_dir).unlink(missing_ok=True)
    return line


@contextmanager
def _planted(path: Path, plant: Callable[[Path], object]) -> Iterator[Path]:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        plant(path)
        yield path
    finally:
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()  # a pipe would stop what removes the rest


@pytest.mark.parametrize(
    ("where", "says"),
    [(_AT["the slot table"], "not a plain file"), (_DIRECTORY_AT["Valkey"], "not a directory")],
)
def test_it_is_said_in_one_line(where: Callable[[Path], Path], says: str) -> None:
    service = Service()
    with _planted(where(service.data_dir), os.mkfifo) as path:
        process = service.spawn()
        assert process.wait(20) == 1
        (line,) = service.log.splitlines()
        assert says in line
        assert str(path) in line
    service.destroy()


def test_a_data_dir_that_cannot_be_made_is_said_in_one_line() -> None:
    service = Service(DATA_DIR="/proc/yujian")
    process = service.spawn()
    assert process.wait(20) == 1
    (line,) = service.log.splitlines()
    assert "/proc/yujian" in line
    service.destroy()


def test_an_address_that_is_taken_is_said_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bind = f"127.0.0.1:{taken.getsockname()[1]}"
        service = Service(BIND=bind)
        process = service.spawn()
        assert process.wait(30) == 1
        (line,) = (line for line in service.log.splitlines() if " INFO " not in line)
        assert f"BIND: cannot listen on {bind}: Address already in use" in line
        assert not paths.pid_files(service.data_dir).first.exists()
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
