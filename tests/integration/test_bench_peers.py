"""`make bench-peers`: its load client counts what arrives, and the page says what was measured."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks import growth
from benchmarks.peers.__main__ import main
from benchmarks.peers.field import FIELD, Contender
from benchmarks.peers.load import Load
from benchmarks.procs import BenchmarkError, Server

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.needs("cc"),
    pytest.mark.long,
]


def contender(name: str) -> Contender:
    return next(one for one in FIELD if one.name == name)


@pytest.mark.parametrize("name", ["service, JSON", "service, Socket.IO"])
def test_the_load_client_counts_each_message(name: str) -> None:
    one = contender(name)
    with one.make(1) as server:
        with Load(server, one.wire, one.path, server.port, one.publish_path) as load:
            assert load.connect(20) | {"seconds": 0} == {
                "ready": 20,
                "new": 20,
                "lost": 0,
                "seconds": 0,
            }
            load.publish(1)  # subscriptions that begin after the connect flow now
            alone = load.publish(5)
            assert (alone["received"], alone["expected"]) == (100, 100)
            batch = load.publish(3, size=10, filling=500, rate=-1)
            assert (batch["received"], batch["expected"]) == (600, 600)
            assert batch["bytes"] > 600 * 500
            for answer in (alone, batch):
                assert {answer[key] for key in ("missing", "repeated", "failed", "lost")} == {0}
            with pytest.raises(BenchmarkError, match="not a command"):
                load("nonsense")
        refused = Load(server, "raw", "/nowhere", server.port, one.publish_path)
        with refused, pytest.raises(BenchmarkError, match="'lost': 3"):
            refused.connect(3)


def test_the_page_and_its_plots(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = contender("bare loop")
    gone = Contender("Gone", bare.make, bare.version, needs="no-such-program", install="fetch")
    monkeypatch.setattr("benchmarks.peers.__main__.FIELD", [*FIELD, gone])
    monkeypatch.setattr("benchmarks.peers.measure.CONNECTS", 30)  # in two waves
    arguments = ["--clients", "20", "--workers", "1", "--rounds", "1", "--seconds", "0.05"]
    arguments += ["--only", "service, JSON", "--only", "bare loop", "--only", "Gone"]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "peers.json").read_text())
    assert [row["name"] for row in result["rows"]] == ["service, JSON", "bare loop"]
    assert all(row["capacity"] > 0 and row["problems"] == [] for row in result["rows"])
    assert result["missing"] == {"Gone": "fetch"}
    page = (tmp_path / "README.md").read_text()
    assert page in capsys.readouterr().out
    assert "Missing on this machine: Gone" in page
    for plot in tmp_path.glob("*.svg"):
        assert f"({plot.name})" in page
    assert len(list(tmp_path.glob("*.svg"))) == 5
    assert main(["--page", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "README.md").read_text() == page


@contextlib.contextmanager
def listening(port: int, serve: Callable[[socket.socket], object]) -> Iterator[None]:
    """Each connection to a port is served by a thread, until it or the test ends."""
    taken: list[socket.socket] = []

    def one(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            serve(connection)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                taken.append(listener.accept()[0])
                threading.Thread(target=one, args=(taken[-1],), daemon=True).start()

    listener = socket.create_server(("127.0.0.1", port))
    threading.Thread(target=accept, daemon=True).start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        for each in (listener, *taken):
            each.close()


@pytest.fixture
def server() -> Iterator[Server]:
    """A port, on which the test itself serves."""
    server = Server([], {})
    yield server
    server.stop()


def upgrade(connection: socket.socket) -> None:
    connection.recv(4096)
    connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")


def test_nats_may_send_a_ping_in_the_frame_of_a_message(server: Server) -> None:
    subscriber: list[socket.socket] = []

    def say(text: bytes) -> None:
        subscriber[0].sendall(b"\x82\x7e" + len(text).to_bytes(2, "big") + text)

    def subscribe(connection: socket.socket) -> None:
        upgrade(connection)
        subscriber.append(connection)
        assert b"SUB status 1\r\nPING\r\n" in connection.recv(4096)
        say(b"PONG\r\n")
        while connection.recv(4096):
            pass

    def take(connection: socket.socket) -> None:
        connection.sendall(b"INFO {}\r\n")  # that is not read makes an early close a reset
        time.sleep(0.2)
        text = b""
        while got := connection.recv(4096):
            text += got
            for message in re.findall(rb"PUB status (\d+\r\n.*\r\n)", text):
                say(b"PING\r\nMSG status 1 " + message)
            if b"PING" in text:
                connection.sendall(b"PONG\r\n")
            text = b""

    with (
        listening(server.port, subscribe),
        listening(server.port + 1, take),
        Load(server, "nats", "/", server.port + 1, "") as load,
    ):
        load.connect(1)
        for _ in range(2):
            answer = load.publish(2, limit=5)
            assert (answer["received"], answer["missing"], answer["failed"]) == (2, 0, 0)
            assert not answer["cut"]


def test_what_is_never_answered_is_cut(server: Server) -> None:
    def serve(connection: socket.socket) -> None:
        upgrade(connection)
        while connection.recv(4096):
            pass

    with (
        listening(server.port, serve),
        listening(server.port + 1, lambda connection: connection.recv(1)),
        Load(server, "raw", "/", server.port + 1, "/") as load,
    ):
        load.connect(1)
        for rate in (0, -1, 2):
            answer = load.publish(3, rate=rate, limit=0.2)
            assert (answer["cut"], answer["received"], answer["expected"]) == (True, 0, 3)
    with (
        listening(server.port, lambda connection: connection.recv(1)),
        Load(server, "raw", "/", server.port, "/") as load,
        pytest.raises(BenchmarkError, match="no answer within"),
    ):
        load("connect 1", limit=0.3)


def test_growth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    title, _, run = growth.AXES["sets"]
    monkeypatch.setitem(growth.AXES, "sets", (title, (2,), run))
    monkeypatch.setattr(growth, "CLIENTS", 1100)
    assert growth.main(["--only", "sets", "--seconds", "0.05", "--out", str(tmp_path)]) == 0
    (row,) = json.loads((tmp_path / "growth.json").read_text())["sets"]
    assert row["value"] == 2
    assert min(row["alone_us"], row["flush_us"], row["connect_us"]) > 0
    page = (tmp_path / "growth.md").read_text()
    assert f"## By {title}" in page
    assert "(growth-sets.svg)" in page
    assert (tmp_path / "growth-sets.svg").stat().st_size > 1000


def test_growth_over_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    title, _, run = growth.AXES["machines"]
    monkeypatch.setitem(growth.AXES, "machines", (title, (2,), run))
    monkeypatch.setattr(growth, "CLIENTS", 40)
    assert growth.main(["--only", "machines", "--seconds", "0.05", "--out", str(tmp_path)]) == 0
    (row,) = json.loads((tmp_path / "growth.json").read_text())["machines"]
    assert min(row["alone_us"], row["flush_us"], row["connect_us"]) > 0


def test_clients_that_stall_are_not_counted() -> None:
    one = contender("service, JSON")
    with (
        one.make(1) as server,
        Load(server, one.wire, one.path, server.port, one.publish_path) as load,
    ):
        load.connect(10)
        load.connect(10, "/ws/realtime?types=status,stats")
        load.publish(1)
        load.stall(15)
        answer = load.publish(3, size=2)
        assert (answer["received"], answer["expected"], answer["missing"]) == (30, 30, 0)
