"""The command `yujian` against the real service: what it prints, and its exit codes."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import jwt
import pytest

from tests.support import REPO
from tests.support.forked import ForkedProgram
from tests.support.plain import PlainClient
from tests.support.ports import free_port
from tests.support.service import TOKEN, Service
from tests.support.waiting import until, until_now

pytestmark = pytest.mark.timeout(120)

SECRET = "0123456789abcdef0123456789abcdef"
PROGRAM = (sys.executable, "-m", "yujian_realtime")


@pytest.fixture(scope="module", autouse=True)
def program() -> Iterator[None]:
    """What `yujian` runs."""
    with _program:
        yield


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    running = Service(COLLECTOR=1).start()
    yield running
    running.stop()


@pytest.fixture
def home(tmp_path: Path, service: Service) -> Path:
    """A directory with the `.env` of the service."""
    (tmp_path / ".env").write_text(f"BIND=127.0.0.1:{service.port}\nPUBLISH_TOKEN={TOKEN}\n")
    return tmp_path


def environ() -> dict[str, str]:
    # What the tests themselves are started with must not be what the command reads.
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return kept | {"PYTHONPATH": str(REPO / "clients/python/src"), "TERM": "xterm"}


_program = ForkedProgram(PROGRAM[-1], "yujian_realtime.command.main", environ=environ())


def yujian(home: Path, *arguments: str, input: str = "") -> subprocess.CompletedProcess[str]:
    return _program.run(home, environ(), *arguments, input=input)


def lines(done: subprocess.CompletedProcess[str]) -> list[Any]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_publish_history_and_repeated_ids(home: Path) -> None:
    (stored,) = lines(yujian(home, "publish", "config", "hello", '{"a": "ü"}', "--json"))
    assert set(stored) == {"id", "type", "seq", "epoch"}
    (again,) = lines(
        yujian(home, "publish", "config", "hello", '{"a": "ü"}', "--json", "--id", stored["id"])
    )
    assert again == stored
    (message,) = lines(yujian(home, "history", "config", "--limit", "1", "--json"))
    assert (message["seq"], message["data"]) == (stored["seq"], {"a": "ü"})
    done = yujian(home, "history", "config", "--limit", "1")
    assert f"hello  {stored['seq']}  " in done.stdout
    assert '{"a":"ü"}' in done.stdout
    conflict = yujian(home, "publish", "config", "hello", "2", "--id", stored["id"])
    assert conflict.returncode == 1
    assert "CONFLICT" in conflict.stderr


def test_an_output_that_is_full_is_one_line(home: Path) -> None:
    assert yujian(home, "publish", "config", "hello", "1").returncode == 0
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*PROGRAM, "history", "config"],
            cwd=home,
            env=environ(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "the output cannot be written: " in line


def test_publish_from_standard_input(home: Path) -> None:
    done = yujian(home, "publish", "config", "piped", "-", "--json", input="[1, 2]")
    assert lines(done)[0]["type"] == "config"
    many = "".join(f'{{"type": "config", "event": "line", "data": {n}}}\n' for n in range(150))
    stored = lines(yujian(home, "publish", "--lines", "--json", input=many))
    assert len(stored) == 150
    kept = lines(yujian(home, "history", "config", "--limit", "150", "--json"))
    assert [one["data"] for one in kept] == list(range(150))
    complete = lines(yujian(home, "history", "config", "--all", "--json"))
    assert [one["seq"] for one in complete] == list(range(1, complete[-1]["seq"] + 1))
    mixed = '{"type": "config", "event": "good"}\n{"type": "nope", "event": "bad"}\n'
    done = yujian(home, "publish", "--lines", input=mixed)
    assert done.returncode == 1
    assert done.stdout.startswith("config  ")
    assert "INVALID_TYPE" in done.stderr


async def test_connections(home: Path, service: Service) -> None:
    async def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(yujian, home, "connections", *arguments)

    ann = [await PlainClient.open(service, user="ann", types="status") for _ in range(2)]
    other = await PlainClient.open(service, types="stats")
    try:
        await asyncio.gather(*(client.barrier() for client in (*ann, other)))
        rows = lines(await run("--type", "status", "--json"))
        assert [row["user"] for row in rows] == ["ann", "ann"]
        # Page by page.
        assert len(lines(await run("list", "--limit", "1", "--json"))) == 1
        assert [row["id"] for row in lines(await run("--all", "--user", "ann", "--json"))] == [
            row["id"] for row in rows
        ]
        users = await run("--users")
        assert users.stdout == "     2  ann\n"
        assert "3 connections, 1 without a name" in users.stderr
        shown = await run("--user", "ann")
        assert f"{rows[0]['id']}  ann  plain  status  " in shown.stdout
        assert [line.split("  ")[-1] for line in shown.stdout.splitlines()] == [
            time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["since"] // 1000)) for row in rows
        ]

        done = await run("close", rows[0]["id"])
        assert (done.returncode, done.stdout) == (0, "1 closed\n"), done
        assert (await run("close", rows[0]["id"])).returncode == 1, "it is gone"
        assert lines(await run("close", "--user", "ann", "--revoked", "--json")) == [{"closed": 1}]
        codes = [await client.wait_closed() for client in ann]
        assert sorted(codes) == [4401, 4403]
        assert (await run("close")).returncode == 2
        assert (await run("list", "someid")).returncode == 2
        assert (await run("--publish-token", "wrong")).returncode == 4
    finally:
        for client in (*ann, other):
            await client.close()


async def test_users_of_a_type(tmp_path: Path) -> None:
    async with Service(WORKERS=2, PRESENCE_NAMES="status", AUTH_SECRET=SECRET) as service:
        (tmp_path / ".env").write_text(f"BIND=127.0.0.1:{service.port}\nAUTH_SECRET={SECRET}\n")

        async def run(*arguments: str) -> subprocess.CompletedProcess[str]:
            return await asyncio.to_thread(yujian, tmp_path, *arguments)

        async def sign(*arguments: str) -> str:
            return (await run("token", *arguments)).stdout.strip()

        names = [f"user{number}" for number in range(5)]
        clients = [
            await PlainClient.open(service, types="status", token=await sign("--user", name))
            for name in names
        ]

        async def are_listed() -> bool:
            return [row["user"] for row in lines(await run("users", "status", "--json"))] == names

        async def are_counted() -> bool:
            # What a worker knows of the others' connections may be two seconds old.
            done = await run("users", "status", "--limit", "2")
            listed = done.stdout == "     1  user0\n     1  user1\n"
            return listed and done.stderr == "2 shown, 5 users with a name, 5 connections\n"

        await until(are_listed, "all are listed")
        await until(are_counted, "all are counted")
        assert (await run("users", "stats")).returncode == 4
        for arguments, code in (([], 4), (["--presence"], 0), (["--presence", "status"], 0)):
            token = await sign("--user", "zoe", *arguments)
            assert (await run("users", "status", "--token", token)).returncode == code
        assert (await run("users", "status", "--token", "wrong")).returncode == 4
        assert (await run("users", "status", "--url", "http://127.0.0.1:1")).returncode == 3
        assert (await run("users")).returncode == 2
        for client in clients:
            await client.close()


def test_a_secret_where_the_service_asks_for_no_token(home: Path) -> None:
    with (home / ".env").open("a") as file:
        file.write(f"AUTH_SECRET={SECRET}\n")
    assert yujian(home, "publish", "config", "unused", "1").returncode == 0
    watch = subprocess.Popen(
        [*PROGRAM, "watch", "config", "--count", "2"],
        cwd=home,
        env=environ(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert watch.stdout is not None
    assert "unused  " in watch.stdout.readline()
    assert yujian(home, "publish", "config", "later", "2").returncode == 0
    out, said = watch.communicate(timeout=60)
    assert (watch.returncode, out.split()[2]) == (0, "later")
    assert said == (
        "The service asks for no token, and has refused this one: the client goes on without it.\n"
    )
    done = yujian(home, "users", "status")
    assert (done.returncode, "PRESENCE_NAMES" in done.stderr) == (4, True)
    assert yujian(home, "history", "config").returncode == 0


def test_presence(home: Path) -> None:
    assert yujian(home, "presence", "set", "working", "Tea ☕").returncode == 0
    assert yujian(home, "presence", "get").stdout == "working  Tea ☕\n"
    (presence,) = lines(yujian(home, "presence", "get", "--json"))
    assert (presence["state"], presence["task"]) == ("working", "Tea ☕")
    assert yujian(home, "presence", "set", "idle").returncode == 0
    assert yujian(home, "presence", "get").stdout == "idle\n"
    assert yujian(home, "presence", "set").returncode == 2


def test_status(home: Path, service: Service) -> None:
    done = subprocess.run(
        [*PROGRAM, "status"], cwd=home, env=environ(), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.startswith("service     ok\n")
    assert "\x1b" not in done.stdout
    (state,) = lines(yujian(home, "status", "--json"))
    assert state["status"] == "ok"
    assert {worker["pid"] for worker in state["workers"]} == set(service.worker_pids())


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--url", "http://127.0.0.1:1", "watch"], 2, "usage"),
        (["watch", "--url", "http://127.0.0.1:1"], 3, "Connection refused"),
        (["status", "--url", "http://127.0.0.1:1"], 3, "Connection refused"),
        (["watch", "nope"], 1, "INVALID_TYPE"),
        (["history", "nope"], 1, "INVALID_TYPE"),
        (["publish", "config", "x", "{broken"], 2, "not JSON"),
        (["publish", "config"], 2, "needs TYPE and EVENT"),
        (["publish", "config", "x", "--publish-token", "wrong"], 4, "publish token"),
        (["presence", "set", "asleep"], 2, "invalid choice"),
        (["watch", "--history", "101"], 2, "invalid choice"),
        (["load", "http://192.0.2.1:80", "--clients", "1"], 2, "not this machine"),
        (["status", "--url", "ftp://x"], 2, "no address"),
        (["nope"], 2, "invalid choice"),
        ([], 2, "COMMAND"),
    ],
)
def test_exit_codes(home: Path, arguments: list[str], code: int, said: str) -> None:
    done = yujian(home, *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@asynccontextmanager
async def below_a_path(service: Service) -> AsyncIterator[str]:
    """The address of the service below `/lab`, which a proxy removes from each request."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data.replace(b" /lab/", b" /", 1))
            await writer.drain()
        writer.close()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, here = await asyncio.open_connection("127.0.0.1", service.port)
        await asyncio.gather(pump(reader, here), pump(there, writer), return_exceptions=True)

    async with await asyncio.start_server(forward, "127.0.0.1", 0) as proxy:
        yield f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}/lab"


