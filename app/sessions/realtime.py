"""The parts of one worker that sessions use, and how a connection begins and ends."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from app.backplane.claims import LEASE, UserClaims
from app.broadcast.catchup import CatchUp
from app.broadcast.fanout import FanOut
from app.broadcast.subscriber import Group
from app.config import Settings
from app.errors import ClientError, CloseCode, ErrorCode, NoRoomNow
from app.metrics import Metrics
from app.ports import Slots
from app.protocol import envelope
from app.protocol.codecs import PLAIN, SOCKETIO
from app.protocol.frames import TEXT, build_frame
from app.protocol.offsets import Offset, decode_offset, encode_offset
from app.protocol.requests import Allowed
from app.refusals import Refusals
from app.sessions.addresses import Addresses
from app.sessions.auth import TokenVerifier
from app.sessions.rates import Limits, Rates, Verdict
from app.sessions.session import ConnectOptions, Session, Work
from app.transport.connection import MOVING, OPEN
from app.transport.hub import Hub
from app.types import Position

if TYPE_CHECKING:
    from app.sessions.router import Router
    from app.sessions.socketio.server import RealtimeServer

logger = logging.getLogger("realtime.session")


HOLD_SECONDS = 1.0
"""How long default subscriptions wait for the client's first frame (PROTOCOL.md)."""
AUTH_SECONDS = 10.0
"""How long a client may take to show its token."""
CONNECT_SECONDS = 10.0
"""How long a Socket.IO client may be in no namespace."""
EXPIRY_WARNING = 60.0
"""Seconds before the end of a token at which its client is told."""
REPLACE_SECONDS = 2.0
"""How long a connection waits for the one that it replaces to go away on another worker."""
REPLACE_SHARED_SECONDS = LEASE + REPLACE_SECONDS
"""The same where machines share users: the other one's machine may be dead, and its lease not."""
PROBE_SECONDS = 1.0
"""How long a client may take to answer a ping that decides whether it keeps its place."""
PROBE_STEP = 0.02
FULL_SECONDS = 5.0
"""How long a user whose holders have all answered is refused without asking them again."""
MAX_FULL = 10_000
"""Such users that are remembered."""
FIRST_CLAIM_PAUSE, LONGEST_CLAIM_PAUSE = 0.05, 0.25
"""Seconds between two tries meanwhile: twice the last, within these."""
FLOOD_FACTOR = 10
"""A client that sends this many times RATE_LIMIT in a second is closed."""
MAX_RECONNECT_ATTEMPTS = 10
"""What clients are advised; the service itself does not count."""
GREETINGS = 256
"""Greetings that are kept ready, one for each set of subscriptions that clients chose; about 1 KB each."""
RETRY_AFTER_MS = (500, 5000)
"""Range of the retry hint of close code 1012, drawn evenly so that clients do not come at once."""


_RATE_LIMITED = ClientError(
    ErrorCode.RATE_LIMITED, "This connection sends too much; the message was not taken."
)
_ID_PLACE = b"0" * 36


def encode_open_packet(settings: Settings) -> bytes:
    """The OPEN packet of Engine.IO 4, with zeros where the id goes.

    A client gives up when no ping came for interval and timeout together.
    """
    interval = settings.heartbeat_interval
    fields = {
        "sid": _ID_PLACE.decode(),
        "upgrades": [],
        "pingInterval": round(interval * 1000),
        "pingTimeout": round((settings.heartbeat_timeout - interval) * 1000),
        "maxPayload": settings.max_message_size,
    }
    return build_frame(TEXT, b"0" + envelope.encode_json(fields))


@dataclass(frozen=True, slots=True)
class Pid:
    """Who a Socket.IO client was."""

    sid: str
    offset: Offset
    user: str | None


