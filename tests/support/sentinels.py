"""A primary with two replicas, and the three Sentinels that watch them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import redis

from tests.support.namespaces import TwoSides
from tests.support.ports import free_port
from tests.support.valkeys import binary
from tests.support.waiting import until_now

NAME = "lab"
QUORUM = 2
DOWN_AFTER_MS = 700
"""Milliseconds without an answer after which a Sentinel holds a server for down."""
_NEVER_DOWN_MS = 600_000
_HIDDEN = "127.0.0.2"


class ServerProcess:
    """A Valkey or a Sentinel; on the loopback, or on one side of a network."""

    def __init__(
        self,
        home: Path,
        port: int,
        *arguments: str,
        host: str = "127.0.0.1",
        prefix: Sequence[str] = (),
    ) -> None:
        self.host = host
        self.port = port
        home.mkdir()
        self._home = home
        self._words = [*prefix, binary(), *arguments]
        self._log = (home / "log").open("wb")
        self._process = self._start()
        self.client = redis.Redis(host=host, port=port, socket_timeout=1, decode_responses=True)
        until_now(self.answers, f"the server on port {port} answers")

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self._words, cwd=self._home, stdout=self._log, stderr=self._log)

    @property
    def pid(self) -> int:
        return self._process.pid

    def start_again(self) -> None:
        """Start it with the data that it has, after `kill`."""
        self._process = self._start()
        until_now(self.answers, f"the server on port {self.port} answers again")

    def answers(self) -> bool:
        with contextlib.suppress(redis.RedisError):
            return bool(self.client.ping())
        return False

    def kill(self) -> None:
        """End it with SIGKILL, also when it is stopped."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Let it do nothing, with its connections open."""
        os.kill(self._process.pid, signal.SIGSTOP)

    def cont(self) -> None:
        """Let it go on."""
        os.kill(self._process.pid, signal.SIGCONT)

    def close(self) -> None:
        self.client.close()
        self.kill()
        self._log.close()


class Sentinels:
    """Started by `with`; `url` is for BACKPLANE_URL.

    Args:
        sides: of a network; the first primary and one Sentinel are on the far one.
        options: further ones of the servers.
        front: puts something before each of them, which all are to find at its address; is given
            host and port of the server, and the port on which to listen.
    """

    def __init__(
        self,
        sides: TwoSides | None = None,
        *options: str,
        front: Callable[[tuple[str, int], int], int] | None = None,
    ) -> None:
        self._sides = sides
        self._options = options
        self._front = front
        self._stack = contextlib.ExitStack()
        self.servers: list[ServerProcess] = []
        self.sentinels: list[ServerProcess] = []

    def __enter__(self) -> Self:
        root = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="yj-s-")))
        for number in range(3):
            port = free_port()
            host, prefix = self._place(number)
            bind = self._behind(host, port)
            words = ["--port", str(port), "--bind", bind, "--appendonly", "yes", *self._options]
            words += ["--replica-announce-ip", host]
            words += ["--save", "", "--repl-diskless-sync-delay", "0", "--protected-mode", "no"]
            if number:
                words += ["--replicaof", f"{self.servers[0].host} {self.servers[0].port}"]
            home = root / f"server{number}"
            self._add(self.servers, ServerProcess(home, port, *words, host=host, prefix=prefix))
        until_now(lambda: self._in_sync() == 2, "both replicas are in sync")
        for number in range(3):
            port = free_port()
            config = root / f"sentinel{number}.conf"
            host, prefix = self._place(number)
            first = self.servers[0]
            config.write_text(
                f"port {port}\nbind {self._behind(host, port)}\nprotected-mode no\n"
                f"sentinel announce-ip {host}\nsentinel announce-port {port}\n"
                f"sentinel monitor {NAME} {first.host} {first.port} {QUORUM}\n"
                f"sentinel down-after-milliseconds {NAME} {DOWN_AFTER_MS}\n"
                f"sentinel failover-timeout {NAME} 4000\n"
                f"sentinel parallel-syncs {NAME} 2\n"
            )
            home = root / f"sentinel{number}"
            self._add(
                self.sentinels,
                ServerProcess(home, port, str(config), "--sentinel", host=host, prefix=prefix),
            )
        until_now(self._know_each_other, "the Sentinels know each other and the replicas")
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def url(self) -> str:
        hosts = ",".join(f"{one.host}:{one.port}" for one in self.sentinels)
        return f"redis+sentinel://{hosts}/{NAME}"

    def primary(self) -> ServerProcess:
        """The server that most Sentinels name."""
        ports = [self._named(one) for one in self.sentinels]
        port = max(set(ports), key=ports.count)
        return next(server for server in self.servers if server.port == port)

    def replicas(self) -> list[ServerProcess]:
        return [server for server in self.servers if server is not self.primary()]

    def fail_over_once(self) -> None:
        """Wait until they replace the primary, which is down, and let them replace no other.

        On a starved machine they hold the new one for down as well, and promote a replica that lacks
        messages: those are lost then.
        """
        until_now(lambda: any(map(self._fails_over, self.sentinels)), "a failover has begun")
        for one in self.sentinels:
            one.client.execute_command(
                "SENTINEL", "SET", NAME, "down-after-milliseconds", _NEVER_DOWN_MS
            )

    def _fails_over(self, sentinel: ServerProcess) -> bool:
        return "failover_in_progress" in _facts(sentinel)["flags"]

    def _place(self, number: int) -> tuple[str, list[str]]:
        """Address and beginning of the command line of a server or Sentinel."""
        if self._sides is None:
            return "127.0.0.1", []
        return (self._sides.near, []) if number else (self._sides.far, self._sides.prefix)

    def _behind(self, host: str, port: int) -> str:
        """The address on which a server listens that is found at another."""
        if self._front is None:
            return host
        self._front((_HIDDEN, port), port)
        return _HIDDEN

    def _add(self, group: list[ServerProcess], process: ServerProcess) -> None:
        group.append(process)
        self._stack.callback(process.close)

    def _in_sync(self) -> int:
        info: dict[str, Any] = self.servers[0].client.info("replication")  # type: ignore[assignment]
        return sum(info[f"slave{n}"]["state"] == "online" for n in range(info["connected_slaves"]))

    def _know_each_other(self) -> bool:
        for one in self.sentinels:
            facts = _facts(one)
            if int(facts["num-other-sentinels"]) != 2 or int(facts["num-slaves"]) != 2:
                return False
        return True

    def _named(self, sentinel: ServerProcess) -> int:
        with contextlib.suppress(redis.RedisError):
            found: Any = sentinel.client.execute_command(
                "SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME
            )
            return int(found[1])
        return 0


def _facts(sentinel: ServerProcess) -> dict[str, Any]:
    """What a Sentinel says of the primary."""
    found: Any = sentinel.client.execute_command("SENTINEL", "MASTER", NAME)
    return found if isinstance(found, dict) else dict(zip(found[::2], found[1::2], strict=True))
