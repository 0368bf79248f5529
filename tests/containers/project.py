"""The project in containers of a real engine: a copy of the repository that the scripts deploy."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import termios
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Self

import aiohttp
import websockets
from aiohttp.abc import AbstractResolver, ResolveResult
from websockets.asyncio.client import connect

from tests.support.copies import SCRIPTED, Copy, Done
from tests.support.ports import free_port
from tests.support.service import TOKEN
from tests.support.waiting import until, until_now

ENGINE = Path(__file__).with_name("engine")
HOME = Path(os.environ.get("ENGINE_DIR", "/var/tmp/yujian-engine"))
"""Where the engine is installed and keeps its images."""
NAME = f"yj{os.getpid()}"
"""Of the project, and of its images."""
_LABEL = "yujian.test.project"
"""Of its images; other projects deploy at the same time."""
API, SITE = "api.localhost", "lab.localhost"
_STARTED = HOME.with_name(f"{HOME.name}-started")
"""There while an engine runs that these tests have started."""
_needs: list[int] = []
"""The descriptor that holds the lock of those that still need the engine: the last of them stops it."""
_uses: list[int] = []
"""That of those that use it now: one that is to be alone with it waits for the others."""
COPIED = (*SCRIPTED, "frontend", "monitoring", "Dockerfile", ".dockerignore")


@functools.cache
def engine() -> dict[str, str]:
    """Install and start the engine if need be; the environment in which `docker` finds it."""
    HOME.parent.mkdir(parents=True, exist_ok=True)
    with _lock("start"):
        for name, held in (("need", _needs), ("use", _uses)):
            held.append(os.open(HOME.with_name(f"{HOME.name}-{name}.lock"), os.O_RDWR | os.O_CREAT))
            fcntl.flock(held[0], fcntl.LOCK_SH)
        return _made_ready()


@contextlib.contextmanager
def _lock(name: str) -> Iterator[None]:
    """Keep other processes of tests waiting."""
    with HOME.with_name(f"{HOME.name}-{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _made_ready() -> dict[str, str]:
    path = f"{HOME}/engine/usr/bin:{HOME}/engine/usr/sbin:{os.environ['PATH']}"
    environ = dict(os.environ) | {
        "PATH": path,
        "DOCKER_HOST": f"unix://{HOME}/docker.sock",
        "DOCKER_CONFIG": str(HOME / "config"),
    }
    if subprocess.run(["docker", "version"], env=environ, capture_output=True).returncode:
        _STARTED.touch()
    _engine_sh("install")
    _engine_sh("start")
    plugins = HOME / "config/cli-plugins"
    plugins.mkdir(parents=True, exist_ok=True)
    site = Path(next(path for path in sys.path if path.endswith("site-packages")))
    for name, program in (
        ("docker-compose", site / "compose/docker-compose"),
        ("docker-buildx", HOME / "engine/usr/libexec/docker/cli-plugins/docker-buildx"),
    ):
        if not (plugins / name).is_symlink() or (plugins / name).readlink() != program:
            (plugins / name).unlink(missing_ok=True)
            (plugins / name).symlink_to(program)
    venv = site.parents[2]
    made = subprocess.run(
        ["bash", ENGINE / "images.sh", venv, HOME], env=environ, capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr[-2000:]
    return environ


def _engine_sh(command: str) -> None:
    # Its output goes to a file: the engine would keep a pipe open.
    with HOME.with_name(f"{HOME.name}-{command}.log").open("w") as log:
        done = subprocess.run(["bash", ENGINE / "engine.sh", command, HOME], stdout=log, stderr=log)
    assert done.returncode == 0, Path(log.name).read_text()[-2000:]


def stop_engine() -> None:
    """Stop the engine if tests have started it and these are the last that use it."""
    if not _needs:
        return
    os.close(_uses.pop())
    fcntl.flock(_needs[0], fcntl.LOCK_UN)
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(_needs[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _STARTED.exists():
            _engine_sh("stop")
            _STARTED.unlink()
    os.close(_needs.pop())


def restart_engine() -> None:
    """Stop the engine and start it again; containers start as their restart policy says.

    Only while no other process of tests uses it: see `alone`.
    """
    _engine_sh("stop")
    _engine_sh("start")


@contextlib.asynccontextmanager
async def alone() -> AsyncIterator[None]:
    """Wait until no other process of tests uses the engine, and keep them waiting."""
    fcntl.flock(_uses[0], fcntl.LOCK_UN)
    await asyncio.to_thread(fcntl.flock, _uses[0], fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(_uses[0], fcntl.LOCK_SH)


class Project(Copy):
    """A copy of the repository, and its containers."""

    def __init__(self, home: Path) -> None:
        # Its path has a blank, as those of some users have.
        self.root = home / "yu jian"
        self.fill(COPIED)
        with (self.root / "Dockerfile").open("a") as file:
            file.write(f"LABEL {_LABEL}={NAME}\n")
        self.port = free_port()
        self.certificate = home / "root.crt"
        self.settings = {
            "PUBLISH_TOKEN": TOKEN,
            "API_DOMAIN": API,
            "SITE_DOMAIN": SITE,
            "TLS_ISSUER": "internal",
            "HTTP_PUBLISH": f"127.0.0.1:{free_port()}",
            "HTTPS_PUBLISH": f"127.0.0.1:{self.port}",
            **{
                f"{name}_PUBLISH": f"127.0.0.1:{free_port()}"
                for name in ("PROMETHEUS", "ALERTMANAGER", "GRAFANA")
            },
            # Apart from other projects of the engine.
            "FRONT_SUBNET": f"172.30.{32 + os.getpid() % 200}.0/24",
            "TAG": NAME,
            # These machines may not give containers more.
            "NOFILE": "20000",
            "WORKERS": "2",
            "COLLECTOR": "0",
            "RATE_LIMIT": "0",
            "DRAIN_SECONDS": "3s",
        }
        self.write_settings()
        self.environ = engine() | {
            "PYTHON": sys.executable,
            "COMPOSE_PROJECT_NAME": NAME,
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def write_settings(self, **changed: str) -> None:
        """Write `.env`."""
        self.settings |= changed
        lines = [f"{name}={value}\n" for name, value in self.settings.items()]
        (self.root / ".env").write_text("".join(lines))

    def docker(self, *arguments: str, check: bool = True) -> str:
        """Run `docker`; what it printed."""
        done = subprocess.run(
            ["docker", *arguments],
            cwd=self.root,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=180,
        )
        assert not check or done.returncode == 0, f"{arguments}: {done.stderr}"
        return done.stdout.strip()

    def compose(self, *arguments: str, check: bool = True) -> str:
        """Run `docker compose`."""
        return self.docker("compose", *arguments, check=check)

    def run(self, script: str, *arguments: str, **environ: str) -> Done:
        """Run a script of the copy to its end."""
        return self.run_script(script, *arguments, environ=self.environ | environ, timeout=280)

    def deploy(self, *options: str, **environ: str) -> Done:
        """`deploy-websocket.sh --json`."""
        wait = ("--min-free", "100", "--timeout", "100")
        return self.run("deploy-websocket.sh", "--docker", "--json", *wait, *options, **environ)

    def interrupt(self, script: str, *arguments: str, when: Callable[[str], bool]) -> Done:
        """Start a script, and press ^C when a condition holds."""
        return self.interrupt_script(script, *arguments, environ=self.environ, when=when)

    def interrupt_deploy(
        self, when: Callable[[str], bool], by: signal.Signals = signal.SIGINT
    ) -> Done:
        """Start a deployment, and interrupt it."""
        options = ("--docker", "--json")
        return self.interrupt_script(
            "deploy-websocket.sh", *options, environ=self.environ, when=when, by=by
        )

    def close_the_terminal(self, when: Callable[[str], bool]) -> int:
        """Start a deployment in a terminal, and close it when a condition holds; the exit code.

        Args:
            when: is given what was printed so far.
        """
        terminal, inside = os.openpty()
        process = subprocess.Popen(
            [str(self.root / "deploy-websocket.sh"), "--docker"],
            cwd="/",
            env=self.environ,
            stdin=inside,
            stdout=inside,
            stderr=inside,
            start_new_session=True,
            # The script's session gets the terminal: from then on its end is a SIGHUP.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509
        )
        os.close(inside)
        os.set_blocking(terminal, False)
        said = bytearray()

        def has_come() -> bool:
            with contextlib.suppress(BlockingIOError):
                said.extend(os.read(terminal, 65536))
            return when(said.decode())

        try:
            until_now(has_come, "the moment to close the terminal", 180)
        finally:
            os.close(terminal)
        return process.wait(180)

    def steps(self) -> dict[str, dict[str, str]]:
        """The newest report of a deployment, by step."""
        newest = max((self.root / "backups").glob("2*/report.json"))
        return {row["step"]: row for row in json.loads(newest.read_text())["steps"]}

    def fetch_certificate(self) -> None:
        """Get the certificate of Caddy's own authority."""
        inside = "caddy:/data/caddy/pki/authorities/local/root.crt"
        self.compose("cp", inside, str(self.certificate))

    def session(self) -> aiohttp.ClientSession:
        """HTTP to what Caddy publishes, by the names of its sites."""
        self.fetch_certificate()
        trusted = ssl.create_default_context(cafile=str(self.certificate))
        connector = aiohttp.TCPConnector(ssl=trusted, resolver=_ThisMachine())
        return aiohttp.ClientSession(connector=connector)

    @property
    def address(self) -> str:
        """`host:port` of the service in its network."""
        net = self.compose("ps", "--quiet", "net")
        networks = json.loads(self.docker("inspect", net))[0]["NetworkSettings"]["Networks"]
        front = next(value for name, value in networks.items() if name.endswith("_front"))
        return f"{front['IPAddress']}:3001"

    def backends(self) -> dict[str, str]:
        """State by name of all containers of the backend."""
        rows = self.compose("ps", "--all", "--format", "json", "backend").splitlines()
        return {row["Name"]: row["State"] for row in map(json.loads, rows)}

    def state(self, name: str) -> str:
        """What the health check of a container says."""
        return self.docker("inspect", "--format", "{{.State.Health.Status}}.", name)

    def runs(self) -> str:
        """The version that answers."""
        return self.docker(
            "exec", self.compose("ps", "--quiet", "backend").splitlines()[0], "python", "-c",
            "import json, urllib.request as r; print(json.load(r.urlopen('http://127.0.0.1:3001/status'))['version'])",
        )  # fmt: skip

    def images(self, *filters: str) -> str:
        """Ids of the images of this project that pass."""
        words = [word for one in (f"label={_LABEL}={NAME}", *filters) for word in ("--filter", one)]
        return self.docker("images", "--quiet", *words)

    async def publish(self, data: object, **more: object) -> dict[str, int]:
        """Publish a message; what the service answers."""
        head = {"Authorization": f"Bearer {TOKEN}"}
        body = {"type": "status", "event": "tick", "data": data, **more}
        url = f"http://{self.address}/ws/broadcast"
        async with aiohttp.ClientSession(headers=head) as http, http.post(url, json=body) as answer:
            assert answer.status == 200, await answer.text()
            result: dict[str, int] = await answer.json()
            return result

    async def history(self) -> list[object]:
        """Data of the last messages."""
        url = f"http://{self.address}/history?type=status&limit=100"
        async with aiohttp.ClientSession() as http, http.get(url) as answer:
            return [one["data"] for one in (await answer.json())["messages"]]

    def destroy(self) -> None:
        """Remove all containers, volumes and networks."""
        self.compose("--profile", "monitoring", "down", "--volumes", "--timeout", "5", check=False)
        tags = (NAME, *(f"{tag}-{NAME}" for tag in ("next", "good", "previous")))
        self.docker("rmi", *(f"yujian-presence-backend:{tag}" for tag in tags), check=False)