class Realtime:
    """What sessions share.

    `router` and `sio` are set once, by who puts the worker together, since they and the sessions
    need each other.
    """

    router: Router
    sio: RealtimeServer

    def __init__(
        self,
        *,
        settings: Settings,
        hub: Hub,
        fanout: FanOut,
        catchup: CatchUp,
        slots: Slots,
        claims: UserClaims | None,
        verifier: TokenVerifier,
        metrics: Metrics,
        key: bytes,
        replace_elsewhere: Callable[[str], Coroutine[Any, Any, bool | None]],
        probe_users: Callable[[str], Coroutine[Any, Any, int]] | None = None,
    ) -> None:
        self.settings = settings
        self.hub = hub
        self.fanout = fanout
        self.catchup = catchup
        self.slots = slots
        self.claims = claims
        self.verifier = verifier
        self.metrics = metrics
        self.replace_elsewhere = replace_elsewhere
        self.sessions: dict[str, Session] = {}
        self.no_subscriptions: dict[str, Group] = {
            codec.name: fanout.group(codec, frozenset(), False) for codec in (PLAIN, SOCKETIO)
        }
        self.known_types = frozenset(settings.message_types)
        self._key = key
        self._open_packet = encode_open_packet(settings)
        self.keeps_environ = bool(settings.handlers)
        """Application handlers may ask for the request that a connection began with."""
        self._default_types = tuple(settings.default_subscriptions)
        self._greetings: dict[tuple[tuple[str, ...], Collection[str]], bytes] = {}
        self._allowed: dict[frozenset[str], Allowed] = {}
        self._held: deque[tuple[float, Session]] = deque()
        self._release_planned = False
        # Most clients of a storm connect at the same position with the same options.
        self._pid_positions: dict[str, Position] | None = None
        self._pid_options: tuple[tuple[str, ...], bool] = (), False
        self._pid_offset = ""
        self.rates = Rates(
            Limits(
                messages=settings.rate_limit,
                flood=settings.rate_limit * FLOOD_FACTOR,
                bytes=settings.rate_limit_bytes
                and max(settings.rate_limit_bytes, settings.max_message_size),
                seconds=settings.rate_limit_time,
            )
        )
        hub.meter = self.rates
        most, connects = settings.max_connections_per_address, settings.max_connects_per_address
        self.addresses = Addresses(most, connects) if most or connects else None
        """Limits per client address, where there are any."""
        self.refusals = Refusals(lambda reason: metrics.refused[reason].inc())
        self._homeless: dict[Session, float] = {}
        """Socket.IO clients that are in no namespace, by deadline, the earliest first."""
        self._homeless_planned = False
        self.probe_users = probe_users
        self._full: dict[str, float] = {}
        """Users at their cap, all of whose connections answer, and until when that is believed."""
        self._loop = asyncio.get_running_loop()

    # The beginning.

    def claim(
        self, session: Session, resume: str | None = None, patience: float = 0.0
    ) -> Work | None:
        """Claim a place for the session's user, if it has one.

        Args:
            session: connected and, if the service takes tokens, authenticated; one that has ended
                claims nothing.
            resume: token of a connection that this one takes the place of, if that is silent.
            patience: seconds for which a place may take to become free.

        Returns:
            What remains to be awaited, if it cannot be done at once.

        Raises:
            ClientError: MAX_CONNECTIONS_EXCEEDED; the same from what is returned, and
                BACKPLANE_UNAVAILABLE.
        """
        if session.state != OPEN:
            # It ended before its turn came: what it claims now would never be given back.
            return None
        replacing = self.replace_owner(session, resume) if resume else None
        user = session.user
        if replacing is not None:
            return self._claim_slowly(session, replacing, patience)
        if user is None:
            return None
        if self.claims is None:
            if self.slots.claim_user(user):
                session.claimed = True
                return None
            if self._is_surely_full(user):
                raise self._too_many(user, self.settings.max_connections_per_user)
        return self._claim_slowly(session, None, patience)

    def replace_owner(self, session: Session, token: str) -> asyncio.Task[bool] | None:
        """Close the connection that a `resume` or `pid` is of, unless it answers a ping.

        Returns what tells whether it does; None when the token is not one of ours, or another
        user's.
        """
        owner = self.read_owner(token, session.user)
        if owner is None or owner == session.id:
            return None
        task = self._loop.create_task(self._replace_unless_alive(owner))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    async def _replace_unless_alive(self, id: str) -> bool:
        old = self.sessions.get(id)
        if old is None or old.state == MOVING:
            return bool(await self.replace_elsewhere(id))
        if await self.answers(old):
            return True
        self.replace(old)
        return False

    async def answers(self, session: Session) -> bool:
        """Whether anything comes from a client within `PROBE_SECONDS` after a ping.

        A worker that is late may take twice as long.
        """
        if session.state != OPEN:
            return False
        # What it sent before does not count; ticks are as long as a second.
        mark = session.seen = min(session.seen, self.hub.wheel.now - 1)
        session.ping()
        # Steps are counted, so that a loop which is late gives its clients as much longer.
        steps = round(PROBE_SECONDS / PROBE_STEP)
        until = self._loop.time() + 2 * PROBE_SECONDS
        while session.state == OPEN and session.seen <= mark and steps > 0:
            await asyncio.sleep(PROBE_STEP)
            steps -= 1
            if self._loop.time() > until:
                break
        return session.state == OPEN and session.seen > mark

    async def _claim_slowly(
        self, session: Session, replacing: asyncio.Task[bool] | None, patience: float
    ) -> None:
        if replacing is not None and not await asyncio.shield(replacing):
            patience = self.replace_patience
        until = self._loop.time() + patience
        user = session.user
        if user is None:
            return
        probe: asyncio.Task[int] | None = None
        pause = FIRST_CLAIM_PAUSE
        while not await self._claim(user):
            if session.state != OPEN:
                return
            if self._loop.time() >= until:
                if self._is_surely_full(user):
                    raise self._too_many(user, self.settings.max_connections_per_user)
                if probe is not None and probe.done():
                    raise self._too_many(user, probe.result())
            if probe is None:
                probe = self._loop.create_task(self._count_answering(user))
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_CLAIM_PAUSE)
        if session.state == OPEN:
            session.claimed = True
        else:
            self._release(user)

    @property
    def replace_patience(self) -> float:
        """Seconds for which a connection waits for the place of the one that it replaces."""
        return REPLACE_SECONDS if self.claims is None else REPLACE_SHARED_SECONDS

    async def _count_answering(self, user: str) -> int:
        if self.probe_users is None:
            return self.settings.max_connections_per_user
        return await self.probe_users(user)

    def _is_surely_full(self, user: str) -> bool:
        """Whether all holders of a user's places have answered a ping a moment ago."""
        until = self._full.get(user)
        return until is not None and self._loop.time() < until

    async def _claim(self, user: str) -> bool:
        if self.claims is not None:
            return await self.claims.claim(user)
        return self.slots.claim_user(user)

    def release_claim(self, session: Session) -> None:
        """Give the claim of a session back, if it holds one."""
        if session.claimed:
            session.claimed = False
            assert session.user is not None
            self._release(session.user)

    def _release(self, user: str) -> None:
        if self.claims is not None:
            self.claims.release(user)
        else:
            self.slots.release_user(user)

    def _too_many(self, user: str, answering: int) -> ClientError:
        """What to tell a client whose user has no place left.

        Args:
            user: at the cap.
            answering: how many connections of it have answered a ping.
        """
        most = self.settings.max_connections_per_user
        self.refusals.note("user")
        if answering < most:
            return NoRoomNow(
                f"All {most} places of this user are taken, some of them by connections that do"
                " not answer; come back later.",
                random.randint(*RETRY_AFTER_MS),  # noqa: S311
            )
        if len(self._full) >= MAX_FULL:
            self._full.clear()
        self._full[user] = self._loop.time() + FULL_SECONDS
        return ClientError(
            ErrorCode.MAX_CONNECTIONS_EXCEEDED,
            f"A user may have {most} connections; close another one first.",
        )

    def greet(
        self,
        session: Session,
        options: ConnectOptions,
        positions: dict[str, Position] | None = None,
    ) -> Work | None:
        """Subscribe a session, whose claim is held if it needs one, and send `connected`.

        Returns what remains to be awaited: the newest messages that it asked for.

        Args:
            session: it.
            options: what it asked for.
            positions: where each type goes on, for one that recovers; nothing is held then.
        """
        chosen = self.chosen_types(session, options)
        session.welcomed = True
        session.group = self.fanout.group(session.codec, frozenset(chosen), options.batch)
        if positions is None:
            session.track = session.track or self.fanout.positions
            self.hold(session)
        else:
            session.track = positions
        self.metrics.opened[session.protocol].inc()
        session.send_event("connected", self._connected(session, chosen))
        self.watch_expiry(session)
        if options.history is None or positions is not None:
            return None
        return self.router.send_past(session, options.history)

    def chosen_types(self, session: Session, options: ConnectOptions) -> tuple[str, ...]:
        """What a client is subscribed to at first."""
        if options.types is not None:
            return tuple(sorted(options.types))
        types = session.types
        if types is self.known_types:
            return self._default_types
        return tuple(type for type in self._default_types if type in types)

    def allowed(self, types: frozenset[str] | None) -> Allowed | None:
        """What the claim `types` of a token allows; sessions with the same claim share it."""
        if types is None:
            return None
        found = self._allowed.get(types)
        if found is None:
            if len(self._allowed) >= GREETINGS:
                self._allowed.clear()
            found = self._allowed[types] = Allowed.of(self.known_types, types)
        return found

    def hold(self, session: Session) -> None:
        """Let nothing flow before the client's first frame, or a second."""
        session.held = True
        self._held.append((self._loop.time() + HOLD_SECONDS, session))
        if not self._release_planned:
            self._release_planned = True
            self._loop.call_later(HOLD_SECONDS, self._release_held)

    def _connected(self, session: Session, types: tuple[str, ...]) -> bytes:
        key = types, session.types
        rest = self._greetings.get(key)
        if rest is None:
            settings = self.settings
            fields = {
                "supportedTypes": [name for name in settings.message_types if name in key[1]],
                "subscriptions": list(types),
                "heartbeatInterval": round(settings.heartbeat_interval * 1000),
                "heartbeatTimeout": round(settings.heartbeat_timeout * 1000),
                "recoveryWindow": round(settings.recovery_window * 1000),
                "maxReconnectAttempts": MAX_RECONNECT_ATTEMPTS,
                "maxMessageSize": settings.max_message_size,
            }
            if len(self._greetings) >= GREETINGS:
                self._greetings.clear()
            rest = self._greetings[key] = envelope.encode_json(fields)[1:]
        now = int(time.time() * 1000)
        return (
            b'{"id":"%b","type":"system","timestamp":%d,"direction":"server-to-client",'
            b'"event":"connected","data":{"connectionId":"%b","resume":"%b","user":%b,'
            b'"serverTime":%d,%b}'
        ) % (
            envelope.new_id().encode(),
            now,
            session.id.encode(),
            self.resume_token(session.id, session.user).encode(),
            b"null" if session.user is None else envelope.encode_json(session.user),
            now,
            rest,
        )

    def _release_held(self) -> None:
        now = self._loop.time()
        held = self._held
        while held and (held[0][0] <= now or not held[0][1].held):
            session = held.popleft()[1]
            if session.held and session.state == OPEN and not self._is_busy(session):
                try:
                    session.release()
                except Exception:
                    logger.exception("a session cannot go on", extra={"connection": session.id})
                    session.drop("internal error")
        self._release_planned = bool(held)
        if held:
            self._loop.call_later(max(0.01, held[0][0] - now), self._release_held)

    @staticmethod
    def _is_busy(session: Session) -> bool:
        """Its first frame is being handled, which releases it in the end."""
        return session.extra is not None and session.extra.task is not None

    def await_connect(self, session: Session) -> None:
        """Give a session that is in no namespace `CONNECT_SECONDS` to enter one."""
        if session not in self._homeless:
            self._homeless[session] = self._loop.time() + CONNECT_SECONDS
            if not self._homeless_planned:
                self._homeless_planned = True
                self._loop.call_later(CONNECT_SECONDS, self._end_homeless)

    def entered(self, session: Session) -> None:
        """A session is in a namespace, or gone."""
        self._homeless.pop(session, None)

    def _end_homeless(self) -> None:
        """Close the sessions that have entered no namespace in time."""
        self._homeless_planned = False
        now = self._loop.time()
        while self._homeless:
            session, due = next(iter(self._homeless.items()))
            if due > now:
                self._homeless_planned = True
                self._loop.call_at(due, self._end_homeless)
                return
            del self._homeless[session]
            if session.is_entering:
                # A connect handler of the application takes its time.
                self._homeless[session] = now + CONNECT_SECONDS
            elif session.state == OPEN:
                self.refusals.note("connect")
                session.end(CloseCode.HEARTBEAT_TIMEOUT, "no Socket.IO CONNECT came in time")

    def open_packet(self, id: str) -> bytes:
        """The frame that begins an Engine.IO session."""
        return self._open_packet.replace(_ID_PLACE, id.encode())

    def rename(self, session: Session, id: str | None = None) -> None:
        """Give a session another id: that which it had before, or a new one to begin anew."""
        self.forget(session)
        if session.state == OPEN:
            session.id = id or envelope.new_id()
            self.sessions[session.id] = session

    def forget(self, session: Session) -> None:
        """Let a session be found no more."""
        if self.sessions.get(session.id) is session:
            del self.sessions[session.id]

    # Tokens of our own.

    def _sign(self, text: str) -> str:
        return f"{text}.{self._proof(text)}"

    def _proof(self, text: str) -> str:
        return hmac.digest(self._key, text.encode(errors="replace"), "sha256")[:12].hex()

    def _check_signature(self, token: str) -> str | None:
        text = token.rpartition(".")[0]
        expected = self._sign(text)
        genuine = hmac.compare_digest(
            token.encode(errors="replace"), expected.encode(errors="replace")
        )
        return text if genuine else None

    def resume_token(self, id: str, user: str | None = None) -> str:
        """What proves that somebody was connection `id`, of this user."""
        return f"{id}.{self._proof(id if user is None else f'resume|{id}|{user}')}"

    def pid(self, session: Session, options: ConnectOptions) -> str:
        """What proves who a Socket.IO client is, and where it stands as it connects."""
        types, positions = self.chosen_types(session, options), self.fanout.positions
        if self._pid_positions is not positions or self._pid_options != (types, options.batch):
            self._pid_positions, self._pid_options = positions, (types, options.batch)
            self._pid_offset = encode_offset(types, positions, options.batch)
        return self._sign(f"{session.id}|{self._pid_offset}|{json.dumps(session.user)}")

    def read_owner(self, token: str, user: str | None) -> str | None:
        """The connection id in a `resume` or `pid`; None when it is not ours, or another user's."""
        pid = self.read_pid(token)
        if pid is not None:
            return pid.sid if pid.user == user else None
        id = token.rpartition(".")[0]
        expected = self.resume_token(id, user).encode(errors="replace")
        return id if hmac.compare_digest(token.encode(errors="replace"), expected) else None

    def read_pid(self, token: str) -> Pid | None:
        """What a `pid` says; None when it is not one of ours."""
        text = self._check_signature(token)
        words = text.split("|", 2) if text is not None else []
        offset = decode_offset(words[1]) if len(words) == 3 else None
        return None if offset is None else Pid(words[0], offset, json.loads(words[2]))

    # Tokens of users.

    def watch_expiry(self, session: Session, *, handed_over: bool = False) -> None:
        """Warn and close a session, from when it is welcome, when its token ends.

        One that was handed over in the last minute of its token has been warned already.
        """
        extra = session.extra
        if extra is None:
            return
        if extra.expiry is not None:
            extra.expiry.cancel()
            extra.expiry = None
        if extra.expires_at is not None and session.welcomed:
            left = extra.expires_at - time.time()
            if handed_over and left <= EXPIRY_WARNING:
                extra.expiry = self._loop.call_later(max(0.0, left), self._expire, session)
            else:
                extra.expiry = self._loop.call_later(
                    max(0.0, left - EXPIRY_WARNING), self._warn_expiry, session, extra.expires_at
                )

    def _warn_expiry(self, session: Session, expires_at: float) -> None:
        data = {"expiresAt": round(expires_at * 1000)}
        session.send_event("token_expiring", envelope.envelope("system", "token_expiring", data))
        left = max(0.0, expires_at - time.time())
        session.need_extra().expiry = self._loop.call_later(left, self._expire, session)

    def await_token(self, session: Session) -> None:
        """Give a session some time to authenticate."""
        session.need_extra().expiry = self._loop.call_later(AUTH_SECONDS, self._expire, session)

    def _expire(self, session: Session) -> None:
        session.send_error(
            ClientError(ErrorCode.UNAUTHORIZED, "A valid token is needed; connect with a new one.")
        )
        session.end(CloseCode.UNAUTHORIZED, "no valid token")

    # While it lives.

    def count_message(self, session: Session) -> ClientError | None:
        """Count one message of a session.

        Returns what to tell it if this one is too many; far too many close it.
        """
        verdict = self.rates.message(session)
        if verdict is Verdict.TAKE:
            return None
        if verdict is Verdict.CLOSE:
            session.on_flood()
        return _RATE_LIMITED

    def charge(self, session: Session, seconds: float) -> None:
        """Count what was done for a session outside of reading from it, and hold it back for that.

        Args:
            session: it.
            seconds: of the loop's time, or what something else is worth that it had others do.
        """
        pause = self.rates.spend(session, seconds, 0, 0, time.monotonic())
        if pause and session.state == OPEN:
            self.hub.hold(session, pause)

    def start_second(self) -> None:
        """Begin to count anew what connections use."""
        self.rates.start_second()
        if self.addresses is not None:
            self.addresses.start_second()

    def error_envelope(self, error: ClientError, reply_to: str | int | None) -> bytes:
        """The envelope of an `error` event."""
        self.metrics.errors[error.code].inc()
        data = {"code": error.code, "message": error.message}
        return envelope.envelope("error", "error", data, reply_to=reply_to)

    @staticmethod
    def replace(session: Session) -> None:
        """There is a newer connection of the same client."""
        session.end(CloseCode.REPLACED, "replaced by a newer connection of the same client")

    # The end.

    @staticmethod
    def retry_hint() -> str:
        """Reason of close code 1012: when to come back, in milliseconds."""
        return json.dumps({"retryAfter": random.randint(*RETRY_AFTER_MS)})  # noqa: S311

    def end_all(self) -> None:
        """Close every session: the service stops."""
        for session in list(self.sessions.values()):
            session.end(CloseCode.GOING_AWAY, "the service stops")
