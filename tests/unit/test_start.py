"""What `python -m workers.start` does before it becomes gunicorn."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from app import config
from workers import start
from workers.shared import paths


def listening(family: socket.AddressFamily, address: object) -> socket.socket:
    listener = socket.socket(family)
    listener.bind(address)
    listener.listen()
    return listener


def test_addresses_as_bind_says_them(tmp_path: Path) -> None:
    with listening(socket.AF_INET, ("127.0.0.1", 0)) as four:
        assert start.address_of(four) == f"127.0.0.1:{four.getsockname()[1]}"
    with listening(socket.AF_INET6, ("::1", 0)) as six:
        assert start.address_of(six) == f"[::1]:{six.getsockname()[1]}"
    path = str(tmp_path / "s")
    with listening(socket.AF_UNIX, path) as local:
        assert start.address_of(local) == f"unix:{path}"


@pytest.mark.parametrize(
    ("host", "kept"), [("127.0.0.1", True), ("localhost", True), ("0.0.0.0", False)]
)
def test_sockets_are_kept_if_bind_names_them(host: str, *, kept: bool) -> None:
    with listening(socket.AF_INET, ("127.0.0.1", 0)) as listener:
        port, descriptor = listener.getsockname()[1], os.dup(listener.fileno())
        taken = start.take(start.Received(1, [descriptor]), f"{host}:{port}")
        assert bool(taken) is kept
        for one in taken:
            os.close(one)


def test_sockets_where_gunicorn_looks_for_them() -> None:
    """In a process of its own, since the numbers are in use here; whatever they were before."""
    code = """
import os, socket
from workers import start
listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
ports = [one.getsockname()[1] for one in listeners]
given = [one.detach() for one in listeners]
environ = start.place([given[1], given[0], given[2]], {"A": "b"})
assert environ == {"A": "b", "LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "3"}, environ
found = [socket.socket(fileno=3 + n) for n in range(3)]
assert [one.getsockname()[1] for one in found] == [ports[1], ports[0], ports[2]]
assert all(os.get_inheritable(one.fileno()) for one in found)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_service_to_follow(tmp_path: Path) -> None:
    settings = config.load({"DATA_DIR": str(tmp_path)}, None)
    assert start.ask(settings) is None


def test_a_wrong_setting_ends_the_start_with_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "workers.start"],
        env={**os.environ, "WORKERS": "none"},
        cwd=paths.home(),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1
    assert "WORKERS" in done.stderr
