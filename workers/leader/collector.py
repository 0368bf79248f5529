"""The collector: real figures of this machine and of the service, published as they change.

It runs in the leader, so there is one on each machine. Every two seconds, six while no client is connected to
this machine and no threshold has just been crossed, it samples the machine and publishes

- `health_alert` and `health_recovery` (type `health`) when a threshold is crossed,
- `status_update` (type `status`) when something changed noticeably, and twice a minute anyway,
- `stats_update` (type `stats`) for each period in its turn. Every one carries the newest figures
  of all periods and the connections by worker and type, so that the newest message alone is the
  complete snapshot.

What it measures is also recorded in the series of `GET /stats/series`.

What fails (the backplane is away, a file is gone) is logged once and tried again with fresh
values at the next sample. What another leader needs to go on is kept in `collector.json`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import platform
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any

from app.backplane.series import COARSE, FINE, Sample
from app.config import Settings
from app.errors import ClientError
from app.machine import MachineStatus, describe_connections
from app.ports import Slots
from app.presence import Presence, PresenceState
from app.seconds import REST, next_second
from workers.leader.alarms import Alarm
from workers.leader.host import HostSample
from workers.leader.periods import PERIODS, Periods, Totals
from workers.shared import paths
from workers.shared.file import write_atomically
from workers.shared.metrics_files import Count

INTERVAL = 2.0
"""Seconds between samples; `REST` while no client is connected and no alarm is near."""

STATUS_EVERY = 30.0
"""Seconds after which the status is published though nothing changed."""

STATS_EVERY = {"1m": 10.0, "5m": 30.0, "15m": 60.0, "1h": 300.0, "24h": 900.0}
"""Seconds between the messages of each period."""

_TOLERANCE = INTERVAL / 2
"""Seconds by which what is due at a sample may come early."""
_TOTALS_EVERY = 5.0
"""Seconds between two times that metrics are added up; at rest that is done where figures are published."""
_SAVE_EVERY = 60.0
"""Seconds between two times that `collector.json` is written."""
_LARGEST_FILE = 16 * 1024 * 1024
"""Bytes of `collector.json`; a day of figures takes some 200 KB."""

_NOTICEABLE = {"cpu": 2.0, "memory": 2.0, "disk": 2.0}
"""Points by which a percentage must differ from the one last published."""

Publish = Callable[[str, str, dict[str, object]], Awaitable[object]]
"""Publishes type, event and data; raises `ClientError` when the message is not in the stream."""

Record = Callable[[str, int, Sample], Awaitable[object]]
"""Stores a sample of a host and a step in seconds; raises `ClientError` when it is not stored."""

logger = logging.getLogger(__name__)


class Collector:
    """Samples and publishes until it is cancelled.

    Args:
        settings: of this worker.
        slots: what all workers of the machine count together.
        publish: how to publish.
        presence: what the lab is doing; it becomes `offline` without updates, which
            the collector publishes.
        collect: what all workers have counted; may block, is called in a thread.
        sample_host: measures the machine; likewise.
        record: stores samples of the series; None: they are not kept.
        clock: Unix seconds, for what is published and stored.
        monotonic: seconds, for what has to happen every so often.
    """

    def __init__(
        self,
        settings: Settings,
        slots: Slots,
        *,
        publish: Publish,
        presence: Presence,
        collect: Callable[[], Iterable[Count]],
        sample_host: Callable[[], HostSample],
        record: Record | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._name = settings.host_name or platform.node()
        """Of this machine, in messages."""
        self._slots = slots
        self._record = record
        self._means = {step: _Mean(step) for step in (FINE, COARSE)}
        """Samples that wait for the end of a step of the series, by seconds of the step."""
        self._status_file = MachineStatus(settings.data_dir, clock)
        self._publish = publish
        self._presence = presence
        self._collect = collect
        self._sample_host = sample_host
        self._clock = clock
        self._monotonic = monotonic
        self._file = paths.collector_file(settings.data_dir)
        """Where alarms and periods are kept for the next leader."""
        self._periods = Periods(clock)
        self._alarms = [
            Alarm("cpu", "CPU usage", settings.alert_cpu),
            Alarm("memory", "Memory usage", settings.alert_memory),
            Alarm("disk", "Disk usage", settings.alert_disk),
        ]
        self._presence_state = PresenceState("offline", None, None)
        """The last that the backplane has confirmed."""
        self._published_status: dict[str, Any] | None = None
        """The last `status_update`; None before the first."""
        self._published_at = 0.0
        """When that was (seconds of `monotonic`, as are the next three)."""
        self._stats_due = dict.fromkeys(PERIODS, 0.0)
        """When each period is to be published again."""
        self._totals_due: float | None = None
        """When the metrics are to be added up again; None before the first time."""
        self._save_due = 0.0
        """When the file is to be written again."""
        self._saving = threading.Lock()
        """A save that is cancelled goes on in its thread, beside the last one."""
        self._failing: set[str] = set()
        """Parts of the work that failed the last time."""

    async def run(self) -> None:
        """Collect until cancelled; what is known is kept for the next leader."""
        await asyncio.to_thread(self._load)
        try:
            while True:
                await self.tick()
                await self._wait()
        finally:
            await asyncio.to_thread(self._save)

    def _rests(self) -> bool:
        return not self._slots.total_connections() and not any(
            alarm.is_near for alarm in self._alarms
        )

    async def _wait(self) -> None:
        """Wait until the next sample is due."""
        await next_second(REST if self._rests() else round(INTERVAL))

    async def tick(self) -> None:
        """Take one sample, and publish what there is to tell. Raises nothing but cancellation."""
        host = await asyncio.to_thread(self._measure)
        with self._part("reading the presence"):
            state, confirmed = await self._presence.read()
            if confirmed:
                self._presence_state = state
        if host is not None:
            with self._part("recording the series"):
                await self._add_to_series(host)
        with self._part("publishing"):
            if host is not None:
                await self._publish_alarms(host)
                await self._publish_status(host)
            await self._publish_stats()
        if self._monotonic() >= self._save_due:
            self._save_due = self._monotonic() + _SAVE_EVERY
            await asyncio.to_thread(self._save)

    def _measure(self) -> HostSample | None:
        """What may block: sample the machine, and add up the metrics when that is due."""
        host: HostSample | None = None
        with self._part("sampling the machine"):
            host = self._sample_host()
        with self._part("adding up the metrics"):
            now = self._monotonic()
            if self._wants_totals(now):
                self._periods.add(Totals.of(self._collect()))
                self._totals_due = now + _TOTALS_EVERY
        return host

    def _wants_totals(self, now: float) -> bool:
        if self._totals_due is None:
            return True
        if self._rests():
            return bool(self._due_periods(now))
        return now >= self._totals_due - _TOLERANCE

    def _due_periods(self, now: float) -> list[str]:
        """Periods that are to be published."""
        return [name for name, at in self._stats_due.items() if now >= at - _TOLERANCE]

    async def _add_to_series(self, host: HostSample) -> None:
        if self._record is None:
            return
        sample = Sample(
            host.cpu_percent,
            host.memory_percent,
            host.disk_percent,
            self._slots.total_connections(),
        )
        now = self._monotonic()
        for step, mean in self._means.items():
            complete = mean.add(sample, now, _TOLERANCE)
            if complete is not None:
                await self._record(self._name, step, complete)

    async def _publish_alarms(self, host: HostSample) -> None:
        now = self._clock()
        for alarm, value in zip(
            self._alarms, (host.cpu_percent, host.memory_percent, host.disk_percent), strict=True
        ):
            alarm.sample(value, now)
        for alarm in self._alarms:
            news = alarm.news()
            if news is not None:
                event, data = news
                # Machines that share a backplane share its messages: each names itself.
                name = {"host": self._name} if self._settings.backplane_url else {}
                await self._publish("health", event, {**name, **data})
                alarm.note_published()
                self._save_due = 0.0  # another leader must not publish it again

    async def _publish_status(self, host: HostSample) -> None:
        status = self._status(host)
        now = self._monotonic()
        overdue = now - self._published_at + INTERVAL > STATUS_EVERY
        if overdue or _is_noticeable(self._published_status, status):
            await self._publish("status", "status_update", status)
            self._published_status = status
            self._published_at = now
            await asyncio.to_thread(self._status_file.write, status)

    def _status(self, host: HostSample) -> dict[str, Any]:
        rows = self._slots.rows()
        return {
            "host": self._name,
            "cpu": host.cpu_percent,
            "cpus": host.cpus,
            "load": [round(value, 2) for value in host.load],
            "memory": host.memory_percent,
            "memoryUsed": host.memory_used,
            "memoryTotal": host.memory_total,
            "disk": host.disk_percent,
            "diskUsed": host.disk_used,
            "diskTotal": host.disk_total,
            "uptime": round(host.uptime),
            "connections": self._slots.total_connections(),
            "users": self._slots.unique_users(),
            "workers": sum(row.state == "ready" for row in rows),
            "queue": self._slots.queue_totals()[0],
            "presence": self._presence_state.to_json(),
            "since": self._presence_state.since,
        }

    async def _publish_stats(self) -> None:
        if self._totals_due is None:
            return  # nothing was added up yet
        now = self._monotonic()
        due = self._due_periods(now)
        if not due:
            return
        periods = {name: self._periods.figures(name) for name in PERIODS}
        shared = {
            "periods": periods,
            "connections": describe_connections(self._slots, self._settings),
        }
        for name in due:
            data = {"host": self._name, **periods[name], **shared}
            await self._publish("stats", "stats_update", data)
            self._stats_due[name] = now + STATS_EVERY[name]

    @contextlib.contextmanager
    def _part(self, name: str, *expected: type[Exception]) -> Iterator[None]:
        """Keep the errors of one part of the work from the others; log the first of a row.

        Those that are expected need no traceback; nor do those of clients and files.
        """
        try:
            yield
        except Exception as error:
            if name not in self._failing:
                self._failing.add(name)
                # Timeouts are OSErrors.
                is_expected = isinstance(error, (ClientError, OSError, *expected))
                logger.warning("Collector: %s fails: %s", name, error, exc_info=not is_expected)
        else:
            if name in self._failing:
                self._failing.remove(name)
                logger.info("Collector: %s works again", name)

    def _load(self) -> None:
        damage = ValueError, RecursionError
        with self._part(f"reading {self._file}", *damage):
            if not self._file.exists():
                return
            with self._file.open("rb") as file:
                text = file.read(_LARGEST_FILE + 1)
            if len(text) > _LARGEST_FILE:
                raise ValueError(f"it has more than {_LARGEST_FILE} bytes")
            kept = json.loads(text)
            if not isinstance(kept, dict) or not isinstance(kept.get("alarms"), dict):
                raise ValueError("it was not written by this service")
            # Each part for itself: what is damaged takes nothing else with it.
            for alarm in self._alarms:
                name = f"reading the alarm of {alarm.metric} from {self._file}"
                with self._part(name, *damage):
                    alarm.load(kept["alarms"].get(alarm.metric))
            self._periods.load(kept.get("periods"))

    def _save(self) -> None:
        with self._saving, self._part(f"writing {self._file}"):
            kept = {
                "periods": self._periods.dump(),
                "alarms": {alarm.metric: alarm.dump() for alarm in self._alarms},
            }
            write_atomically(self._file, json.dumps(kept, separators=(",", ":")).encode())


class _Mean:
    """Turns the samples of each step into one.

    Args:
        step: seconds.
    """

    def __init__(self, step: int) -> None:
        self._step = step
        self._samples: list[Sample] = []
        self._due: float | None = None

    def add(self, sample: Sample, now: float, tolerance: float) -> Sample | None:
        """Take a sample; return the mean of those since the last one when a step is over.

        Args:
            sample: of this moment.
            now: monotonic seconds.
            tolerance: seconds by which a step may end early.
        """
        self._samples.append(sample)
        if self._due is None:
            self._due = now
        if now < self._due - tolerance:
            return None
        self._due += self._step
        if self._due <= now:  # samples were missing for longer than a step
            self._due = now + self._step
        mean = Sample(*(sum(column) / len(column) for column in zip(*self._samples, strict=True)))
        self._samples.clear()
        return mean


def _is_noticeable(old: Mapping[str, Any] | None, new: Mapping[str, Any]) -> bool:
    """Whether the status differs enough from the published one."""
    if old is None:
        return True
    if any(old["presence"][name] != new["presence"][name] for name in ("state", "task")):
        return True
    if any(abs(new[name] - old[name]) >= points for name, points in _NOTICEABLE.items()):
        return True
    difference = abs(new["connections"] - old["connections"])
    return bool(difference >= max(1, old["connections"] / 100))
