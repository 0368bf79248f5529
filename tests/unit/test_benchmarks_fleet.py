"""The clients of the reload benchmarks: they must come back, say where they were, and find holes."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from benchmarks.fleet import Fleet
from benchmarks.peers.wire import text_frame
from benchmarks.reloads import bucket_percentiles
from benchmarks.scan import Scanner, frame_end

_UPGRADED = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"
_CONNECTED = text_frame({"event": "connected", "data": {}})


def _event(name: str, argument: object) -> bytes:
    text = b"42" + json.dumps([name, argument], separators=(",", ":")).encode()
    return _frame(text)


def _frame(text: bytes) -> bytes:
    assert len(text) < 65536
    if len(text) < 126:
        return bytes((0x81, len(text))) + text
    return b"\x81\x7e" + len(text).to_bytes(2, "big") + text


def _message(seq: int) -> dict[str, Any]:
    return {"event": "status_update", "data": {}, "seq": seq, "epoch": "e1"}


class _Peer:
    """A server that a test plays by hand, for one client at a time."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(5)
        self.port = self._listener.getsockname()[1]
        self.socket: socket.socket

    def accept(self) -> str:
        """The path that the next connection asks for."""
        self.socket, _ = self._listener.accept()
        self.socket.settimeout(5)
        request = b""
        while b"\r\n\r\n" not in request:
            request += self.socket.recv(4096)
        return request.split(b" ", 2)[1].decode()

    def read(self) -> bytes:
        """The payload of the next frame, which is masked with zeroes."""
        head = self.socket.recv(2, socket.MSG_WAITALL)
        size = head[1] & 0x7F
        if size == 126:
            size = int.from_bytes(self.socket.recv(2, socket.MSG_WAITALL), "big")
        assert self.socket.recv(4, socket.MSG_WAITALL) == bytes(4)
        return self.socket.recv(size, socket.MSG_WAITALL)

    def close(self) -> None:
        self._listener.close()
        self.socket.close()


