"""What must be as it was after a storm: honest clients, processes, what the service holds."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

from prometheus_client.parser import text_string_to_metric_families

from tests.support.envelopes import walk
from tests.support.plain import PlainClient
from tests.support.service import Service
from tests.support.sioclient import SioClient
from tests.support.waiting import until
from tests.torture.recordings import token

SHARE = float(os.environ.get("TORTURE", "0"))
"""The part of the long form of `make torture` that runs, 1 for all of it; 0: the short form of CI."""
LONG = SHARE > 0
FIRST = int(os.environ.get("TORTURE_FIRST", "0"))
"""Number of the input with which a test of numbered inputs begins, to go on with a run that was cut."""


def scaled(short: int, long: int) -> int:
    """How often something is done: a part of the long form, but no less than in the short one."""
    return max(short, round(long * SHARE))


TICK = 0.05
"""Seconds between two messages that the witnesses must get."""
SETTLE = 45.0
"""Seconds within which the service lets go of what belonged to clients that are gone."""
SLACK = {
    "realtime_connections": 0,
    "realtime_users": 0,
    "realtime_sessions": 0,
    "realtime_workers": 0,
    "realtime_rooms": 0,
    "realtime_awaited_acks": 0,
    "realtime_incoming_bytes": 0,
    "realtime_write_buffer_bytes": 0,
    "realtime_slow_consumers": 0,
    "realtime_queue_messages": 3,
    "realtime_queue_bytes": 3000,
    "realtime_groups": 4,
    "realtime_tasks": 12,
    "realtime_open_descriptors": 12,
}
"""By how much each of these may differ from what it was. Empty groups live on until the next
flush; messages to the witnesses, connections to the backplane and this very scrape come and go."""


async def figures(service: Service) -> dict[str, float]:
    """Every metric of a service, summed over its labels."""
    answer = await service.get("/metrics")
    assert answer.status == 200, answer
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(answer.body):
        for sample in family.samples:
            if sample.name.endswith("_bucket"):
                continue
            if sample.labels.get("kind", "resident") == "resident":
                found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def memory(service: Service) -> dict[int, int]:
    """Resident bytes of each worker, by process id."""
    page = os.sysconf("SC_PAGE_SIZE")
    sizes = {}
    for pid in service.worker_pids():
        with open(f"/proc/{pid}/statm") as statm:
            sizes[pid] = int(statm.read().split()[1]) * page
    return sizes


@dataclass
class Witnesses:
    """An honest client of each protocol that must get every message all the while."""

    plain: PlainClient
    socketio: SioClient
    ticks: int = 0
    failed: list[str] = field(default_factory=list)
    """Publishes that were not answered with 200."""

    def check(self) -> None:
        """Assert that both have every message, in order, with no gap."""
        for received in (self.plain.received, self.socketio.received):
            story = walk(received, "status")
            assert not story.gaps, story.gaps
            ours = [got for got in received if got.get("event") == "tick"]
            assert len(ours) >= self.ticks
        assert not self.failed, self.failed[:3]


def has_reached(client: SioClient, seq: int) -> bool:
    """Whether a message of this `seq`, or one behind it, has come."""
    return any(got.get("seq", 0) >= seq for got in client.received[-50:])


@asynccontextmanager
async def witnesses(service: Service) -> AsyncIterator[Witnesses]:
    """Two honest clients, and a publisher whose message they get every `TICK`."""
    auth = {"token": token("witness")} if "AUTH_SECRET" in service.settings else {"user": "witness"}
    plain = await PlainClient.open(service, types="status", **auth)  # type: ignore[arg-type]
    socketio = SioClient()
    await socketio.connect(service, {"user": "other"} if "user" in auth else auth)
    await plain.barrier()
    seen = Witnesses(plain, socketio)

    ended = asyncio.Event()

    async def publish() -> None:
        while not ended.is_set():
            answer = await service.post(
                "/ws/broadcast", {"type": "status", "event": "tick", "data": {"n": seen.ticks}}
            )
            if answer.status == 200:
                seen.ticks += 1
                seq = answer.body["seq"]
                await plain.wait_seq("status", seq)
                await until(
                    partial(has_reached, socketio, seq),
                    f"seq {seq} at the Socket.IO witness",
                )
            else:
                seen.failed.append(f"{answer.status} {answer.body}")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), TICK)

    task = asyncio.create_task(publish())
    try:
        yield seen
        assert not task.done(), task.exception()
        # The last message has been published and must arrive as well.
        ended.set()
        await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await plain.close()
        await socketio.close()


@dataclass(frozen=True)
class Before:
    """What a service held at rest."""

    figures: Mapping[str, float]
    pids: frozenset[int]
    memory: Mapping[int, int]


async def at_rest(service: Service) -> Before:
    """Look at a service whose clients are not torturing it now."""
    await asyncio.sleep(2.5)  # figures are shown once a second
    return Before(
        await figures(service),
        frozenset(service.worker_pids()),
        await asyncio.to_thread(memory, service),
    )


async def back_at_rest(service: Service, before: Before) -> dict[str, float]:
    """Wait until a service holds what it did before, or fail with what it still holds."""
    left: dict[str, tuple[float, float]] = {}

    async def is_back() -> bool:
        now = await figures(service)
        left.clear()
        left.update(
            {
                name: (before.figures.get(name, 0.0), now.get(name, 0.0))
                for name, slack in SLACK.items()
                if abs(now.get(name, 0.0) - before.figures.get(name, 0.0)) > slack
            }
        )
        return not left

    try:
        await until(is_back, "the service holds what it did before", SETTLE)
    except AssertionError as error:
        raise AssertionError(f"held before and now: {left}") from error
    return await figures(service)


_LEVEL = re.compile(r"^\S+ (ERROR|CRITICAL)\b.*$", re.MULTILINE)


def errors_in(log: str) -> list[str]:
    """Lines of a log that tell of a fault of the service."""
    return [found.group(0) for found in _LEVEL.finditer(log)]
