"""The worker that takes connections over: listens for offers, judges them, serves what it takes.

See `channel.py` for the conversation and `app/sessions/handoff/transfer.py` for the sessions.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from app.backplane.worker_names import Place
from app.sessions.handoff import shape
from app.sessions.handoff.transfer import Transfer
from app.types import Position
from workers.handoff import http
from workers.handoff.channel import (
    DEATH_SECONDS,
    LISTENERS,
    TIMEOUT,
    MessageSocket,
    Offer,
    close_all,
    from_memory,
)
from workers.handoff.http import HttpHandoff
from workers.shared import paths
from workers.shared.polling import wait_until
from workers.shared.processes import start_time
from workers.shared.slots import READY, ROWS, SlotTable

_PATIENCE = 4 * TIMEOUT
"""Seconds that a giver may take for its next message."""
_BACKLOG = 1024
"""Conversations that wait to be accepted: lanes of all workers that leave. One more is refused."""
_ACCEPT_PAUSE = 0.1
"""Seconds until a successor that could not accept a conversation tries again."""
_DEATH_INTERVAL = 0.01
"""Seconds between two looks whether a giver has died."""

logger = logging.getLogger(__name__)


class OfferListener:
    """The successor's end of conversations: takes connections that other workers offer.

    Args:
        path: where to listen.
        judge: the states of an offer as `take` is to get them; None of one that is refused.
        take: serves connections: the offer, the accepted states, their descriptors.
        is_alive: whether the worker of an offer is still there.
        requests: by the kind of what is no offer, the descriptors that answer it; they are
            closed when they were sent.
    """

    def __init__(
        self,
        path: Path,
        judge: Callable[[Offer], list[Any]],
        take: Callable[[Offer, Sequence[Any], Sequence[int]], Awaitable[None]],
        is_alive: Callable[[Offer], bool],
        requests: Mapping[str, Callable[[], list[int]]] = MappingProxyType({}),
    ) -> None:
        self._requests = requests
        self._path = path
        self._judge = judge
        self._take = take
        self._is_alive = is_alive
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def listening(self) -> bool:
        """Whether this worker takes connections over."""
        return self._listener is not None

    def listen_anew(self) -> None:
        """Listen on a new socket in place of one that was removed; talks go on."""
        old, accepting = self._listener, self._accepting
        if old is not None and accepting is not None:
            # Not before: its number would be the new one's, which the loop then forgets with it.
            accepting.add_done_callback(lambda _: old.close())
            accepting.cancel()
        self.start()

    def start(self) -> None:
        """Listen from now on."""
        self._path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(self._path))
        self._path.chmod(0o600)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
        self._listener = listener
        self._accepting = self._begin(self._accept(listener))

    async def stop(self) -> None:
        """Take nothing more; a conversation under way is ended."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            self._path.unlink(missing_ok=True)

    def _begin(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except Exception as error:  # noqa: BLE001 (too many open files, as a rule)
                logger.error("No conversation about a handoff: %s", error)
                await asyncio.sleep(_ACCEPT_PAUSE)
                continue
            self._begin(self._converse(MessageSocket(connection, _PATIENCE)))

    async def _converse(self, connection: MessageSocket) -> None:
        try:
            while True:
                offer, descriptors = await connection.receive()
                await self._consider(connection, offer, descriptors)
        except EOFError:
            pass
        except (OSError, ValueError) as error:
            logger.warning("A handoff broke off: %s", error)
        except Exception:
            logger.exception("A handoff broke off")
        finally:
            connection.close()

    async def _consider(
        self, connection: MessageSocket, offer: Any, descriptors: list[int]
    ) -> None:
        mine = descriptors
        try:
            if not isinstance(offer, dict) or not isinstance(offer.get("kind", ""), str):
                raise ValueError("an offer is a JSON object")
            request = self._requests.get(offer.get("kind", ""))
            if request is not None:
                close_all(mine)
                mine = []
                mine = request()
                await connection.send(len(mine), mine)
                return
            await self._take_payload(offer, mine)
            states = self._weigh(offer, mine)
            answer = [state is not None for state in states]
            accepted = [state for state in states if state is not None]
            offered = mine
            mine = [fd for fd, taken in zip(offered, answer, strict=False) if taken]
            close_all([fd for fd in offered if fd not in mine])
            try:
                await connection.send(answer)
                word, strays = await connection.receive()
                close_all(strays)
                if word != "commit":
                    return
            except (OSError, EOFError):
                if not mine or await self._lives_on(offer):
                    raise
            taken, mine = mine, []
        finally:
            close_all(mine)
        await self._take(offer, accepted, taken)
        with contextlib.suppress(OSError):
            await connection.send("done")

    async def _take_payload(self, offer: Offer, descriptors: list[int]) -> None:
        """Replace the memory of an offer, the last of its descriptors, by the bytes in it."""
        states = offer.get("states")
        if not isinstance(states, list):
            raise ValueError("an offer has a list of states")
        offer.pop("chunks", None)
        if "payload" in offer and len(descriptors) == len(states) + 1:
            memory = descriptors.pop()
            try:
                offer["chunks"] = await asyncio.to_thread(from_memory, memory, offer["payload"])
            finally:
                close_all([memory])

    def _weigh(self, offer: Offer, descriptors: list[int]) -> list[Any]:
        """The states of an offer that would be taken; None of the others."""
        states = offer["states"]
        if len(states) != len(descriptors):
            logger.error("No descriptors left for connections of another worker")
            return [None] * len(states)
        if not all(map(_is_socket, descriptors)):
            raise ValueError("an offer has descriptors of sockets only")
        return self._judge(offer)

    async def _lives_on(self, offer: Offer) -> bool:
        """Whether the giver is there still, and not just about to end."""
        return not await wait_until(
            lambda: not self._is_alive(offer), DEATH_SECONDS, _DEATH_INTERVAL
        )


def _is_socket(descriptor: int) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(descriptor).st_mode)
    except OSError:
        return False


