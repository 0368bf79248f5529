"""The field: each server that is measured, how it is started, and the wire of its clients."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import platform
import shutil
import socket
import string
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from app import __version__
from benchmarks.procs import ROOT, Server, peer, service

SERVERS = Path(__file__).parent / "servers"
_MODULES = SERVERS / "node_modules"
_SOCKETIO = "/ws/realtime/?EIO=4&transport=websocket"
_PLAIN = "/ws/realtime"


class ConfiguredServer(Server):
    """A server with a configuration file, which answers no HTTP on the port of its clients.

    Args:
        template: name of a file in `servers/`; `$port`, `$publish`, `$workers` and `$directory`
            are replaced in it.
        argv: its command line; `{config}` is that file.
    """

    def __init__(self, template: str, argv: list[str], workers: int = 1) -> None:
        super().__init__([], {}, pinned=workers == 1)
        text = string.Template((SERVERS / template).read_text())
        config = Path(self.directory, template)
        values = {"port": self.port, "publish": self.port + 1, "directory": self.directory}
        config.write_text(text.safe_substitute(values, workers=workers))
        self._argv = [part.format(config=config) for part in argv]

    def answers(self) -> bool:
        """Whether its port is open."""
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


@dataclass(frozen=True, slots=True)
class Contender:
    """A server of the field.

    Attributes:
        make: makes it, with this number of workers.
        version: says which one of it is installed.
        needs: what must be there to run it: a program, a file or an importable module.
        install: the command that brings what it needs.
        scales: whether it has a documented way to use several processes.
        publish: its publishers' port less that of its clients.
    """

    name: str
    make: Callable[[int], Server]
    version: Callable[[], str]
    wire: str = "raw"
    path: str = _PLAIN
    needs: str = ""
    install: str = ""
    scales: bool = False
    publish: int = 0
    publish_path: str = "/ws/broadcast"

    def missing(self) -> bool:
        """Whether it cannot run on this machine."""
        if not self.needs or shutil.which(self.needs) or Path(self.needs).exists():
            return False
        return "/" in self.needs or importlib.util.find_spec(self.needs) is None


def _node(script: str, workers: int = 1) -> Server:
    env = {"PORT": "{port}", "WORKERS": str(workers), "NODE_ENV": "production"}
    return Server(["node", str(SERVERS / script)], env, pinned=workers == 1)


def _bun(**env: str) -> Server:
    bun = str(_MODULES / ".bin/bun")
    return Server([bun, str(SERVERS / "elysia.mjs")], {"PORT": "{port}", **env})


def _python(module: str) -> Server:
    argv = [sys.executable, "-m", f"benchmarks.peers.servers.{module}", "--port", "{port}"]
    return Server(argv, {"BENCH_DIR": "{dir}"})


def _own(workers: int) -> Server:
    return service(workers, pinned=workers == 1)


def _said(*argv: str) -> str:
    """The line that a program says about its version."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30, cwd=ROOT)
    return (done.stdout + done.stderr).strip()


def _own_version() -> str:
    commit = _said("git", "describe", "--always", "--dirty")
    return f"{__version__}, commit {commit}, {_python_version('aiohttp', 'uvloop')}"


def _python_version(*packages: str) -> str:
    names = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    return ", ".join([*names, f"Python {platform.python_version()}"])


def _node_version(module: str) -> str:
    return f"{_module_version(module)}, Node {_said('node', '--version')}"


def _module_version(module: str) -> str:
    return f"{module} {json.loads((_MODULES / module / 'package.json').read_text())['version']}"


def _bun_version() -> str:
    return f"{_module_version('elysia')}, {_module_version('bun')}"


def _nchan_version() -> str:
    package = _said("dpkg-query", "--show", "libnginx-mod-nchan").partition("\t")[2]
    return f"{package}, {_said('nginx', '-v').rpartition(' ')[2]}"


_NPM = "npm ci --prefix benchmarks/peers/servers"
_PIP = "pip install -r benchmarks/peers/servers/requirements.txt"

FIELD = (
    Contender("service, JSON", _own, _own_version, path="/ws/realtime?types=status", scales=True),
    Contender("service, Socket.IO", _own, _own_version, "sio", _SOCKETIO, scales=True),
    Contender(
        "bare loop",
        lambda _: peer("bare"),
        partial(_python_version, "aiohttp", "uvloop"),
        path="/ws/realtime?types=status",
    ),
    Contender(
        "python-socketio",
        lambda _: peer("stock"),
        partial(_python_version, "python-socketio", "aiohttp", "uvloop"),
        "sio",
        _SOCKETIO,
    ),
    Contender(
        "Socket.IO on Node",
        lambda workers: _node("socketio.mjs", workers),
        partial(_node_version, "socket.io"),
        "sio",
        _SOCKETIO,
        needs=str(_MODULES / "socket.io"),
        install=_NPM,
        scales=True,
    ),
    Contender(
        "ws on Node",
        lambda _: _node("ws.mjs"),
        partial(_node_version, "ws"),
        needs=str(_MODULES / "ws"),
        install=_NPM,
    ),
    Contender(
        "Elysia on Bun, topics",
        lambda _: _bun(),
        _bun_version,
        needs=str(_MODULES / ".bin/bun"),
        install=_NPM,
    ),
    Contender(
        "Elysia on Bun, loop",
        lambda _: _bun(LOOP="1"),
        _bun_version,
        needs=str(_MODULES / ".bin/bun"),
        install=_NPM,
    ),
    Contender(
        "uWebSockets (socketify)",
        lambda _: _python("uws"),
        partial(_python_version, "socketify"),
        needs="socketify",
        install=_PIP,
    ),
    Contender(
        "websockets",
        lambda _: _python("websockets_broadcast"),
        partial(_python_version, "websockets", "uvloop"),
        needs="websockets",
        install=_PIP,
        publish=1,
    ),
    Contender(
        "Nchan",
        lambda workers: ConfiguredServer(
            "nchan.conf", ["nginx", "-p", "/", "-c", "{config}"], workers
        ),
        _nchan_version,
        "nchan",
        needs="/usr/lib/nginx/modules/ngx_nchan_module.so",
        install="apt-get install nginx-light libnginx-mod-nchan",
        scales=True,
        publish_path="/publish",
    ),
    Contender(
        "NATS",
        lambda workers: ConfiguredServer("nats.conf", ["nats-server", "-c", "{config}"], workers),
        partial(_said, "nats-server", "--version"),
        "nats",
        "/",
        needs="nats-server",
        install="apt-get install nats-server",
        scales=True,
        publish=1,
    ),
)
