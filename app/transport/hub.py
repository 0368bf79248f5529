"""The detached connections of one worker under one epoll, which the event loop watches in turn.

Here is what concerns many connections at once: the write of a flush, the frames that wait for
the end of a pass of the loop, heartbeats and totals. What is held of their input, and for those that do
not read, has an account each: `input.py` and `unread.py`.

What clients send is handled for a slice of one pass of the loop (app/turns.py), in turn, so deliveries
wait no longer than that. A connection that has sent more than fits is put off: its bytes stay in its reader,
nothing more is read from it, and it goes on in the next pass. The cost of each connection goes to a
`Meter`, which may hold it back for a while, or close it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol, TypeVar

from app.seconds import SecondCall, call_next_second, seconds_of
from app.transport import kernel
from app.transport.connection import (
    BY_PEER,
    CLOSE_TIMEOUT,
    CLOSED,
    CLOSING,
    INPUT_PAUSE,
    OPEN,
    OUTPUT_LIMIT,
    Connection,
    Pending,
)
from app.transport.input import InputAccount
from app.transport.timer_wheel import TimerWheel
from app.transport.unread import UnreadOutput
from app.turns import PAUSE_SECONDS, Pace, Sliced, Turns

logger = logging.getLogger("realtime.connection")

EVENTS_PER_CALL = 256
"""Events that one look at the epoll brings, at most."""
PINGS_AT_ONCE = 200
"""Heartbeats that are sent in one pass of the loop: some 2 ms."""
LONG_STEP = 0.001
"""Seconds of one step for a connection from which on only the CPU time in it is charged: on a busy
machine the worker may have been stopped meanwhile."""
HOLD_TICK = 0.05
"""Seconds to which the times are rounded for which connections are held back."""
LONG_HOLD = 0.5
"""Seconds of a hold from the second of which on a connection gets its messages in rounds as well. Shorter ones
are those of clients that come back, many at once; a single one is that of the first request to a new worker."""
FLOOD = -1.0
"""What a `Meter` answers when a connection is to be closed with 4429."""
FLOOD_SECONDS = 1.0
"""Seconds that a connection closed with 4429 has to take the close frame; nothing is read meanwhile."""

PAUSE_MOVE = 1
"""Reading is paused since the connection is to be handed over."""
PAUSE_INBOX = 2
"""Reading is paused since too much waits behind a request that is being worked on."""
PAUSE_RATE = 4
"""Reading is paused since the connection has used its share for now."""
PAUSE_BACKLOG = 8
"""Reading is paused since what was read before is still being handled."""
MAX_OUTGOING = 64 * 1024 * 1024
"""Bytes of the output account where no other limit is given."""

_READ = select.EPOLLIN

ConnectionT = TypeVar("ConnectionT", bound=Connection)


class Meter(Protocol):
    """Gets the cost of each connection; see app/sessions/rates.py."""

    def spend(
        self, connection: Connection, seconds: float, size: int, extras: int, now: float, /
    ) -> float:
        """Seconds for which nothing is to be read from a connection; 0.0: go on; or FLOOD.

        Args:
            connection: it.
            seconds: of the loop's time that it has just used.
            size: bytes that were read from it.
            extras: frames that were no message.
            now: monotonic seconds.
        """

    def spend_shared(self, seconds: float, /) -> None:
        """Count time that was spent on answers to many connections."""


class Hub:
    """The connections of one worker: epoll, outbox, heartbeats, limits and totals.

    Args:
        heartbeat_interval: seconds between pings.
        heartbeat_timeout: seconds of silence before a connection is given up.
        max_message: largest incoming message in bytes, inclusive.
        max_incoming: bytes of incoming messages that are held over all connections.
        max_outgoing: bytes over all connections that the sockets have not yet taken.
        meter: gets the cost of each connection.
    """

    def __init__(  # noqa: PLR0915 (a line on each attribute)
        self,
        *,
        heartbeat_interval: float,
        heartbeat_timeout: float,
        max_message: int,
        max_incoming: int,
        max_outgoing: int = MAX_OUTGOING,
        meter: Meter | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()

        # Limits, and what is held.
        self.max_message = max_message
        """Largest incoming message in bytes."""
        self.output_limit = max(OUTPUT_LIMIT, 4 * max_message)
        """Unsent bytes that one connection may have behind the frame that is being sent."""
        self._connections: list[Connection | None] = []
        """By descriptor."""
        self.wheel = TimerWheel(
            heartbeat_interval, heartbeat_timeout, self._connections, self._fail, self._ping
        )
        self.input = InputAccount(max_incoming)
        """What is held of the peers' input."""
        self.unread = UnreadOutput(max_outgoing, self.wheel)
        """Connections with bytes that their sockets have not yet taken."""
        self.output = self.unread.account
        """What is held for the peers."""
        # What connections know of the accounts: see `ConnectionHub`.
        self.note_unfinished = self.input.note_unfinished
        self.forget_unfinished = self.input.forget_unfinished
        self.log_given_up = self.unread.log_given_up

        # Counts since the hub was made.
        self.bytes_sent = 0
        self.bytes_received = 0
        self.heartbeat_bytes = 0
        """Of both, those of heartbeats and of the answers to them, as far as they came alone."""
        self.extra_frames = 0
        """Frames received that were no message: control frames and fragments."""
        self.opened: dict[str, int] = {}
        """How many sessions were welcomed, by protocol."""
        self.closed: dict[int, int] = {}
        """How many connections ended, by close code; 1006 when there was none."""
        self.ended: dict[int, int] = {}
        """Those among them that were not ended by their peers."""

        # The connections.
        self._count = 0
        """Of those in `_connections` that are no None."""
        self._epoll = select.epoll()
        self._closing: deque[tuple[float, Connection]] = deque()
        """When to give up waiting for the peer to close (seconds of the loop), in this order."""
        self._emptied: asyncio.Future[None] | None = None
        """What waits for the last connection to end."""

        # How passes of the loop are divided.
        self.meter = meter
        self.pace = Pace()
        """How passes of the loop are divided between messages, input and what it has begun."""
        self.turns = Turns(self.pace.slices())
        """Tasks of requests."""
        self.slice_ends = 0.0
        """Monotonic time at which the connection that is being read is to be put off."""
        self._input_slice = self.pace.slices()
        self._cpu = 0.0
        """CPU time of this thread when the pass began, or at the end of its last long step."""

        # Input.
        self._ready: deque[tuple[int, int]] = deque()
        """Descriptors and events of epoll that no pass had time for yet."""
        self._paused: dict[Connection, int] = {}
        """Connections that nothing is read from, and why: the bits `PAUSE_...`."""
        self._backlog: dict[Connection, None] = {}
        """Those among them whose input waits here for a pass that has time, the next one first."""
        self._backlog_work = Sliced(self._work_off, self.pace.slices())
        self._held: dict[Connection, int] = {}
        """Those that exceeded their share, and the tick (of `HOLD_TICK`) that ends that."""
        self._held_long: set[Connection] = set()
        """Those that were held for `LONG_HOLD` since the last time that none was held."""
        self._holds: dict[int, list[Connection]] = {}
        """What `_held` says, by tick; some may be gone, or be held for longer."""

        # Output.
        self._outbox: dict[Connection, list[bytes]] = {}
        """Frames that leave at the end of this pass."""
        self._flush_planned = False
        self._backed_up = self.unread.connections
        self._broken: deque[Connection] = deque()
        """Connections that a flush could not write to."""
        self._broken_work = Sliced(self._drop_broken, self.pace.slices())
        self._to_ping: deque[Connection] = deque()
        """Connections whose heartbeat is due."""
        self._ping_work = Sliced(self._send_pings, self.pace.slices())
        self.owed_pongs: dict[Connection, bytes] = {}
        """What the last ping said of connections that have something unsent."""

        # Timers, while there is something for them to do.
        self._timer: asyncio.TimerHandle | SecondCall | None = None
        """Of the next tick of the wheel."""
        self._hold_timer: asyncio.TimerHandle | None = None
        """Of the next end of a hold."""
        self._pause_timer: asyncio.TimerHandle | None = None
        """Of the next pass that may read."""
        self._watch_events()

    def __len__(self) -> int:
        return self._count

    def connections(self) -> list[Connection]:
        """All that have a descriptor now."""
        return [connection for connection in self._connections if connection is not None]

    def outgoing(self) -> int:
        """Bytes held for peers: the output account, and what leaves with the next flush."""
        return self.output.total + sum(len(f) for q in self._outbox.values() for f in q)

    def stop(self) -> None:
        """Close every descriptor at once and stop watching."""
        for connection in self.connections():
            connection.drop("server stopped")
        for timer in (self._timer, self._hold_timer, self._pause_timer):
            if timer is not None:
                timer.cancel()
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def attach(self, connection: Connection, times: tuple[float, float] | None = None) -> None:
        """Take a connection in.

        Args:
            connection: open.
            times: `TimerWheel.times` of a connection that comes from another hub.

        Raises:
            OSError: the descriptor is of something that cannot be watched; nothing is kept.
        """
        fd = connection.fd
        self._epoll.register(fd, _READ)
        table = self._connections
        if fd >= len(table):
            table.extend([None] * (fd + 64 - len(table)))
        table[fd] = connection
        self._count += 1
        if self._timer is None:
            seconds_of(self._loop).wake()
            self._plan_tick()
        if times is None:
            self.wheel.add(connection)
        else:
            self.wheel.resume(connection, *times)
        if connection.pending is not None:
            self.watch(connection)
        if connection.reader is not None:
            self.input.note_unfinished(connection, connection.reader.held)
            # The worker that had it may have put it off.
            self._plan_backlog(connection)

    def begin(self, connection: Connection, start: Callable[[], None]) -> None:
        """Take a new connection in and start it; where that fails, it is dropped and logged.

        Args:
            connection: open.
            start: its first steps, and the handling of what came with its request.

        Raises:
            OSError: as `attach`; the descriptor is still the caller's.
        """
        self.attach(connection)
        try:
            start()
        except Exception as error:  # noqa: BLE001 (its descriptor is the hub's by now)
            self._fail(connection, error)

    def detach(self, connection: Connection) -> None:
        """Forget a connection and close its descriptor."""
        if self.release(connection):
            os.close(connection.fd)

    def release(self, connection: Connection) -> bool:
        """Forget a connection, whose descriptor stays open; False when it is not known.

        What is queued for it is lost: call `flush` before.
        """
        fd = connection.fd
        if self._connections[fd] is not connection:
            return False
        self._connections[fd] = None
        self._count -= 1
        self.wheel.discard(connection)
        self._outbox.pop(connection, None)
        self._paused.pop(connection, None)
        self._backlog.pop(connection, None)
        self._held.pop(connection, None)
        self._held_long.discard(connection)
        self.owed_pongs.pop(connection, None)
        self.unread.forget(connection)
        self.input.forget_unfinished(connection)
        # The registration would outlive the descriptor if a duplicate of it were open elsewhere.
        self._epoll.unregister(fd)
        if not self._count and self._emptied is not None and not self._emptied.done():
            self._emptied.set_result(None)
        return True

    async def wait_empty(self, seconds: float) -> None:
        """Wait until the last connection has ended, `seconds` at most."""
        if self._count:
            self._emptied = self._loop.create_future()
            await asyncio.wait([self._emptied], timeout=seconds)

    def watch(self, connection: Connection) -> None:
        """Make the epoll wait for what the connection is ready for now; it has its descriptor."""
        mask = 0
        pending = connection.pending
        if pending is None:
            self._backed_up.pop(connection, None)
        else:
            self._backed_up[connection] = None
        paused = self._paused.get(connection, 0)
        if connection.state != OPEN:
            paused &= PAUSE_RATE
        elif pending is not None and pending.size > INPUT_PAUSE:
            paused |= PAUSE_RATE
        if not paused:
            mask |= _READ
        if pending is not None:
            mask |= select.EPOLLOUT
        self._epoll.modify(connection.fd, mask)

    def pause(self, connection: Connection, reason: int = PAUSE_MOVE) -> None:
        """Read nothing more from a connection until `resume` with the same reason.

        Harmless for one that is closed: it may be while what came from it is being handled.
        """
        if connection.state == CLOSED:
            return
        reasons = self._paused.get(connection, 0)
        self._paused[connection] = reasons | reason
        if not reasons:
            self.watch(connection)

    def resume(self, connection: Connection, reason: int = PAUSE_MOVE) -> None:
        """Read again, if there is no other reason not to."""
        reasons = self._paused.get(connection, 0)
        if not reasons:
            return
        if reasons & ~reason:
            self._paused[connection] = reasons & ~reason
        else:
            del self._paused[connection]
            self.watch(connection)

    def is_leaving(self, connection: Connection) -> bool:
        """Whether a connection is to be handed over as soon as it is at rest."""
        return bool(self._paused.get(connection, 0) & PAUSE_MOVE)

    def back_up(self, connection: Connection, data: bytes, sent: int) -> None:
        """Keep what a socket did not take."""
        connection.pending = Pending(data, sent, self.output, tick=self.wheel.now)
        self.watch(connection)

    def send_soon(self, connection: Connection, frame: bytes) -> None:
        """Queue a frame; all of one pass of the loop leave in one write."""
        queued = self._outbox.get(connection)
        if queued is None:
            self._outbox[connection] = [frame]
            if not self._flush_planned:
                self._flush_planned = True
                self._loop.call_soon(self.flush)
        else:
            queued.append(frame)

    def take_queued(self, connection: Connection) -> bytes:
        """The queued frames of a connection, to be written before anything else."""
        queued = self._outbox.pop(connection, None)
        return b"".join(queued) if queued else b""

    def broadcast(
        self, connections: dict[ConnectionT, int], data: bytes, most: int
    ) -> list[ConnectionT]:
        """Write the same bytes to many connections, and take those that were written out.

        Args:
            connections: those that still lack the bytes, with their descriptors.
            data: finished frames.
            most: connections to take out.

        Returns:
            Those that were taken out but not written, since they have something unsent.
        """
        # The one loop that decides what a delivery costs, hence no call but the write itself.
        # Nor does it look at a connection while none is slow: that would cost a cache miss each.
        outbox, backed_up = self._outbox, self._backed_up
        write, take, size = os.write, connections.popitem, len(data)
        is_any_slow = bool(backed_up or outbox)  # none of the others becomes so meanwhile
        others: list[ConnectionT] = []
        count = min(most, len(connections))
        for _ in range(count):
            connection, fd = take()
            if is_any_slow and (connection in backed_up or connection in outbox):
                others.append(connection)
                continue
            try:
                sent = write(fd, data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self._drop_soon(connection)
                continue
            if sent < size:
                self.back_up(connection, data, sent)
        self.bytes_sent += (count - len(others)) * size
        return others

    def _drop_soon(self, connection: Connection) -> None:
        """Drop a connection that is dead, in a later pass: there may be as many as all."""
        self._broken.append(connection)
        self._broken_work.plan()

    def _drop_broken(self, seconds: float) -> bool:
        ends = time.monotonic() + seconds
        while self._broken:
            connection = self._broken.popleft()
            if connection.state in (OPEN, CLOSING):
                self._lose(connection)
            if time.monotonic() >= ends:
                break
        return bool(self._broken)

    @staticmethod
    def _lose(connection: Connection, reason: str = BY_PEER) -> None:
        """Drop a connection in the middle of others that must be served all the same."""
        try:
            connection.drop(reason)
        except Exception:
            logger.exception("Connection failed", extra={"connection": connection.id})

    def _fail(self, connection: Connection, error: Exception) -> None:
        """Log an error, and drop the connection that it concerns."""
        logger.error("Connection failed", exc_info=error, extra={"connection": connection.id})
        self._lose(connection, "internal error")

    def flush(self) -> None:
        """Write what is queued."""
        self._flush_planned = False
        outbox, self._outbox = self._outbox, {}
        began = time.monotonic()
        for connection, queued in outbox.items():
            try:
                connection.write(queued[0] if len(queued) == 1 else b"".join(queued))
            except Exception as error:  # noqa: BLE001 (the others must not pay for it)
                self._fail(connection, error)
        if self.meter is not None:
            self.meter.spend_shared(time.monotonic() - began)

    def _ping(self, connections: list[Connection]) -> None:
        """Send heartbeats, a part of them in each pass of the loop that has a slice for them."""
        self._to_ping.extend(connections)
        self._ping_work.plan()

    def _send_pings(self, _: float) -> bool:
        """Send `PINGS_AT_ONCE`: the loop of their writes looks at no clock."""
        waiting, began = self._to_ping, time.monotonic()
        by_frame: dict[bytes, dict[Connection, int]] = {}
        for _ in range(min(PINGS_AT_ONCE, len(waiting))):
            connection = waiting.popleft()
            frame = connection.ping_frame
            if connection.state != OPEN:
                continue
            if frame is not None:
                by_frame.setdefault(frame, {})[connection] = connection.fd
                continue
            try:
                connection.heartbeat()
            except Exception as error:  # noqa: BLE001 (the others must not pay for it)
                self._fail(connection, error)
        for frame, members in by_frame.items():
            before = self.bytes_sent
            others = self.broadcast(members, frame, len(members))
            self.heartbeat_bytes += self.bytes_sent - before
            for connection in others:
                connection.send(frame)  # behind what waits for it
        if self.meter is not None:
            self.meter.spend_shared(time.monotonic() - began)
        return bool(waiting)

    def spare(self, connection: Connection) -> bool:
        """Go on with a connection that is silent, if nothing was read from it, or it reads slowly."""
        if connection in self._paused and kernel.count_unread(connection.fd):
            self.wheel.add(connection)
            return True
        return self.unread.spare(connection)

    def close_later(self, connection: Connection) -> None:
        """Close the descriptor if the peer does not within `CLOSE_TIMEOUT`."""
        self._closing.append((self._loop.time() + CLOSE_TIMEOUT, connection))

    # What clients send, in turn.

    def _watch_events(self) -> None:
        self._loop.add_reader(self._epoll.fileno(), self._on_events)

    def _on_events(self) -> None:
        table, ready = self._connections, self._ready
        slice = self._input_slice()
        if not slice:
            self._loop.remove_reader(self._epoll.fileno())
            self._pause_timer = self._loop.call_later(PAUSE_SECONDS, self._watch_events)
            return
        now, self._cpu = time.monotonic(), time.thread_time()
        # Those that the last pass had no time for come first: epoll would begin with the others.
        if not ready:
            ready.extend(self._epoll.poll(0, EVENTS_PER_CALL))
        self.slice_ends = now + slice
        while ready and now < self.slice_ends:
            fd, event = ready.popleft()
            connection = table[fd]
            if connection is None:
                continue
            size, extras = self.bytes_received, self.extra_frames
            is_free = False
            try:
                if event & select.EPOLLOUT:
                    connection.writable()
                if event & ~select.EPOLLOUT and connection.state != CLOSED:
                    is_free = connection.readable()
            except Exception as error:  # noqa: BLE001 (the others must not pay for it)
                self._fail(connection, error)
            if is_free:
                self.heartbeat_bytes += self.bytes_received - size
                now = time.monotonic()
            else:
                now = self._charge(connection, now, size, extras)

    def _charge(self, connection: Connection, began: float, size: int, extras: int) -> float:
        """Tell the meter what a connection has just cost; returns the time."""
        now = time.monotonic()
        spent = now - began
        if connection.state == CLOSED:
            if self.meter is not None:  # nothing can be held back for it
                self.meter.spend_shared(spent)
            return now
        if spent > LONG_STEP:
            cpu = time.thread_time()
            spent, self._cpu = min(spent, cpu - self._cpu), cpu
        if self.meter is not None:
            pause = self.meter.spend(
                connection,
                spent,
                self.bytes_received - size,
                self.extra_frames - extras,
                now,
            )
            if pause:
                self.hold(connection, pause)
        return now

    def put_off(self, connection: Connection) -> None:
        """Go on in the next pass with what a connection has sent; read nothing more until then."""
        if connection.state == CLOSED:
            return
        self.pause(connection, PAUSE_BACKLOG)
        self._plan_backlog(connection)

    def _plan_backlog(self, connection: Connection) -> None:
        self._backlog[connection] = None
        self._backlog_work.plan()

    def _work_off(self, seconds: float) -> bool:
        """Handle what was put off, each connection in turn."""
        waiting, self._backlog = self._backlog, {}
        now, self._cpu = time.monotonic(), time.thread_time()
        ends = now + seconds
        for connection in list(waiting):
            if now >= ends:
                break
            del waiting[connection]
            if self._paused.get(connection, 0) & PAUSE_RATE:
                continue  # `_release` plans it again
            self.slice_ends = ends
            size, extras = self.bytes_received, self.extra_frames
            try:
                connection.receive(b"")
            except Exception as error:  # noqa: BLE001 (the others must not pay for it)
                self._fail(connection, error)
            now = self._charge(connection, now, size, extras)
            if connection not in self._backlog and connection.state != CLOSED:
                self.resume(connection, PAUSE_BACKLOG)
        # Those that had no turn come before those that were put off again.
        self._backlog = waiting | self._backlog
        return bool(self._backlog)

    def hold(self, connection: Connection, seconds: float) -> None:
        """Read nothing from a connection for some time, or close it: `seconds` is FLOOD."""
        if connection.state == CLOSING:
            connection.drop("too much behind the close frame")
        if connection.state != OPEN:
            return
        if seconds == FLOOD:
            connection.on_flood()
            return
        tick = int((self._loop.time() + seconds) / HOLD_TICK) + 1
        if self._held.get(connection, -1) >= tick:
            return
        if seconds >= LONG_HOLD:
            if connection in self._held_long:
                connection.on_throttled(seconds)
            self._held_long.add(connection)
        self._held[connection] = tick
        self._holds.setdefault(tick, []).append(connection)
        self.pause(connection, PAUSE_RATE)
        if self._hold_timer is None:
            self._hold_timer = self._loop.call_later(HOLD_TICK, self._release)

    def _release(self) -> None:
        """Read again from those that were held back for long enough."""
        due = int(self._loop.time() / HOLD_TICK)
        for tick in [tick for tick in self._holds if tick <= due]:
            for connection in self._holds.pop(tick):
                if self._held.get(connection) != tick:
                    continue  # gone, or held for longer
                del self._held[connection]
                try:
                    self.resume(connection, PAUSE_RATE)
                except Exception as error:  # noqa: BLE001 (the others must not pay for it)
                    self._fail(connection, error)
                if self._paused.get(connection, 0) & PAUSE_BACKLOG:
                    self._plan_backlog(connection)
        if self._holds:
            self._hold_timer = self._loop.call_later(HOLD_TICK, self._release)
        else:
            self._hold_timer = None
            self._held_long.clear()

    def close_flooding(self, connection: Connection) -> None:
        """Read nothing more from a connection that is being closed with 4429.

        So it gets the close frame, which it would lose if its unread bytes were answered by a
        reset at once, and costs nothing more.
        """
        self._backlog.pop(connection, None)
        self.pause(connection, PAUSE_RATE)
        self._loop.call_later(FLOOD_SECONDS, connection.drop, "flood")

    def _plan_tick(self) -> None:
        if self.wheel.tick_length == 1.0:
            self._timer = call_next_second(self._tick)
        else:
            self._timer = self._loop.call_later(self.wheel.tick_length, self._tick)

    def _tick(self) -> None:
        self._timer = None
        if self._count:
            self._plan_tick()
        self.wheel.advance()
        now = self._loop.time()
        while self._closing and self._closing[0][0] <= now:
            self._lose(self._closing.popleft()[1], "no answer to the close frame")