class _Driver:
    """A fleet in a thread, and its answers."""

    def __init__(self) -> None:
        self._reads, self._writes = os.pipe()
        self.fleet = Fleet(self._reads)
        self._answers: list[Any] = []
        self._answered = threading.Condition()
        self._thread = threading.Thread(target=self.fleet.run, args=(self._answer,), daemon=True)
        self._thread.start()

    def _answer(self, line: bytes) -> bool:
        if line == b"stop":
            return False
        name, arguments = json.loads(line)
        result = getattr(self.fleet, name)(*arguments)
        with self._answered:
            self._answers.append(result)
            self._answered.notify()
        return True

    def __call__(self, name: str, *arguments: object) -> dict[str, Any]:
        os.write(self._writes, json.dumps([name, arguments]).encode() + b"\n")
        with self._answered:
            assert self._answered.wait_for(lambda: self._answers, 5)
            result: dict[str, Any] = self._answers.pop()
            return result

    def until(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        for _ in range(5000):
            seen = self("report")
            if condition(seen):
                return seen
        raise AssertionError(seen)

    def close(self) -> None:
        os.write(self._writes, b"stop\n")
        self._thread.join(5)
        self.fleet.close()
        os.close(self._reads)
        os.close(self._writes)


@pytest.fixture
def driver() -> Iterator[_Driver]:
    made = _Driver()
    with contextlib.closing(made):
        yield made


@pytest.fixture
def peer() -> Iterator[_Peer]:
    made = _Peer()
    with contextlib.closing(made):
        yield made


def _flowing(driver: _Driver, peer: _Peer, wire: str) -> None:
    driver("connect", peer.port, wire, 1)
    peer.accept()
    peer.socket.sendall(_UPGRADED)
    if wire == "json":
        peer.socket.sendall(_CONNECTED + text_frame(_message(7)))
        return
    peer.socket.sendall(_frame(b'0{"sid":"x"}'))
    assert peer.read() == b"40{}"
    peer.socket.sendall(_frame(b'40{"sid":"s","pid":"p"}') + _event("connected", {}))
    peer.socket.sendall(_event("status_update", _message(7)) + _event("offset", "yj1;at7"))


def test_a_plain_client_recovers_where_it_was(driver: _Driver, peer: _Peer) -> None:
    _flowing(driver, peer, "json")
    driver.until(lambda seen: seen["most"] == 7)
    driver("mark")
    peer.socket.close()
    assert peer.accept() == "/ws/realtime?types="
    peer.socket.sendall(_UPGRADED)
    asked = json.loads(peer.read())
    assert asked["payload"]["recover"] == {"status": {"epoch": "e1", "seq": 7}}
    types = {"status": {"epoch": "e1", "seq": 9, "recovered": True}}
    answer = text_frame({"event": "subscribed", "data": {"types": types}})
    peer.socket.sendall(_CONNECTED + answer + text_frame(_message(8)))
    seen = driver.until(lambda seen: seen["returned"] == 1)
    assert (seen["lost"], seen["recovered"], seen["not_recovered"], seen["away"]) == (1, 1, 0, 0)
    assert (seen["missing"], seen["repeated"], seen["least"]) == (0, 0, 8)
    assert seen["all_back_s"] > 0


def test_a_socketio_client_shows_pid_and_offset(driver: _Driver, peer: _Peer) -> None:
    _flowing(driver, peer, "sio")
    driver.until(lambda seen: seen["most"] == 7)
    driver("mark")
    peer.socket.close()
    peer.accept()
    peer.socket.sendall(_UPGRADED + _frame(b'0{"sid":"y"}'))
    assert json.loads(peer.read()[2:]) == {"pid": "p", "offset": "yj1;at7"}
    peer.socket.sendall(_frame(b'40{"sid":"t","pid":"q"}') + _event("status_update", _message(9)))
    seen = driver.until(lambda seen: seen["returned"] == 1)
    assert (seen["recovered"], seen["not_recovered"], seen["missing"]) == (0, 1, 1)


def test_a_refused_client_tries_again(driver: _Driver, peer: _Peer) -> None:
    driver("connect", peer.port, "json", 1)
    for _ in range(2):
        peer.accept()
        peer.socket.sendall(b"HTTP/1.1 503 Service Unavailable\r\n\r\n")
        peer.socket.close()
    peer.accept()
    peer.socket.sendall(_UPGRADED + _CONNECTED)
    seen = driver.until(lambda seen: seen["ready"] == 1)
    assert seen["refused"] == {"503": 2}
    assert seen["tries"] == 3


def test_a_frame_is_complete_or_not_there() -> None:
    for size in (0, 125, 126, 70_000):
        data = b"__" + text_frame({"pad": "x" * size})
        for cut in {2, 3, 5, len(data) - 1}:
            assert frame_end(data[:cut], 2) is None
        payload = frame_end(data + b"more", 2)
        assert payload is not None
        assert json.loads(data[slice(*payload)]) == {"pad": "x" * size}
        assert payload[1] == len(data)


def test_the_last_string_is_complete_or_not_there() -> None:
    scanner = Scanner("seq")

    def last(data: bytes) -> bytes:
        scanner.room[: len(data)] = data
        return scanner.last_string(b'["offset","', len(data))

    assert last(b'["offset","a"]["offset","b"]') == b"b"
    assert last(b'["offset","cut') == b""
    assert last(b'["other","a"]') == b""


def test_percentiles_of_buckets() -> None:
    name = "pause_seconds"
    counts = {"0.1": 50.0, "0.25": 99.0, "1.0": 100.0, "+Inf": 100.0}
    samples = {(f"{name}_bucket", f'le="{bound}"'): count for bound, count in counts.items()}
    found = bucket_percentiles(samples, name)
    assert found == {"p50": 0.1, "p99": 0.25, "max": 1.0}
    assert bucket_percentiles({}, name) == {}
