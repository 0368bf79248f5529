"""What is said of an address that cannot be listened on."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from workers.shared.listening import fault_of, stands_for


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_a_port(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host.strip("[]"), 0), family=family) as taken:
        bind = f"{host}:{taken.getsockname()[1]}"
        fault = fault_of(bind)
        assert fault.startswith(f"BIND: cannot listen on {bind}: Address already in use: ")
    assert fault_of(bind) == ""


@pytest.mark.parametrize(
    ("bind", "says"),
    [
        ("192.0.2.1:3001", "an address of this machine"),
        ("unix:/proc/yujian/socket", "No such file or directory"),
        (f"unix:/tmp/{'a' * 120}", "AF_UNIX path too long"),
    ],
)
def test_an_address_that_cannot_be_had(bind: str, says: str) -> None:
    fault = fault_of(bind)
    assert bind in fault
    assert says in fault
    assert "\n" not in fault


def test_a_path(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    assert fault_of(f"unix:{path}") == ""
    assert list(tmp_path.iterdir()) == []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        assert "Address already in use" in fault_of(f"unix:{path}")
    assert fault_of(f"unix:{path}") == "", "nothing listens there any more"
    path.unlink()
    path.write_text("a file")
    assert "something that is no socket" in fault_of(f"unix:{path}")


def test_another_host_of_the_own_port_needs_a_restart() -> None:
    with socket.create_server(("127.0.0.1", 0)) as own:
        port = own.getsockname()[1]
        fault = fault_of(f"0.0.0.0:{port}", f"127.0.0.1:{port}")
        assert f"the service listens on 127.0.0.1:{port} until it ends: restart it" in fault
        assert "ss -ltnp" in fault_of(f"127.0.0.1:{port}", "127.0.0.1:1")


@pytest.mark.parametrize(
    ("bind", "address", "same"),
    [
        ("127.0.0.1:1", "127.0.0.1:1", True),
        ("localhost:1", "127.0.0.1:1", True),
        ("127.0.0.1:0", "127.0.0.1:1", True),
        ("[::1]:1", "[::1]:1", True),
        ("unix:/a", "unix:/a", True),
        ("127.0.0.1:1", "127.0.0.1:2", False),
        ("0.0.0.0:1", "127.0.0.1:1", False),
        ("127.0.0.1:0", "unix:/a", False),
        ("unix:/a", "127.0.0.1:1", False),
        ("unix:/a", "unix:/b", False),
    ],
)
def test_what_bind_stands_for(bind: str, address: str, *, same: bool) -> None:
    assert stands_for(bind, [address]) is same
