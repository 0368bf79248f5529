"""What `python -m workers.start` does before it becomes gunicorn."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from app import config
from workers import start
from workers.shared.listening import address_of


def listening(family: socket.AddressFamily, address: Any) -> socket.socket:
    listener = socket.socket(family)
    listener.bind(address)
    listener.listen()
    return listener


def test_addresses_as_bind_says_them(tmp_path: Path) -> None:
    with listening(socket.AF_INET, ("127.0.0.1", 0)) as four:
        assert address_of(four) == f"127.0.0.1:{four.getsockname()[1]}"
    with listening(socket.AF_INET6, ("::1", 0)) as six:
        assert address_of(six) == f"[::1]:{six.getsockname()[1]}"
    path = str(tmp_path / "s")
    with listening(socket.AF_UNIX, path) as local:
        assert address_of(local) == f"unix:{path}"


@pytest.mark.parametrize(
    ("host", "kept"), [("127.0.0.1", True), ("localhost", True), ("0.0.0.0", False)]
)
def test_sockets_are_kept_if_bind_names_them(host: str, *, kept: bool) -> None:
    with listening(socket.AF_INET, ("127.0.0.1", 0)) as listener:
        port, descriptor = listener.getsockname()[1], os.dup(listener.fileno())
        taken = start.take(start.ListeningSockets(1, [descriptor]), f"{host}:{port}")
        assert bool(taken) is kept
        for one in taken:
            os.close(one)


def test_no_service_to_follow(tmp_path: Path) -> None:
    settings = config.load({"DATA_DIR": str(tmp_path)}, None)
    assert start.ask(settings) is None