@pytest.mark.parametrize(
    "command",
    [
        ["status"],
        ["history", "config"],
        ["publish", "config", "x", "1"],
        ["watch", "config", "--count", "1"],
        ["load", "--clients", "1", "--seconds", "1"],
    ],
    ids=lambda command: command[0],
)
async def test_a_service_below_a_path(home: Path, service: Service, command: list[str]) -> None:
    await service.publish("config", "x")
    async with below_a_path(service) as url:
        done = await asyncio.to_thread(yujian, home, *command, "--url", url)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", ["watch", "status", "users"])
def test_an_address_without_a_service(home: Path, service: Service, command: str) -> None:
    names = ["config"] if command == "users" else []
    done = yujian(home, command, *names, "--url", f"{service.base}/wrong")
    assert (done.returncode, done.stdout) == (3, "")
    said = (
        "What answers there is no Yujian Presence."
        if command == "status"
        else "No service answers at"
    )
    assert f"{service.base}/wrong: {said}" in done.stderr


def test_watch_ends_after_a_count_and_writes_json_or_lines(home: Path) -> None:
    assert yujian(home, "publish", "config", "to_watch", '"a\\u001b[31m"').returncode == 0
    (message,) = lines(yujian(home, "watch", "config", "--count", "1", "--json"))
    assert (message["event"], message["data"]) == ("to_watch", "a\x1b[31m")
    done = yujian(home, "watch", "config", "--count", "1")
    assert done.returncode == 0
    assert "  config  to_watch  " in done.stdout
    assert "\x1b" not in done.stdout