class _ThisMachine(AbstractResolver):
    """Every name stands for 127.0.0.1."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host, host="127.0.0.1", port=port, family=socket.AF_INET, proto=0, flags=0
            )
        ]

    async def close(self) -> None: ...


class Crowd:
    """Clients of the plain protocol that note every message, and how they were closed.

    Args:
        address: `host:port` of the service.
        count: of clients.
        type: of the messages.
    """

    def __init__(self, address: str, count: int, type: str = "status") -> None:
        self._url = f"ws://{address}/ws/realtime?types={type}"
        self._count = count
        self.data: list[Any] = []
        """Of all messages of the first client."""
        self.seqs: list[list[int]] = [[] for _ in range(count)]
        self.gaps = 0
        self.closes: list[int | None] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._open = 0

    async def __aenter__(self) -> Self:
        for number in range(self._count):
            self._tasks.append(asyncio.create_task(self._listen(number)))
            if number % 20 == 19:
                await asyncio.sleep(0.05)
        await until(lambda: self._open >= self._count, f"{self._count} connected", 30)
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _listen(self, number: int) -> None:
        async with connect(
            self._url, max_queue=None, ping_interval=None, proxy=None, open_timeout=30
        ) as socket:
            self._open += 1
            try:
                async for frame in socket:
                    self._note(number, json.loads(frame))
            except websockets.ConnectionClosed:
                pass
            self.closes.append(socket.close_code)

    def _note(self, number: int, got: Any) -> None:
        if got.get("type") == "batch":
            for one in got["data"]:
                self._note(number, one)
        elif got.get("event") == "tick":
            self.seqs[number].append(got["seq"])
            if number == 0:
                self.data.append(got["data"])
        elif got.get("event") == "gap":
            self.gaps += 1

    async def all_at(self, seq: int) -> None:
        """Wait until every client has a message."""

        def arrived() -> bool:
            return all(seqs and seqs[-1] >= seq for seqs in self.seqs)

        await until(arrived, f"message {seq} at all clients", 60)

    def check(self) -> None:
        """Nothing was closed, missed or repeated."""
        assert self.closes == []
        assert self.gaps == 0
        for seqs in self.seqs:
            assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))
