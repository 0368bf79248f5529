"""The bytes of a connection to the backplane, without the layers of the library.

redis-py opens connections: address, TLS, login. What comes then is always the same, some commands
and as many replies, and is worth a protocol of its own: it costs a third, for each message that is
published and for each that is read.
"""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import Callable
from typing import Any

import hiredis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as LostConnection
from redis.exceptions import InvalidResponse

from app.backplane import redis_private
from app.backplane.faults import MISREAD, unexpected
from app.seconds import LEAST_WAIT, REST, SecondCall, call_next_second, seconds_of

MORE = object()
"""What the parser gives when a reply is not complete."""
CLOSED = "Connection closed by server."
Outcome = list[Any] | Exception
"""The replies of an exchange, an error reply in its place; or what it has failed with."""
_PATIENT = 1.5
"""Seconds that an exchange may still take from which on it is looked at in the next second."""
_VERY_PATIENT = REST + 2 * LEAST_WAIT
"""The same, where it is looked at as rarely as a worker that rests looks at anything."""


def new_parser(reply_error: Any) -> hiredis.Reader:
    """A parser of replies; it gives `MORE` where one is not complete.

    Args:
        reply_error: makes the exception of an error reply, as redis-py's parsers do.
    """
    return hiredis.Reader(protocolError=InvalidResponse, replyError=reply_error, notEnoughData=MORE)


def as_failure(error: Exception) -> Exception:
    """What the exchange fails with: the parser may stumble over what a server says."""
    return unexpected(error) if isinstance(error, MISREAD) else error


class Wire(asyncio.Protocol):
    """One exchange at a time over a connection that is open.

    An exchange that fails or is cancelled leaves replies behind, so the connection must be closed
    then, which is its owner's to do.
    """

    def __init__(self, transport: asyncio.WriteTransport, reply_error: Any) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._seconds = seconds_of(self._loop)
        self._parser = new_parser(reply_error)
        self._answers: list[Any] = []
        self._missing = 0
        self._done: Callable[[Outcome], object] | None = None
        """Called when the exchange is over; None: there is none."""
        self._lost: Exception | None = None
        self._due = math.inf
        """Loop time at which the exchange fails."""
        self._timer: asyncio.TimerHandle | SecondCall | None = None
        """One for many exchanges: when it is over it looks how long the present one may take."""
        self._timer_at = 0.0

    @classmethod
    def over(cls, connection: AbstractConnection) -> Wire:
        """Go on with a connection of redis-py, which has no reply to wait for.

        Raises:
            LostConnection: it is closed.
        """
        writer = redis_private.writer_of(connection)
        if writer is None:
            raise LostConnection(CLOSED)
        wire = cls(writer.transport, redis_private.reply_error_of(connection))
        wire._transport.set_protocol(wire)
        return wire

    def request(
        self, packed: bytes, replies: int, timeout: float, done: Callable[[Outcome], object]
    ) -> None:
        """Send commands.

        Args:
            packed: the commands.
            replies: how many they are.
            timeout: seconds.
            done: called with the outcome, unless the exchange is cancelled. Raises nothing.

        Raises:
            LostConnection: the connection is closed.
        """
        if self._lost is not None or self._transport.is_closing():
            raise LostConnection(CLOSED) from self._lost
        self._answers, self._missing, self._done = [], replies, done
        self._due = self._loop.time() + timeout
        if self._timer is None or self._timer_at > self._due:
            self._watch()
        self._transport.write(packed)

    def cancel(self) -> None:
        """Take no notice of the replies that are still to come."""
        self._done, self._due = None, math.inf

    async def exchange(self, packed: bytes, replies: int, timeout: float) -> list[Any]:
        """Send commands, and return their replies; see `request`.

        Raises:
            TimeoutError: the replies have not come in time.
            RedisError: the connection is lost, or a reply says that it cannot be used.
        """
        waiter: asyncio.Future[list[Any]] = self._loop.create_future()
        self.request(packed, replies, timeout, functools.partial(_answer, waiter))
        try:
            return await waiter
        finally:
            self.cancel()

    def data_received(self, data: bytes) -> None:
        """Collect the replies."""
        if self._done is None:
            # Nothing was asked for, or the exchange has failed and the connection is to be closed.
            self._transport.abort()
            return
        parser, answers = self._parser, self._answers
        try:
            parser.feed(data)
            while self._missing:
                answer = parser.gets()
                if answer is MORE:
                    return
                failed = answer[0] if isinstance(answer, list) and answer else answer
                if isinstance(failed, LostConnection):
                    raise failed
                answers.append(answer)
                self._missing -= 1
        except Exception as error:  # noqa: BLE001 (it is the exchange's)
            self._end(as_failure(error))
        else:
            self._end(answers)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the exchange."""
        self._lost = exc or LostConnection(CLOSED)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._done is not None:
            error = LostConnection(CLOSED)
            error.__cause__ = exc
            self._end(error)

    def _end(self, outcome: Outcome) -> None:
        """The exchange is over."""
        done, self._answers = self._done, []
        self.cancel()
        if self._seconds.rests and isinstance(self._timer, SecondCall):
            # Else the worker would wake up to see that there is nothing to look at.
            self._seconds.forget(self._timer)
            self._timer = None
        assert done is not None
        done(outcome)

    def _watch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        left = self._due - self._loop.time()
        if left > _PATIENT:
            # Hardly ever over when that second comes, and seconds cost no wake-up.
            self._timer = call_next_second(self._look, REST if left > _VERY_PATIENT else None)
            self._timer_at = self._timer.time
        else:
            self._timer = self._loop.call_at(self._due, self._look)
            self._timer_at = self._due

    def _look(self) -> None:
        self._timer = None
        if self._done is None:
            return
        if self._loop.time() < self._due:
            self._watch()
        else:
            self._end(TimeoutError())


def _answer(waiter: asyncio.Future[list[Any]], outcome: Outcome) -> None:
    """Give the outcome of an exchange to what awaits it."""
    if waiter.done():
        return  # it was cancelled
    if isinstance(outcome, Exception):
        waiter.set_exception(outcome)
    else:
        waiter.set_result(outcome)