def test_a_reader_that_goes_away_is_no_error(home: Path) -> None:
    command = (
        f"{sys.executable} -m yujian_realtime history status --all | head -1; exit $PIPESTATUS"
    )
    done = subprocess.run(
        ["bash", "-c", command], cwd=home, env=environ(), capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


async def test_watch_survives_a_restart_and_ends_at_ctrl_c(tmp_path: Path) -> None:
    async with Service(WORKERS=1) as service:
        process = await asyncio.create_subprocess_exec(
            *(*PROGRAM, "watch", "config", "--json", "--url", service.base),
            cwd=tmp_path,
            env=environ(),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        try:
            await service.wait_connections(1)
            await service.publish("config", "tick", 1)
            assert json.loads(await process.stdout.readline())["data"] == 1
            victim = service.kill_worker()
            await service.replaced(victim)
            await service.publish("config", "tick", 2)
            assert json.loads(await process.stdout.readline())["data"] == 2
            process.send_signal(signal.SIGINT)
            _, said = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.communicate()
        assert process.returncode == 0
        assert b"Connected again." in said
        assert b"Traceback" not in said


def test_the_table_of_a_terminal_updates(home: Path, service: Service) -> None:
    main, side = pty.openpty()
    process = subprocess.Popen(
        [*PROGRAM, "watch", "status"], cwd=home, env=environ(), stdin=side, stdout=side, stderr=side
    )
    os.close(side)
    seen = bytearray()

    def read() -> None:
        try:
            while chunk := os.read(main, 65536):
                seen.extend(chunk)
        except OSError:
            return

    reader = threading.Thread(target=read)
    reader.start()
    try:
        until_now(lambda: b"status_update" in seen and b"\x1b[32mlive" in seen, "a table")
        until_now(lambda: b"\x1b[3F" in seen, "drawn again in the same place")
    finally:
        process.send_signal(signal.SIGINT)
        code = process.wait(20)
        reader.join(20)
        os.close(main)
    assert code == 0
    assert b"Traceback" not in seen


def test_tokens_of_the_command_let_in(tmp_path: Path) -> None:
    service = Service(AUTH_SECRET=SECRET, WORKERS=1).start()
    try:
        url = ("--url", service.base)
        done = yujian(tmp_path, "watch", "config", *url)
        assert done.returncode == 4
        assert "oken" in done.stderr
        dotenv = f"AUTH_SECRET={SECRET}\nPUBLISH_TOKEN={TOKEN}\nBIND=127.0.0.1:{service.port}\n"
        (tmp_path / ".env").write_text(dotenv)
        assert yujian(tmp_path, "publish", "config", "guarded", "1").returncode == 0
        done = yujian(tmp_path, "watch", "config", "--count", "1", "--json")
        assert lines(done)[0]["event"] == "guarded"
        assert lines(yujian(tmp_path, "history", "config", "--json"))[0]["event"] == "guarded"
        token = yujian(tmp_path, "token", "--user", "ann", "--ttl", "90s").stdout.strip()
        claims = jwt.decode(token, SECRET, ["HS256"])
        assert claims["exp"] - claims["iat"] == 90
        (tmp_path / ".env").unlink()
        done = yujian(tmp_path, "watch", "config", "--count", "1", "--json", *url, "--token", token)
        assert lines(done)[0]["event"] == "guarded"
        (tmp_path / ".env").write_text(dotenv)
        limited = yujian(tmp_path, "token", "--user", "ann", "--types", "config").stdout.strip()
        for types in ("config", "all"):
            done = yujian(tmp_path, "watch", types, "--count", "1", "--json", "--token", limited)
            assert lines(done)[0]["event"] == "guarded"
        done = yujian(tmp_path, "watch", "status", "--token", limited)
        assert (done.returncode, done.stdout) == (4, ""), done.stderr
        done = yujian(tmp_path, "history", "status", "--token", limited)
        assert (done.returncode, done.stdout) == (4, ""), done.stderr
        result = lines(yujian(tmp_path, "load", "--clients", "20", "--seconds", "1s", "--json"))[0]
        assert (result["connected"], result["failed"]) == (20, {})
    finally:
        service.stop()


def test_load(home: Path, service: Service) -> None:
    done = yujian(
        home,
        "load",
        service.base,
        "--clients",
        "50",
        "--seconds",
        "1s",
        "--publish",
        "10",
        "--json",
    )
    (result,) = lines(done)
    assert (result["connected"], result["failed"], result["closed"]) == (50, {}, {})
    assert result["missed"] == 0
    assert result["published"] >= 1
    assert result["messages"] >= 50 * result["published"]
    assert result["latencyMs"]["p50"] is not None
    full = Service(WORKERS=1, MAX_TOTAL_CONNECTIONS=5).start()
    try:
        done = yujian(home, "load", full.base, "--clients", "8", "--seconds", "1s")
    finally:
        full.stop()
    assert done.returncode == 5
    assert "connected     5 of 8" in done.stdout
    assert "failed        3: HTTP 503" in done.stdout


async def test_the_example_prints_what_comes(service: Service) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-u", str(REPO / "examples/listen.py"), service.base),
        env=environ(),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        line = await asyncio.wait_for(process.stdout.readline(), 30)
        assert line
    finally:
        process.terminate()
        await process.communicate()


async def test_make_listen_calls_it(service: Service) -> None:
    process = await asyncio.create_subprocess_exec(
        *("make", "--no-print-directory", "listen", f"URL={service.base}"),
        cwd=REPO,
        env=dict(os.environ),
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        text, sent = b"", []

        async def read() -> bool:
            nonlocal text
            assert process.stdout is not None
            # Again and again: the collector's next message may be the newest when it connects.
            sent.append(await service.publish("status", "for_make_listen", {"n": 1}))
            text += await process.stdout.read(65536)
            return b"status" in text and any(str(one["seq"]).encode() in text for one in sent)

        await until(read, "a line of the watch")
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        await process.communicate()


def test_no_service_there(tmp_path: Path) -> None:
    done = yujian(tmp_path, "watch", "--url", f"127.0.0.1:{free_port()}")
    assert done.returncode == 3


def test_it_can_be_installed(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(
        REPO / "clients/python", source, ignore=shutil.ignore_patterns("build", "*.egg-info")
    )
    target = tmp_path / "installed"
    pip = (sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target")
    done = subprocess.run([*pip, target, source], capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    assert (target / "yujian_realtime/py.typed").exists()
    shown = subprocess.run(
        [target / "bin/yujian", "--help"],
        env=environ() | {"PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
    )
    assert shown.stdout.startswith("usage: yujian "), shown.stderr
