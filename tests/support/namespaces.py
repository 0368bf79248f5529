"""A network of two sides that can be cut: this one, and a network namespace. Needs root and iproute2."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import subprocess
import threading
from collections.abc import Coroutine
from typing import Any, Self, TypeVar

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000
_NET = "10.213.77"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


class TwoSides:
    """Started by `with`. What is to run on the far side is started with `prefix`."""

    def __init__(self) -> None:
        self._name = f"yj{os.getpid()}"
        self._link = f"yjl{os.getpid()}"
        self.near = f"{_NET}.1"
        """Address of this side."""
        self.far = f"{_NET}.2"
        """Address of the far side."""

    def __enter__(self) -> Self:
        peer = f"{self._link}p"
        _ip("netns", "add", self._name)
        try:
            _ip("link", "add", self._link, "type", "veth", "peer", "name", peer)
            _ip("link", "set", peer, "netns", self._name)
            _ip("addr", "add", f"{self.near}/24", "dev", self._link)
            _ip("link", "set", self._link, "up")
            # On the loopback of the far side, so that it stays when the link is down.
            _ip("-n", self._name, "addr", "add", f"{self.far}/32", "dev", "lo")
            _ip("-n", self._name, "link", "set", "lo", "up")
            self.heal()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        # The namespace goes later where a program still ends in it, and the link would with it.
        with contextlib.suppress(subprocess.CalledProcessError):
            _ip("link", "del", self._link)
        _ip("netns", "del", self._name)

    @property
    def prefix(self) -> list[str]:
        """Before the command of a program of the far side; its process id is the program's."""
        return ["ip", "netns", "exec", self._name]

    def cut(self) -> None:
        """Let nothing pass; what is sent is dropped without an error."""
        # The far end: this one keeps its route, else the packets would take another way out.
        _ip("-n", self._name, "link", "set", f"{self._link}p", "down")

    def heal(self) -> None:
        """Let everything pass."""
        peer = f"{self._link}p"
        _ip("-n", self._name, "link", "set", peer, "up")
        _ip("-n", self._name, "route", "replace", f"{_NET}.0/24", "dev", peer, "src", self.far)

    def enter(self) -> None:
        """Let the sockets that this thread makes be on the far side."""
        descriptor = os.open(f"/run/netns/{self._name}", os.O_RDONLY)
        try:
            library = ctypes.CDLL(None, use_errno=True)
            if library.setns(descriptor, _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        finally:
            os.close(descriptor)


class FarLoop:
    """An event loop on the far side, in a thread of its own. Started by `with`."""

    def __init__(self, sides: TwoSides) -> None:
        self._sides = sides
        self._loop = asyncio.new_event_loop()
        self._entered = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._entered.wait(5)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    async def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run it there, and return what it returns."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self._loop))

    def _run(self) -> None:
        self._sides.enter()
        asyncio.set_event_loop(self._loop)
        self._entered.set()
        self._loop.run_forever()
