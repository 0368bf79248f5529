"""What goes on beside the clients of a stream: a publisher and a sampler of memory, as threads."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import threading
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Self

from benchmarks.procs import HEADERS, Server, cpu_seconds

INTERVAL = 0.05
"""Seconds between two messages."""


class _Thread:
    """A thread that runs as long as its context, and whose failure is the context's."""

    def __init__(self) -> None:
        self._stopping = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._guarded, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self.stop()
        if error is None and self._error is not None:
            raise self._error

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        self._thread.join(30)

    def _guarded(self) -> None:
        try:
            self._run()
        except Exception as error:  # noqa: BLE001 - raised where the context ends
            self._error = error

    def _run(self) -> None:
        raise NotImplementedError


class Publisher(_Thread):
    """Publishes a message every `INTERVAL` over one keep-alive connection.

    When the connection is closed it makes another one, and when an answer is missing it repeats
    the message with the same id, as docs/PROTOCOL.md asks of publishers. Being late, it hurries.
    """

    def __init__(self, server: Server | None) -> None:
        super().__init__()
        self._server = server
        self.answered: list[int] = []
        """The `seq` of each message, in their order."""
        self.repeats: Counter[str] = Counter()
        """Why requests were sent again: the status of the answer, or the error."""
        self.rate = 0.0
        """Messages a second, over all."""
        self.slowest = 0.0
        """Seconds until the slowest message was answered, its repetitions included."""
        self.seconds: list[float] = []
        """The same of each message."""

    def connection(self) -> http.client.HTTPConnection:
        """A connection to the server, which is opened by its first request."""
        assert self._server is not None
        return http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=10)

    def _run(self) -> None:
        connection = self.connection()
        with contextlib.closing(connection):
            begun = due = time.monotonic()
            while not self._stopping.wait(max(0.0, due - time.monotonic())):
                begin = time.monotonic()
                self._publish(connection)
                self.seconds.append(time.monotonic() - begin)
                self.slowest = max(self.slowest, self.seconds[-1])
                due += INTERVAL
                self.rate = len(self.answered) / (time.monotonic() - begun)

    def _publish(self, connection: http.client.HTTPConnection) -> None:
        data = {"n": len(self.answered), "pad": "x" * 60}
        message = {"id": str(uuid.uuid4()), "type": "status", "event": "status_update"}
        body = json.dumps(message | {"data": data}, separators=(",", ":"))
        headers = {**HEADERS, "Content-Type": "application/json"}
        while not self._stopping.is_set():
            try:
                connection.request("POST", "/ws/broadcast", body, headers)
                answer = connection.getresponse()
                text = answer.read()
                if answer.status == 200:
                    self.answered.append(json.loads(text)["seq"])
                    return
                self.repeats[str(answer.status)] += 1
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                self.repeats[type(error).__name__] += 1
            time.sleep(0.02)

    @property
    def twice(self) -> int:
        """Messages that are in the stream more than once; there must be no other publisher."""
        if not self.answered:
            return 0
        return self.answered[-1] - self.answered[0] + 1 - len(self.answered)


class MemorySampler(_Thread):
    """Looks at the memory of all processes of a server every 150 ms."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self._server = server
        self.peak = 0
        """The largest sum of proportional set sizes that was seen, in bytes."""
        self.processes = 0
        """The most processes that were seen."""

    def _run(self) -> None:
        while not self._stopping.wait(0.15):
            self.processes = max(self.processes, len(self._server.pids()))
            self.peak = max(self.peak, self._server.pss())
            self._server.cpu()  # keeps what processes have used that are gone at the end


class Strangers:
    """How busy the processors are with what is no part of the benchmark.

    Args:
        server: its processes are part of it.
        load: pid of the process with the clients.
    """

    def __init__(self, server: Server, load: int) -> None:
        self._server = server
        self._load = load
        self._at = self._now()

    def share(self) -> float:
        """Percent of all processors since this object was made."""
        (begin, all_then, ours_then), (end, all_now, ours_now) = self._at, self._now()
        others = (all_now - all_then) - (ours_now - ours_then)
        return max(0.0, 100 * others / (end - begin) / (os.cpu_count() or 1))

    def _now(self) -> tuple[float, float, float]:
        """Time, CPU seconds of the machine, and those of the benchmark."""
        # User, nice, system and stolen time, proc_stat(5). The time of interrupts belongs to no process.
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        ticks = sum(int(fields[n]) for n in (0, 1, 2, 7))
        ours = self._server.cpu() + cpu_seconds(self._load) + time.process_time()
        return time.monotonic(), ticks / os.sysconf("SC_CLK_TCK"), ours
