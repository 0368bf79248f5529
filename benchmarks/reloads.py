"""Deploys and crashes under a steady stream: what 10 000 clients notice of them.

Two workers, half of the clients plain JSON and half Socket.IO, 20 messages a second. Servers are
not pinned to one processor here; the clients are one process on the last one.
"""

from __future__ import annotations

import http.client
import os
import re
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from benchmarks.procs import BenchmarkError, LoadClient, Server, service, stock_under_gunicorn
from benchmarks.scenarios import Figures, Size, say
from benchmarks.stream import INTERVAL, MemorySampler, Publisher, Strangers
from workers.shared import paths
from workers.shared.slots import READY, SlotTable

SUBJECT = "service, 2 workers"
STOCK = "stock"
_STOCK_CLIENTS = 1000
RELOADS = 3
_SETTLE = 1.5  # seconds: default subscriptions flow after the first frame or one second
_CALM = 5.0  # seconds of the stream without a fault, to compare with
_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)


def handoff(size: Size, figures: Figures) -> None:
    """Reload three times under the stream; no client may notice more than a short pause."""
    say(f"handoff: {size.many} clients, HUP times {RELOADS}")
    with service(2, pinned=False) as server, LoadClient(module="fleet") as fleet:
        slots = _open(fleet, server, size.many)
        figures.add("handoff_before_mb", SUBJECT, server.pss() / 1e6)
        with Publisher(server) as publisher:
            time.sleep(1)
            fleet("mark")
            strangers = Strangers(server, fleet.pid)
            time.sleep(_CALM)
            _add_pauses(figures, "handoff_calm", fleet("report"))
            for number in range(RELOADS):
                time.sleep(2)
                fleet("mark_pauses")
                _reload(server, slots, fleet, figures, f"handoff: reload {number + 1}")
            publisher.stop()
            seen = arrived(fleet, publisher.answered[-1])
        figures.add("handoff_strangers", SUBJECT, strangers.share())
        figures.add("handoff_rate", SUBJECT, publisher.rate)
        figures.add("handoff_publish_max_ms", SUBJECT, publisher.slowest * 1e3)
        figures.add("handoff_repeats", SUBJECT, publisher.repeats.total())
        _add_holes(figures, "handoff", seen, publisher)
        _add_own_figures(figures, server)
        if publisher.repeats:
            figures.notes.append(f"handoff: requests sent again: {dict(publisher.repeats)}")

    _reload_stock(figures, min(size.many, _STOCK_CLIENTS))


def _reload_stock(figures: Figures, clients: int) -> None:
    """The same signal to python-socketio as it comes, without a stream."""
    say(f"handoff: stock, {clients} clients, HUP")
    with stock_under_gunicorn() as server, LoadClient(module="fleet") as fleet:
        connect(fleet, server, ("sio",), clients)
        fleet("mark")
        server.signal(signal.SIGHUP)
        deadline = time.monotonic() + 15
        while fleet("counts")["lost"] < clients and time.monotonic() < deadline:
            time.sleep(0.2)
        figures.add("handoff_stock_clients", STOCK, clients)
        figures.add("handoff_stock_closed", STOCK, fleet("counts")["lost"])


def _reload(
    server: Server, slots: SlotTable, fleet: LoadClient, figures: Figures, name: str
) -> None:
    lost = fleet("counts")["lost"]
    old = {row.pid for row in slots.rows()}
    moved = None
    with MemorySampler(server) as memory:
        begin = time.monotonic()
        server.signal(signal.SIGHUP)
        while time.monotonic() < begin + 60:
            rows = [row for row in slots.rows() if row.pid in old]
            if moved is None and not any(row.connections for row in rows):
                moved = time.monotonic() - begin
            if not any(Path(f"/proc/{pid}").exists() for pid in old):
                break
            time.sleep(0.02)
        else:
            raise BenchmarkError(f"old workers are still there after 60 s:\n{server.log()}")
        gone = time.monotonic() - begin
        time.sleep(1)  # the last client's pause ends with its next message
    seen = fleet("report")
    say(f"{name}: {gone:.1f} s, longest pause {seen['pause_s']['max'] - INTERVAL:.2f} s")
    figures.add("handoff_seconds", SUBJECT, gone)
    figures.add("handoff_moved_seconds", SUBJECT, moved or gone)
    figures.add("handoff_closed", SUBJECT, seen["lost"] - lost)
    figures.add("handoff_peak_mb", SUBJECT, memory.peak / 1e6)
    _add_pauses(figures, "handoff", seen)


