"""One line in the log for each call that writes: publisher, address, messages and result.

At most AUDIT_RATE lines a second of writers and `STRANGERS` of those without a valid token are
written; what is beyond is counted, and one line a second says how many calls of which writer are
not in the log. The metric `realtime_writes_total` counts all.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from aiohttp import web

from app.errors import ClientError
from app.http.errors import HttpError
from app.http.writers import Writer

logger = logging.getLogger("realtime.audit")

STRANGERS = 1
"""Lines a second about calls without a valid token."""
MAX_NAMES = 32
"""Writers that a line about what is not in the log names."""
MAX_TYPES = 8
"""Types that a line names."""


@dataclass(slots=True)
class Write:
    """One call; its handler fills it in."""

    writer: Writer | None = None
    messages: int = 0
    failed: int = 0
    types: set[str] = field(default_factory=set)
    event: str | None = None
    """Of a call with one message, as is its id."""
    id: str | None = None

    def note_failed(self, messages: int) -> None:
        """Note how many of its messages were not stored."""
        self.failed = messages


class Audit:
    """Writes the lines.

    Args:
        rate: lines a second at most; 0: none.
        count: called with the label of the writer and the status of each call.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        rate: int,
        count: Callable[[str, int], object] = lambda *_: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rate = rate
        self._count = count
        self._clock = clock
        self._second = clock()
        self._written = {True: 0, False: 0}
        """Lines of this second: of writers, of strangers."""
        self._unwritten: Counter[str] = Counter()
        """Calls by writer that are not in the log."""
        self._planned = False

    async def watch(
        self,
        request: web.Request,
        handler: Callable[[web.Request, Write], Awaitable[web.Response]],
        address: str,
    ) -> web.Response:
        """Answer a call that writes, and note it."""
        write = Write()
        status, code = 500, ""
        try:
            response = await handler(request, write)
        except asyncio.CancelledError:
            status = 499
            raise
        except HttpError as error:
            status, code = error.status, error.code
            raise
        except ClientError as error:
            status, code = HttpError.of(error).status, error.code
            raise
        else:
            status = response.status
            return response
        finally:
            self.note(f"{request.method} {request.path}", write, address, status, code)

    def note(self, call: str, write: Write, address: str, status: int, code: str = "") -> None:
        """Count a call that was answered, and log it.

        Args:
            call: method and path.
            write: what it was.
            address: of the client.
            status: of the answer.
            code: of the error.
        """
        writer = write.writer
        self._count("none" if writer is None else writer.label, status)
        if not self._rate:
            return
        now = self._clock()
        if now - self._second >= 1.0:
            self._second = now
            self._written = {True: 0, False: 0}
        known = writer is not None
        name = "-" if writer is None else writer.name
        if self._written[known] >= (self._rate if known else STRANGERS):
            self._leave_out(name)
            return
        self._written[known] += 1
        fields: dict[str, object] = {
            "who": name,
            "address": address,
            "call": call,
            "status": status,
        }
        if code:
            fields["code"] = code
        if write.messages:
            fields["messages"] = write.messages
        if write.failed:
            fields["failed"] = write.failed
        if write.types:
            fields["types"] = ",".join(sorted(write.types)[:MAX_TYPES])
        if write.event is not None:
            fields["event"] = write.event
        if write.id is not None:
            fields["id"] = write.id
        logger.info("Write", extra=fields)

    def _leave_out(self, name: str) -> None:
        if name not in self._unwritten and len(self._unwritten) >= MAX_NAMES:
            name = "others"
        self._unwritten[name] += 1
        if not self._planned:
            self._planned = True
            asyncio.get_running_loop().call_later(1.0, self.flush)

    def flush(self) -> None:
        """Say how many calls are not in the log."""
        self._planned = False
        unwritten, self._unwritten = self._unwritten, Counter()
        named = ", ".join(f"{name}: {count}" for name, count in sorted(unwritten.items()))
        logger.info(
            "More writes than AUDIT_RATE logs", extra={"calls": unwritten.total(), "by": named}
        )