def _is_offer(offer: dict[str, Any]) -> bool:
    """Whether an offer has what its successor needs besides states."""
    giver, control = offer.get("giver"), offer.get("control")
    if not isinstance(giver, dict) or not shape.is_number(giver.get("born")):
        return False
    if not all(shape.is_count(giver.get(name)) for name in ("row", "generation", "pid")):
        return False
    if giver["row"] >= ROWS:
        return False
    return offer.get("kind") == http.KIND or shape.is_position(control)


class Successor:
    """Takes connections over from workers that leave.

    Args:
        data_dir: of the service.
        slots: the slot table.
        row: this worker's row.
        transfer: its sessions.
        http: its HTTP connections.
        listeners: gives duplicates of its listening sockets, for a second master.
    """

    def __init__(
        self,
        data_dir: Path,
        slots: SlotTable,
        row: int,
        transfer: Transfer,
        http: HttpHandoff,
        listeners: Callable[[], list[int]],
    ) -> None:
        self._data_dir = data_dir
        self._slots = slots
        self._row = row
        self._transfer = transfer
        self._http = http
        self._path = paths.successor_socket(data_dir, os.getpid())
        self._listener = OfferListener(
            self._path, self._judge, self._take, self._is_alive, {LISTENERS: listeners}
        )

    def start(self) -> None:
        """Be ready to take connections over; sockets of workers that were killed are removed."""
        for pid, stale in paths.successor_sockets(self._data_dir):
            if start_time(pid) is None:
                stale.unlink(missing_ok=True)
        self._listener.start()

    def is_there(self) -> bool:
        """Whether others find the socket on which this worker takes connections over."""
        return not self._listener.listening or self._path.exists()

    def restore(self) -> bool:
        """Listen anew where the socket was removed; False when it was not."""
        if self.is_there():
            return False
        paths.make_private(paths.runtime_dir(self._data_dir))
        self._listener.listen_anew()
        return True

    async def stop(self) -> None:
        """Take no more."""
        await self._listener.stop()

    def _judge(self, offer: dict[str, Any]) -> list[Any]:
        states = offer["states"]
        if not _is_offer(offer):
            raise ValueError("an offer names its giver and the position of its control stream")
        mine = self._slots.row(self._row)
        if mine is None or mine.state != READY:
            return [None] * len(states)
        if offer.get("kind") == http.KIND:
            return self._http.judge(states)
        return self._transfer.judge(states, offer.get("chunks", ()))

    async def _take(
        self, offer: dict[str, Any], states: Sequence[Any], descriptors: Sequence[int]
    ) -> None:
        if not states:
            return  # what is refused need not name its giver
        if offer.get("kind") == http.KIND:
            await self._http.take(states, descriptors)
            return
        giver = offer["giver"]
        await self._transfer.unpack(
            Place(giver["row"], giver["generation"]),
            states,
            descriptors,
            Position(*offer["control"]),
        )

    @staticmethod
    def _is_alive(offer: dict[str, Any]) -> bool:
        giver = offer["giver"]
        try:
            return bool(start_time(giver["pid"]) == giver["born"])
        except OSError:
            return True