def killed_worker(size: Size, figures: Figures) -> None:
    """Kill -9 of one worker under the stream; its clients retry at once, and recover.

    The cap on connections is as high as there are clients: a place that the dead worker held must
    be free again for them.
    """
    say(f"killed-worker: {size.many} clients")
    cap = str(size.many)
    with (
        service(2, pinned=False, MAX_TOTAL_CONNECTIONS=cap) as server,
        LoadClient(module="fleet") as fleet,
    ):
        slots = _open(fleet, server, size.many)
        with Publisher(server) as publisher:
            time.sleep(2)
            fleet("mark")
            strangers = Strangers(server, fleet.pid)
            victim = max(slots.rows(), key=lambda row: row.connections)
            killed = time.monotonic()
            os.kill(victim.pid, signal.SIGKILL)
            while (seen := fleet("counts"))["returned"] < victim.connections:
                if time.monotonic() > killed + 60:
                    break
                time.sleep(0.1)
            figures.add("killed_strangers", SUBJECT, strangers.share())
            say(f"killed-worker: {seen['returned']} of {seen['lost']} are back")
            time.sleep(2)
            publisher.stop()
            seen = arrived(fleet, publisher.answered[-1])
        figures.add("killed_clients", SUBJECT, victim.connections)
        figures.add("killed_lost", SUBJECT, seen["lost"])
        figures.add("killed_away", SUBJECT, seen["away"])
        figures.add("killed_all_back_s", SUBJECT, seen["all_back_s"] if not seen["away"] else 60.0)
        for part, value in seen["back_s"].items():
            figures.add(f"killed_back_{part}_s", SUBJECT, value)
        figures.add("killed_tries", SUBJECT, seen["tries"] / max(seen["lost"], 1))
        figures.add("killed_not_recovered", SUBJECT, seen["lost"] - seen["recovered"])
        figures.add("killed_known_repeats", SUBJECT, seen["repeated"])
        figures.notes.append(f"killed-worker: failed attempts: {seen['refused'] or 'none'}")
        _add_holes(figures, "killed", seen, publisher)


def _open(fleet: LoadClient, server: Server, clients: int) -> SlotTable:
    """Connect all clients, and wait until their subscriptions flow."""
    slots = SlotTable(paths.slots_file(Path(server.directory)))
    deadline = time.monotonic() + 60
    while sum(row.state == READY for row in slots.rows()) < 2:
        time.sleep(0.05)
        if time.monotonic() > deadline:
            raise BenchmarkError(f"a worker is not ready:\n{server.log()}")
    connect(fleet, server, ("json", "sio"), clients)
    return slots


def connect(fleet: LoadClient, server: Server, wires: Sequence[str], clients: int) -> None:
    """Connect so many clients, an equal part of each wire, and wait until messages flow to them."""
    for wire in wires:
        fleet("connect", port=server.port, wire=wire, clients=clients // len(wires))
    deadline = time.monotonic() + 60
    while (seen := fleet("counts"))["ready"] < clients // len(wires) * len(wires):
        time.sleep(0.2)
        if time.monotonic() > deadline:
            raise BenchmarkError(f"only {seen} of {clients} connected:\n{server.log()}")
    time.sleep(_SETTLE)


def arrived(fleet: LoadClient, last: int) -> dict[str, Any]:
    """What the clients report when all have the last message, or 15 s have passed."""
    deadline = time.monotonic() + 15
    while (seen := fleet("report"))["least"] < last and time.monotonic() < deadline:
        time.sleep(0.2)
    return seen | {"behind": max(0, last - seen["least"])}


def _add_pauses(figures: Figures, name: str, seen: dict[str, Any]) -> None:
    for part, value in seen["pause_s"].items():
        figures.add(f"{name}_pause_{part}_s", SUBJECT, max(0.0, value - INTERVAL))
    figures.add(f"{name}_round_s", SUBJECT, seen["round_s"])


def _add_holes(figures: Figures, name: str, seen: dict[str, Any], publisher: Publisher) -> None:
    figures.add(f"{name}_missing", SUBJECT, seen["missing"] + seen["behind"])
    figures.add(f"{name}_repeated", SUBJECT, seen["repeated"])
    figures.add(f"{name}_twice", SUBJECT, publisher.twice)


def _add_own_figures(figures: Figures, server: Server) -> None:
    """What the service itself says about its reloads."""
    samples = _metrics(server)
    for result in ("passed", "taken", "drained", "lost"):
        value = samples.get(("realtime_handed_over_total", f'result="{result}"'), 0.0)
        figures.add(f"handoff_own_{result}", SUBJECT, value)
    replayed = samples.get(("realtime_messages_replayed_total", ""), 0.0)
    figures.add("handoff_own_replayed", SUBJECT, replayed)
    for part, value in bucket_percentiles(samples, "realtime_handover_pause_seconds").items():
        figures.add(f"handoff_own_pause_{part}_s", SUBJECT, value)
    lines = re.findall(r"Handed \d+ connections.*", server.full_log())
    figures.notes += [f"handoff: the service says: {line}" for line in lines]


def bucket_percentiles(samples: Mapping[tuple[str, str], float], name: str) -> dict[str, float]:
    """Upper bounds of the buckets in which they fall."""
    buckets = sorted(
        (float(labels.split('"')[1]), value)
        for (sample, labels), value in samples.items()
        if sample == f"{name}_bucket"
    )
    total = buckets[-1][1] if buckets else 0.0
    parts = {"p50": 0.5, "p99": 0.99, "max": 1.0} if total else {}
    return {
        part: next(bound for bound, value in buckets if value >= share * total)
        for part, share in parts.items()
    }


def _metrics(server: Server) -> dict[tuple[str, str], float]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    with closing(connection):
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    return {(name, labels): float(value) for name, labels, value in _SAMPLE.findall(text)}


SCENARIOS: dict[str, Callable[[Size, Figures], None]] = {
    "handoff": handoff,
    "killed-worker": killed_worker,
}
