"""What this service expects of the private names of libraries."""

from __future__ import annotations

import ast
import asyncio
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import engineio
import pytest
import socketio
from aiohttp import web
from prometheus_client import CollectorRegistry, Histogram
from redis.asyncio.connection import UnixDomainSocketConnection
from redis.exceptions import ResponseError
from socketio.async_pubsub_manager import AsyncPubSubManager

from app import prometheus_private
from app.backplane import redis_private
from app.sessions.socketio import private
from app.transport import aiohttp_private

ROOT = Path(__file__).parents[2]


class Manager(private.PubSubManager, private.ClientManager):
    """Notes what it is asked to send."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[Any] = []

    async def send_to_all(self, message: dict[str, Any]) -> None:
        self.sent.append(message)

    async def return_ack(self, *home: Any) -> None:
        self.sent.append(home)


class Engine(private.EngineServer):
    def find_socket(self, sid: Any) -> Any:
        return [sid]


class Server(private.SocketServer):
    engine_class = Engine


@pytest.fixture
def manager() -> Manager:
    return Manager()


@pytest.fixture
def server(manager: Manager) -> Server:
    return Server(client_manager=manager, async_mode="aiohttp")


def test_a_name_that_is_gone_ends_the_import_with_one_line() -> None:
    with pytest.raises(ImportError) as caught:
        private.check({socketio.AsyncServer: {"_no_such": "(self)"}}, {})
    assert "AsyncServer._no_such" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(ImportError):
        private.check({socketio.AsyncServer: {"_trigger_event": "(self, event)"}}, {})
    with pytest.raises(ImportError):
        private.check({}, {socketio.AsyncServer: ("_no_such",)})


def test_the_import_makes_sure_of_them() -> None:
    tree = ast.parse(Path(private.__file__).read_text())
    assert "check()" in [ast.unparse(node) for node in tree.body]


def test_the_server_has_the_engine_that_it_is_given(server: Server) -> None:
    assert isinstance(server.eio, Engine)
    assert server.eio._get_socket("x") == ["x"]


def test_incomplete_packets_are_those_of_the_library(server: Server) -> None:
    assert server.incomplete == {}
    server.incomplete["session"] = 1
    assert server._binary_packet == {"session": 1}


async def test_handlers_are_found_and_called(server: Server) -> None:
    got: list[Any] = []

    @server.on("known")
    async def known(sid: str, *args: Any) -> str:
        got.append((sid, *args))
        return "done"

    assert server.has_handler("known", "/")
    assert not server.has_handler("unknown", "/")
    assert not server.has_handler("known", "/other")
    assert await server.trigger("known", "/", "s", 1, 2) == "done"
    assert got == [("s", 1, 2)]
    assert await server.trigger("unknown", "/", "s") is server.not_handled


async def test_an_ack_reaches_what_awaits_it(server: Server, manager: Manager) -> None:
    got: list[Any] = []
    sid = await manager.connect("eio", "/")
    number = manager.new_ack_id(sid, lambda *args: got.append(args))
    await server.take_ack("eio", "/", number, ["a", 1])
    assert got == [("a", 1)]


async def test_numbers_of_acks_begin_at_one_and_rise(manager: Manager) -> None:
    """Under 0 the library keeps the counter; `dump_acks` and `load_acks` rely on it."""
    assert [manager.new_ack_id("s", print) for _ in range(3)] == [1, 2, 3]
    assert next(manager.callbacks["s"][0]) == 4


async def test_leaving_calls_the_disconnect_handler(server: Server, manager: Manager) -> None:
    reasons: list[str] = []

    @server.on("disconnect")
    async def disconnect(sid: str, reason: str) -> None:
        reasons.append(reason)

    sid = await manager.connect("eio", "/")
    await server.leave_namespace("eio", "/", "transport close")
    assert reasons == ["transport close"]
    assert not manager.is_connected(sid, "/")


async def test_acks_of_other_processes_go_home(manager: Manager, server: Server) -> None:
    manager.set_server(server)
    home = manager.returning("host", "sid", "/", 7)
    assert manager.is_returning(home)
    assert home.args == ("host", "sid", "/", 7)
    assert not manager.is_returning(print)
    await home("answer")
    assert manager.sent == [("host", "sid", "/", 7, "answer")]


async def test_an_emit_of_another_process_awaits_its_ack_in_the_same_way(
    manager: Manager, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager.set_server(server)
    emitted: list[Any] = []

    async def emit(self: Any, *args: Any, **options: Any) -> None:
        emitted.append((args, options))

    monkeypatch.setattr(private.ClientManager, "emit", emit)
    await manager.take_emit(
        {
            "method": "emit",
            "event": "e",
            "data": [1],
            "namespace": "/",
            "room": "s",
            "callback": ["s", "/", 3],
            "host_id": "elsewhere",
        }
    )
    [(args, options)] = emitted
    assert args[0] == "e"
    assert manager.is_returning(options["callback"])
    assert options["callback"].args == ("elsewhere", "s", "/", 3)


async def test_room_changes_and_disconnects_are_published_for_others(manager: Manager) -> None:
    await manager.enter_room("gone", "/", "room")
    await manager.close_room("room", "/")
    assert [message["method"] for message in manager.sent] == ["enter_room", "close_room"]


def test_no_other_module_uses_private_names_of_these_libraries() -> None:
    names = set()
    for owner in (engineio.AsyncServer, socketio.AsyncServer, AsyncPubSubManager):
        names |= {name for name in dir(owner) if name.startswith("_") and name[1] != "_"}
    names.add("_binary_packet")
    wrong = []
    for path in sorted((ROOT / "app/sessions").rglob("*.py")):
        if path == Path(private.__file__) or "socketio" not in path.read_text():
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            name = getattr(node, "attr", None) or (
                node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else None
            )
            if name in names:
                wrong.append(f"{path.relative_to(ROOT)}: {name}")
    assert wrong == []


# prometheus_client.


def test_a_name_of_prometheus_client_that_is_gone_ends_the_import_with_one_line() -> None:
    names = frozenset({"_sum", "_no_such"})
    with pytest.raises(ImportError) as caught:
        prometheus_private.check({Histogram._metric_init: names})
    assert "_no_such of Histogram._metric_init" in str(caught.value)
    assert "_sum" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_many_equal_observations_are_those_of_the_library() -> None:
    registry = CollectorRegistry()
    many = prometheus_private.WeightedHistogram("many", "x", buckets=(1, 2), registry=registry)
    each = Histogram("each", "x", buckets=(1, 2), registry=registry)
    many.observe_many(1.5, 3)
    many.observe_many(0.5, 1)
    for amount in (1.5, 1.5, 1.5, 0.5):
        each.observe(amount)

    def samples(name: str) -> list[float | None]:
        names = [(f"{name}_bucket", {"le": limit}) for limit in ("1.0", "2.0", "+Inf")]
        return [registry.get_sample_value(*one) for one in [*names, (f"{name}_sum", {})]]

    assert samples("many") == samples("each") == [1.0, 4.0, 4.0, 5.0]


# aiohttp.


def test_a_name_of_aiohttp_that_is_gone_ends_the_import_with_one_line() -> None:
    with pytest.raises(ImportError) as caught:
        aiohttp_private.check({"_messages", "_no_such"}, {"_loop", "_none"}, {"_nothing"})
    assert str(caught.value).endswith(
        "it has no BaseRunner._nothing, RequestHandler._no_such, Server._none"
    )


def test_no_other_module_imports_the_connection_of_aiohttp() -> None:
    importers = [
        path.name
        for path in sorted((ROOT / "app").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
        and node.module == "aiohttp.web_protocol"
        and "RequestHandler" in [alias.name for alias in node.names]
    ]
    assert importers == ["aiohttp_private.py"]


async def test_a_connection_of_aiohttp_has_what_is_read_of_it() -> None:
    """Of one that nothing was sent to: no message waits, none is in progress, nothing is upgraded."""

    async def never(request: web.BaseRequest) -> web.StreamResponse:
        raise AssertionError(request)

    server = web.Server(never)
    connection: Any = server()
    connection.connection_made(MagicMock())
    try:
        assert len(connection._messages) == 0
        assert connection._message_tail == b""
        assert not connection._upgraded
        assert not connection._request_in_progress
        assert connection._request_count == 0
        assert connection._manager is server
        assert not connection._close
        assert not connection._force_close
        assert not connection._reading_paused
        assert not connection._buffer_paused
        connection.data_received(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 1000)
        assert connection._buffer_paused
    finally:
        connection.force_close()
        await server.shutdown(0.0)
    assert connection._force_close


async def test_a_server_of_aiohttp_has_what_its_successor_is_made_of() -> None:
    async def never(request: web.BaseRequest) -> web.StreamResponse:
        raise AssertionError(request)

    server: Any = web.Server(never, access_log=None)
    assert server._loop is asyncio.get_running_loop()
    assert server._kwargs == {"access_log": None}


# redis-py.


def test_a_name_of_redis_that_is_gone_ends_the_import_with_one_line() -> None:
    with pytest.raises(ImportError) as caught:
        redis_private.check({"_writer", "_no_such"})
    assert str(caught.value).endswith("its connections have no _no_such")


async def test_the_streams_of_a_connection_can_be_taken(tmp_path: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1000):
            writer.write(b"+OK\r\n" * 2)

    server = await asyncio.start_unix_server(answer, tmp_path / "s")
    connection = UnixDomainSocketConnection(path=str(tmp_path / "s"), protocol=2)
    assert redis_private.writer_of(connection) is None
    await connection.connect()
    writer = redis_private.writer_of(connection)
    assert writer is not None
    error = redis_private.reply_error_of(connection)("ERR of a test")
    assert isinstance(error, ResponseError)
    assert str(error) == "of a test"
    redis_private.take_streams(connection)
    await connection.disconnect()
    assert not writer.transport.is_closing()
    writer.close()
    server.close()


# All libraries.

PRIVATE = {
    "app/sessions/socketio/private.py",
    "app/transport/aiohttp_private.py",
    "app/backplane/redis_private.py",
    "app/prometheus_private.py",
    "workers/gunicorn_private.py",
}
OF_LIBRARIES = {
    # In the classes that extend those of aiohttp, whose names aiohttp_private.py has made sure of.
    "_kwargs", "_loop", "_message_tail", "_request_count",
    # Documented ones.
    "_replace", "_exit", "_Decompress",
}  # fmt: skip


def private_names(path: Path) -> tuple[set[str], set[str]]:
    """Those that a file defines, and those that it uses of something that is not `self`."""
    own: set[str] = set()
    used: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            own.add(node.name)
        if not isinstance(node, ast.Attribute) or not node.attr.startswith("_"):
            continue
        if isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"}:
            if isinstance(node.ctx, ast.Store):
                own.add(node.attr)
        elif not node.attr.startswith("__") and ast.unparse(node.value) != "super()":
            used.add(node.attr)
    return own, used


def test_private_names_are_used_where_they_are_defined() -> None:
    """Those of libraries in the module of the library."""
    paths = [*(ROOT / "app").rglob("*.py"), *(ROOT / "workers").rglob("*.py")]
    wrong = {}
    for path in paths:
        name = str(path.relative_to(ROOT))
        own, used = private_names(path)
        if name not in PRIVATE and used - own - OF_LIBRARIES:
            wrong[name] = used - own - OF_LIBRARIES
    assert wrong == {}
