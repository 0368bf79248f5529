"""The ports of the HTTP side in memory, and a server on a free port of the loopback."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from app.broadcast.queue import Entry, Settled
from app.config import Settings, load
from app.errors import BackplaneUnavailable, ClientError, QueueOverflow
from app.http.audit import Audit
from app.http.bodies import ReceivedBodies
from app.http.budgets import Budgets
from app.http.clients import Clients
from app.http.context import HttpContext
from app.http.cors import Hosts, Origins
from app.http.routes import add_routes
from app.http.writers import Writers
from app.presence import Presence
from app.sessions.auth import TokenVerifier
from app.sessions.registry import Registry
from app.sessions.roster import Roster
from app.transport.input import InputAccount
from app.turns import SLICE
from app.types import Draft, Message, Position, WorkerRow
from tests.support.slots import TableSlots


def worker_row(
    index: int = 0,
    pid: int = 100,
    state: str = "ready",
    connections: int = 0,
    **stats: object,
) -> WorkerRow:
    return WorkerRow(
        index=index,
        pid=pid,
        started=1_700_000_000.0,
        generation=1,
        state=state,  # type: ignore[arg-type]
        connections=connections,
        stats=stats,
    )


def _settle(entry: Entry, future: asyncio.Future[Position]) -> None:
    error = future.exception()
    assert error is None or isinstance(error, ClientError)
    entry.settle(future.result() if error is None else error)


class MemoryStreams:
    """Queue and history in one: what is published can be read at once."""

    def __init__(self) -> None:
        self.messages: dict[str, list[Message]] = {}
        self.ids: dict[str, int] = {}
        self.drafts: list[Draft] = []
        self.away = False
        self.full = False
        self.evicting: set[str] = set()

    def submit(self, draft: Draft) -> asyncio.Future[Position]:
        if self.full:
            raise QueueOverflow
        self.drafts.append(draft)
        future: asyncio.Future[Position] = asyncio.get_running_loop().create_future()
        if self.away:
            future.set_exception(BackplaneUnavailable())
        elif draft.id in self.evicting:
            future.set_exception(QueueOverflow())
        else:
            future.set_result(self._store(draft))
        return future

    def submit_all(self, drafts: Sequence[Draft], settled: Settled) -> list[Entry | QueueOverflow]:
        results: list[Entry | QueueOverflow] = []
        for draft in drafts:
            try:
                future = self.submit(draft)
            except QueueOverflow as error:
                results.append(error.with_traceback(None))
                continue
            entry = Entry(draft, settled, 0.0)
            future.add_done_callback(functools.partial(_settle, entry))
            results.append(entry)
        return results

    def _store(self, draft: Draft) -> Position:
        known = self.ids.get(draft.id) if draft.once else None
        stream = self.messages.setdefault(draft.type, [])
        if known is None:
            known = self.ids[draft.id] = len(stream) + 1
            stream.append(Message(draft.type, "e1", known, draft.event, draft.body, draft.accepted))
            return Position("e1", known)
        return Position("e1", known, maybe_known=True)

    async def newest(self, type: str, limit: int, before: int | None) -> tuple[list[Message], bool]:
        if self.away:
            raise BackplaneUnavailable
        found = [m for m in self.messages.get(type, []) if before is None or m.seq < before]
        return found[-limit:], len(found) > limit

    async def latest(self, type: str) -> Message | None:
        found, _ = await self.newest(type, 1, None)
        return found[0] if found else None


class MemoryFields:
    """The presence's place in the backplane."""

    def __init__(self) -> None:
        self.fields: dict[str, str] = {}
        self.away = False
        self.reads = 0
        self.gate: asyncio.Event | None = None

    async def get(self) -> dict[str, str]:
        self.reads += 1
        fields = dict(self.fields)
        if self.gate is not None:
            await self.gate.wait()
        if self.away:
            raise BackplaneUnavailable
        return fields

    async def set(self, fields: Mapping[str, str]) -> None:
        if self.away:
            raise BackplaneUnavailable
        self.fields |= fields


class NoOthers:
    """The way to other workers where there are none."""

    host_id = "lab"

    async def send_and_read_back(self, message: dict[str, Any], /) -> None:
        raise BackplaneUnavailable

    async def send_to_all(self, message: dict[str, Any], /) -> None:
        raise BackplaneUnavailable

    def start_task(self, work: Coroutine[Any, Any, Any], /) -> object:
        return asyncio.get_running_loop().create_task(work)


async def _no_series(_range: str) -> bytes:
    return b"{}"


class HttpSide:
    """The HTTP side of one worker, and the ports behind it."""

    def __init__(self, settings: Settings) -> None:
        self.slots = TableSlots(settings)
        self.slots.show([worker_row()])
        self.streams = MemoryStreams()
        self.fields = MemoryFields()
        self.requests: list[tuple[str, str, int]] = []
        self.refused: list[tuple[str, str | None]] = []
        self.backplane = True
        self.warnings: list[str] = []
        self.fault: str | None = None
        self.writable = True
        self.accepting = False
        self.silences: dict[int, float] = {}
        """Seconds since workers said something of themselves, by pid; others: by the clock."""
        self.local_faults: list[str] = []
        self.seconds = 1_700_000_100.0
        clients = Clients(settings.trusted_proxies)
        self.context = HttpContext(
            settings=settings,
            slots=self.slots,
            publisher=self.streams,
            history=self.streams,
            presence=Presence(self.fields.get, self.fields.set, now=lambda: self.seconds),
            verifier=(verifier := TokenVerifier(settings)),
            writers=Writers(settings, verifier),
            audit=Audit(settings.audit_rate),
            clients=clients,
            origins=Origins(settings, clients),
            hosts=Hosts(settings, clients),
            budgets=Budgets(0, 0),
            roster=Roster(NoOthers(), Registry(), self.slots, is_alone=True, host="lab"),
            received=ReceivedBodies(InputAccount(settings.max_incoming_bytes)),
            room=contextlib.nullcontext,
            slice=lambda: SLICE,
            count_request=lambda *request: self.requests.append(request),
            note_refused=lambda reason, origin: self.refused.append((reason, origin)),
            series=_no_series,
            machine_status=dict,
            started_at=1_700_000_000.0,
            version="1.2.3",
            accepting=lambda: self.accepting,
            silent_for=lambda row: self.silences.get(row.pid, self.seconds - row.updated),
            backplane_available=lambda: self.backplane,
            backplane_writable=lambda: self.writable,
            backplane_fault=lambda: self.fault,
            backplane_replica=lambda: None,
            warnings=lambda: self.warnings,
            local_faults=lambda: self.local_faults,
            now=lambda: self.seconds,
        )
        self.app = web.Application()
        add_routes(self.app, self.context)
        self.client: TestClient[web.Request, web.Application]


@contextlib.asynccontextmanager
async def http_side(**environ: str) -> AsyncIterator[HttpSide]:
    """Serve the routes with these settings on a free port of the loopback."""
    side = HttpSide(load({"WORKERS": "1"} | environ))

    async def fail(_request: web.Request) -> web.Response:
        raise RuntimeError("a secret of the inside")

    side.app.router.add_get("/fail", fail)
    async with TestClient(TestServer(side.app)) as side.client:
        yield side
