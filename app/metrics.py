"""Every figure that a worker counts, under its Prometheus name.

With PROMETHEUS_MULTIPROC_DIR in the environment each process counts in files of its own in that
directory, which survive it, and `workers/shared/metrics_files.py` joins them; there can be one `Metrics`
per process then. Without it the figures live in `Metrics.registry`, and tests make as many as
they like.

What the slot table knows exactly (connections, users, queue) is not counted here: the metrics
page reads it at the scrape. See `app/http/metrics_page.py`.

Increments cost about a microsecond: count once per flush with `inc(n)`, not once per receiver, and
set gauges from the worker's own tick, not on every change.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import Generic, Literal, TypeVar, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge

from app.backplane.faults import CAUSES
from app.errors import CloseCode, ErrorCode
from app.prometheus_private import PlainCounter, WeightedHistogram, to_steps, use_process_files
from app.types import GapReason, Priority

KeyT = TypeVar("KeyT", bound=Hashable)
MetricT = TypeVar("MetricT")
_Mode = Literal["livesum", "livemin", "livemax"]

FLUSH_BUCKETS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
)  # fmt: skip
"""Seconds. A flush to 5 000 connections takes some 0.1 s."""

LATENCY_BUCKETS = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
"""Seconds. A publish waits for an absent backplane for at most five."""

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_CLOSE_CODES = frozenset({*(int(code) for code in CloseCode), 1003, 1005, 1006, 1010, 1011, 1013})
_ACTIONS = ("subscribe", "unsubscribe", "get_history", "ping", "ack", "presence", "auth")
_OTHER = "other"


class Children(dict[KeyT, MetricT], Generic[KeyT, MetricT]):
    """The children of a labelled metric, each bound to its labels at the first use.

    Args:
        bind: `labels` of the parent. A key is the label's value, or a tuple when it has several.
        allowed: the only keys; what is not among them counts as `other`. Empty: the caller
            promises that its keys are few and not chosen by clients.
    """

    def __init__(self, bind: Callable[..., MetricT], allowed: Iterable[KeyT] = ()) -> None:
        super().__init__()
        self._bind = bind
        self._allowed = frozenset(allowed)
        self._other: MetricT | None = None

    def __missing__(self, key: KeyT) -> MetricT:
        if self._allowed and key not in self._allowed:
            if self._other is None:
                self._other = self._bind(_OTHER)
            return self._other
        labels = key if isinstance(key, tuple) else (key,)
        child = self._bind(*labels)
        self[key] = child
        return child


class Metrics:
    """All metrics of this worker.

    Args:
        types: the message types, which label what is counted per type. Each starts at zero, so
            that rates are right from the first message; other types count as `other`.
    """

    def __init__(self, types: Iterable[str] = ()) -> None:
        directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        self.directory = Path(directory) if directory else None
        """Where the processes keep their figures; None: in the registry."""
        if self.directory is not None:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            use_process_files()
        self.registry = CollectorRegistry()
        types = tuple(types)
        self._define_messages(types)
        self._define_connections(types)
        self._define_users()
        self._define_requests()
        self._define_backplane()
        self._define_reading(types)
        self._define_replica()
        self._define_held()
        self._define_process()

    def _define_messages(self, types: tuple[str, ...]) -> None:
        self.published: Children[str, Counter] = self._counters(
            "messages_published", "Messages stored in a stream.", ["type"], types
        )
        self.delivered: Children[str, Counter] = self._counters(
            "messages_delivered",
            "Messages written to connections, counted once per connection.",
            ["type"],
            types,
        )
        for name in types:
            self.published[name].inc(0)
            self.delivered[name].inc(0)
        self.queue_dropped: Children[str, Counter] = self._counters(
            "queue_dropped",
            "Messages dropped from the full broadcast queue.",
            ["priority"],
            [priority.name.lower() for priority in Priority],
        )
        self.gaps: Children[str, Counter] = self._counters(
            "gaps", "Gap events sent to clients, by reason.", ["reason"], get_args(GapReason)
        )
        self.flush_duration = WeightedHistogram(
            "realtime_flush_duration_seconds",
            "Time to write one flush to all of its connections.",
            buckets=FLUSH_BUCKETS,
            registry=self.registry,
        )
        self.delivery_latency = WeightedHistogram(
            "realtime_delivery_latency_seconds",
            "Time from accepting a message to writing it, counted once per connection.",
            buckets=LATENCY_BUCKETS,
            registry=self.registry,
        )

    def _define_connections(self, types: tuple[str, ...]) -> None:
        self.opened: Children[str, Counter] = self._counters(
            "connections_opened",
            "Connections accepted, by protocol.",
            ["protocol"],
            ["socketio", "plain", "sse"],
        )
        self.refused: Children[str, Counter] = self._counters(
            "connections_refused", "Connections refused, by reason.", ["reason"]
        )
        self.closed: Children[int, Counter] = self._counters(
            "connections_closed", "Connections closed, by close code.", ["code"], _CLOSE_CODES
        )
        self.subscriptions: Children[str, Gauge] = Children(
            self._gauge(
                "subscriptions", "Connections subscribed to a type.", "livesum", ["type"]
            ).labels,
            types,
        )
        self.slow_consumers = self._gauge(
            "slow_consumers", "Connections above the write high-water mark.", "livesum"
        )
        self.replayed = self._counter(
            "messages_replayed", "Messages sent from history to connections that had fallen behind."
        )
        self.handed_over: Children[str, Counter] = self._counters(
            "handed_over",
            "Connections of exiting workers: passed on, taken over, drained, or lost in transit.",
            ["result"],
            ["passed", "taken", "drained", "lost"],
        )
        self.handoff_pause = WeightedHistogram(
            "realtime_handover_pause_seconds",
            "Time in which neither worker served a connection during its handoff.",
            buckets=LATENCY_BUCKETS,
            registry=self.registry,
        )

    def _define_users(self) -> None:
        self.announced: Children[str, Counter] = self._counters(
            "users_announced",
            "Users that `join` and `leave` announced.",
            ["event"],
            ["join", "leave"],
        )
        self.announced_unnamed = self._counter(
            "users_announced_unnamed", "Users that a `join` or `leave` counted and did not name."
        )
        self.attendance_refused = self._counter(
            "users_unlisted", "Users left out of the list of users since it was full."
        )

    def _define_requests(self) -> None:
        self.requests: Children[str, Counter] = self._counters(
            "actions", "Actions requested over WebSocket connections.", ["action"], _ACTIONS
        )
        self.errors: Children[str, Counter] = self._counters(
            "errors",
            "Errors reported to clients: `error` events, acknowledgements and CONNECT_ERROR packets.",
            ["code"],
            [code for code in ErrorCode if not code.is_http_only],
        )
        self.http_requests: Children[tuple[str, str, int], Counter] = self._counters(
            "http_requests", "HTTP requests answered.", ["route", "method", "status"]
        )
        self.writes: Children[tuple[str, str], Counter] = self._counters(
            "writes",
            "Calls that write, by the label of their token (`clients`: tokens of clients, `none`:"
            " no valid one) and the status of the answer.",
            ["token", "status"],
        )
        self.key_fetches: Children[str, Counter] = self._counters(
            "key_fetches", "Fetches of AUTH_JWKS_URL, by result.", ["result"], ("ok", "failed")
        )
        self.received_bytes = self._counter("received_bytes", "Bytes read from clients' sockets.")
        self.sent_bytes = self._counter("sent_bytes", "Bytes written to clients' sockets.")
        self.held_back = self._counter(
            "held_back", "Pauses in reading from connections that exceed their share."
        )

    def _define_backplane(self) -> None:
        self.backplane_up = self._gauge(
            "backplane_up",
            "1 while every worker of the machine reaches the backplane, else 0.",
            "livemin",
        )
        self.backplane_writable = self._gauge(
            "backplane_writable",
            "1 while every worker of the machine can publish, else 0.",
            "livemin",
        )
        # Until a worker that starts has looked it says nothing against the others, as in /status.
        self.backplane_up.set(1)
        self.backplane_writable.set(1)
        self.backplane_errors: Children[str, Counter] = self._counters(
            "backplane_errors", "Failed calls to the backplane, by cause.", ["cause"], CAUSES
        )
        for cause in CAUSES:
            self.backplane_errors[cause].inc(0)
        self.backplane_reconnects = self._counter(
            "backplane_reconnects", "Reconnections to the backplane."
        )
        self.backplane_type_failing = self._gauge(
            "backplane_type_failing",
            "1 while messages of a type cannot be published or read on its node of a Cluster, else 0.",
            "livemax",
            ["type"],
        )

    def _define_reading(self, types: tuple[str, ...]) -> None:
        self.backplane_lag = self._gauge(
            "backplane_lag_seconds",
            "Age of the last message read from a stream at the time of reading; maximum over workers.",
            "livemax",
        )
        self.deaf_workers = self._gauge(
            "deaf_workers", "Workers that no longer receive messages from the backplane.", "livesum"
        )
        self.unreadable: Children[str, Counter] = self._counters(
            "unreadable_entries",
            "Stream entries skipped because they are not valid messages of this service.",
            ["stream"],
            (*types, "control"),
        )
        for name in (*types, "control"):
            self.unreadable[name].inc(0)
        self.history_cache_bytes = self._gauge(
            "history_cache_bytes", "Messages held in memory for clients that catch up.", "livesum"
        )

    def _define_replica(self) -> None:
        self.replica_expected = self._gauge(
            "backplane_replica_expected",
            "1 while the workers of the machine should read from a replica of its own, else 0.",
            "livemax",
        )
        self.replica_readers = self._gauge(
            "backplane_replica_readers",
            "Workers that read from the replica of the machine, not from the shared server.",
            "livesum",
        )
        self.replica_bytes_behind = self._gauge(
            "backplane_replica_bytes_behind",
            "Bytes of the replication stream that the replica of the machine lacks.",
            "livemax",
        )
        self.replica_seconds_behind = self._gauge(
            "backplane_replica_seconds_behind",
            "Seconds by which the replica of the machine is behind the shared server.",
            "livemax",
        )
        self.replica_left = self._counter(
            "backplane_replica_left",
            "Times that a worker went over from the replica to the shared server.",
        )

    def _define_held(self) -> None:
        self.incoming_bytes = self._gauge(
            "incoming_bytes",
            "Bytes of held input: incomplete messages, waiting requests, arguments of running"
            " handlers, bodies of HTTP requests.",
            "livesum",
        )
        self.outgoing_bytes = self._gauge(
            "outgoing_bytes",
            "Bytes held for clients that have not read them; shared bytes are counted once.",
            "livesum",
        )
        self.write_buffer_bytes = self._gauge(
            "write_buffer_bytes", "Bytes that sockets have not accepted yet.", "livesum"
        )
        self.sessions = self._gauge(
            "sessions", "Socket.IO sessions, until their disconnect handlers return.", "livesum"
        )
        self.groups = self._gauge(
            "groups",
            "Groups: combinations of protocol, subscriptions and options in use.",
            "livesum",
        )
        self.rooms = self._gauge(
            "rooms", "Socket.IO rooms of the application with at least one member.", "livesum"
        )
        self.awaited_acks = self._gauge(
            "awaited_acks", "Clients with a pending acknowledgement.", "livesum"
        )

    def _define_process(self) -> None:
        self.tasks = self._gauge("tasks", "Tasks of the workers' event loops.", "livesum")
        self.open_descriptors = self._gauge(
            "open_descriptors", "Files and sockets that the workers have open.", "livesum"
        )
        self.loop_failures: Children[str, Counter] = self._counters(
            "loop_failures",
            "Failures of background loops that were restarted or skipped an item.",
            ["loop"],
        )
        self.loop_delay = self._gauge(
            "loop_delay_seconds", "Delay of the event loop; maximum over workers.", "livemax"
        )
        self.cpu_seconds = self._counter("process_cpu_seconds", "CPU time used by the workers.")
        self._cpu_counted = 0.0

    def count_request(self, route: str, method: str, status: int) -> None:
        """Count an HTTP request.

        Args:
            route: the pattern of the route, never the path as the client wrote it.
            method: as the client wrote it; what HTTP does not know counts as `other`.
            status: of the answer.
        """
        method = method if method in _METHODS else _OTHER
        self.http_requests[route, method, status].inc()

    def sample_process(self) -> None:
        """Count the CPU time since the last call; the worker calls it every second or so."""
        now = to_steps(time.process_time())
        self.cpu_seconds.inc(now - self._cpu_counted)
        self._cpu_counted = now

    def _counter(self, name: str, help: str, labels: Sequence[str] = ()) -> Counter:
        return PlainCounter(f"realtime_{name}_total", help, labels, registry=self.registry)

    def _counters(
        self, name: str, help: str, labels: Sequence[str], allowed: Iterable[KeyT] = ()
    ) -> Children[KeyT, Counter]:
        return Children(self._counter(name, help, labels).labels, allowed)

    def _gauge(self, name: str, help: str, mode: _Mode, labels: Sequence[str] = ()) -> Gauge:
        return Gauge(
            f"realtime_{name}", help, labels, registry=self.registry, multiprocess_mode=mode
        )
