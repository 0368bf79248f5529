"""Connections to the backplane, and the few values that are no stream.

redis-py waits five seconds for every reply and tries ten times, which turns a retried publish
into a duplicate and a failed block into a minute of silence. So its connections are used here
without its client: no retries, no timeouts of its own, one caller at a time, and the caller says
how long an answer may take.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import secrets
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, Protocol, TypeGuard, TypeVar

import hiredis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import BusyLoadingError, NoScriptError, RedisError

from app.backoff import Backoff
from app.backplane import redis_private
from app.backplane.faults import (
    MISREAD,
    Fault,
    UnexpectedAnswer,
    explain,
    reading_answer,
    unavailable,
    unusable,
)
from app.backplane.needs import missing, needs
from app.backplane.repair import is_damage, log_repaired, repair_keys
from app.backplane.replication import Replication
from app.backplane.scripts import SHARE_KEY, Call, Script
from app.backplane.server import Server, server_at
from app.backplane.wire import Outcome, Wire
from app.config import Settings, full_backplane
from app.errors import BackplaneUnavailable, PresenceError
from app.seconds import REST

T = TypeVar("T")

logger = logging.getLogger(__name__)

FAILURES = (RedisError, OSError)
"""What a call may raise: no answer in time (TimeoutError), a lost connection, an error reply."""

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0
"""Seconds between two attempts to reach an absent backplane: the first pause and the longest."""
ANSWER_TIMEOUT = 2.0
"""Seconds that a reader of history, presence or claims waits for an answer."""
ANSWER_AGE = REST + 2.0
"""Seconds for which an answer says that the backplane is available: a worker that rests asks once in `REST`."""
RECHECK = 1.0
"""Seconds for which a connection is kept although another might lead to a server that can: a
failover is noticed that soon, and a replica is not asked for more connections than that."""

PRESENCE_SILENCE = 600.0
"""Seconds without an update after which a presence state has ended."""

_KEY_BYTES = 32
_PRESENCE = ("state", "task", "since", "updatedAt")
"""Fields of the presence state."""

Argument = bytes | str | int
Command = tuple[Argument, ...]


def pack(commands: Sequence[Command]) -> bytes:
    """Commands as they go over the wire."""
    # hiredis declares a tuple of one; it takes any.
    if len(commands) == 1:
        packed: bytes = hiredis.pack_command(commands[0])  # type: ignore[arg-type]
        return packed
    return b"".join([hiredis.pack_command(command) for command in commands])  # type: ignore[arg-type]


def _pack_calls(calls: Sequence[Call], last: Sequence[Command]) -> bytes:
    """Calls of scripts by their names, and commands that follow them."""
    commands: list[Command] = [(b"EVALSHA", script.sha, *rest) for script, rest in calls]
    return pack([*commands, *last])


class FailedCalls(PresenceError, RedisError):
    """Some of several calls were answered with an error.

    Args:
        answers: of all calls; those that failed have a `RedisError` in their place.
    """

    def __init__(self, answers: list[Any]) -> None:
        self.answers = answers
        self.first: RedisError = next(a for a in answers if isinstance(a, RedisError))
        super().__init__(str(self.first), status_code=self.first.status_code)


async def complete(
    calls: Sequence[Call],
    answers: list[Any],
    repeat: Callable[[Sequence[Call]], Awaitable[list[Any]]],
) -> list[Any]:
    """The answers to calls of scripts, after those that the server had forgotten ran again.

    Args:
        calls: the scripts with their arguments.
        answers: of the calls, in their order, and of what followed them.
        repeat: runs some of the calls again, with their source, and what follows all of them.

    Raises:
        FailedCalls: some were answered with an error; it holds all answers.
    """
    forgotten = [n for n, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
    if forgotten:
        places = [*forgotten, *range(len(calls), len(answers))]
        again = await repeat([calls[n] for n in forgotten])
        for n, answer in zip(places, again, strict=True):
            answers[n] = answer
    if any(isinstance(answer, RedisError) for answer in answers):
        raise FailedCalls(answers)
    return answers


class Link:
    """One connection with one caller at a time; opened by the first call after a failure.

    Args:
        server: opens connections.
        name: shown by CLIENT LIST.
        report: is given the faults that each call has met; none means that all is well.
    """

    def __init__(
        self, server: Server, name: str, report: Callable[[Sequence[Fault]], None]
    ) -> None:
        self._server = server
        self._name = name
        self._report = report
        self._connection: AbstractConnection | None = None
        self._wire: Wire | None = None
        """Over the connection, once it is open."""
        self._has_failed = False
        """Whether an answer of the last exchange is an error."""
        self._opened_at = 0.0
        self._outdated = False

    @property
    def connected(self) -> bool:
        """Whether the next call needs no new connection."""
        return self._connection is not None and not self._outdated

    def renew(self) -> None:
        """Let the next call open a new connection: the address may mean another server now."""
        self._outdated = self._connection is not None

    async def abort(self) -> None:
        """End the connection, and the call that waits for an answer on it."""
        if self._connection is not None:
            redis_private.drop(self._connection)

    def call(self, commands: Sequence[Command], timeout: float) -> Coroutine[Any, Any, list[Any]]:
        """Send commands in one write and return their replies.

        Raises:
            FAILURES: after an error reply all other replies have been read and the connection
                is still good; after anything else it is closed.
        """
        return self.send(pack(commands), len(commands), timeout)

    async def send(self, packed: bytes, replies: int, timeout: float) -> list[Any]:
        """As `call`, with commands that `pack` has packed."""
        answers = await self._exchange(packed, replies, timeout)
        if self._has_failed:
            raise next(answer for answer in answers if isinstance(answer, RedisError))
        return answers

    def begin(self, call: Call, timeout: float, done: Callable[[Outcome], object]) -> bool:
        """Run a script over the connection that is open, without a task.

        Args:
            call: the script with its arguments.
            timeout: seconds.
            done: called with the outcome. Unless that is one reply which is no error, `run` is to
                be given it. Raises nothing.

        Returns:
            Whether it is begun; else `run` has to be awaited.
        """
        wire = self._wire
        if wire is None or self._outdated:
            return False
        try:
            wire.request(_pack_calls((call,), ()), 1, timeout, functools.partial(self._end, done))
        except FAILURES:
            return False
        return True

    def _end(self, done: Callable[[Outcome], object], outcome: Outcome) -> None:
        if not isinstance(outcome, Exception) and not isinstance(outcome[0], RedisError):
            self._report(())
        done(outcome)

    async def _exchange(
        self, packed: bytes, replies: int, timeout: float, begun: Outcome | None = None
    ) -> list[Any]:
        """As `send`, but an error reply is in the list, in its place, and `_has_failed` says so.

        Args:
            packed: see `send`.
            replies: see `send`.
            timeout: see `send`.
            begun: the outcome, where the exchange is over already.
        """
        answers: list[Any] | None = None
        try:
            if begun is None:
                wire = self._wire
                if wire is None or self._outdated:
                    loop = asyncio.get_running_loop()
                    until = loop.time() + timeout
                    async with asyncio.timeout_at(until):
                        await self.close()
                        wire = await self._connect()
                    timeout = max(0.0, until - loop.time())
                answers = await wire.exchange(packed, replies, timeout)
            elif isinstance(begun, Exception):
                raise begun
            else:
                answers = begun
        except FAILURES as failure:
            self._report([explain(failure)])
            raise
        finally:
            if answers is None:
                await self.close()
        self._has_failed = False
        for answer in answers:
            if isinstance(answer, RedisError):
                self._has_failed = True
                break
        else:
            self._report(())
            return answers
        # A server that has lost its scripts gets them again: nothing is wrong.
        errors = [
            answer
            for answer in answers
            if isinstance(answer, RedisError) and not isinstance(answer, NoScriptError)
        ]
        faults = [explain(error) for error in errors] if errors else []
        is_old = time.monotonic() - self._opened_at >= RECHECK
        if is_old and any(fault.elsewhere for fault in faults):
            await self.close()
        self._report(faults)
        return answers

    async def run(
        self,
        calls: Sequence[Call],
        timeout: float,
        last: Sequence[Command] = (),
        begun: Outcome | None = None,
    ) -> list[Any]:
        """Run scripts in one round trip; each call is a script and what follows its sha.

        A server that has forgotten the scripts gets them, and again the calls that need them.

        Args:
            calls: scripts with their arguments.
            timeout: in seconds, for each round trip.
            last: commands to follow on the same connection; their answers come last.
            begun: what has come of `begin` with the same calls.

        Raises:
            FailedCalls: some were answered with an error; it holds all answers.
            FAILURES: as `call`.
        """
        count = len(calls) + len(last)
        packed = _pack_calls(calls, last) if begun is None else b""
        answers = await self._exchange(packed, count, timeout, begun)
        if not self._has_failed:
            return answers

        async def load_and_run(forgotten: Sequence[Call]) -> list[Any]:
            scripts = {script.sha: script for script, _ in forgotten}.values()
            await self.call([(b"SCRIPT", b"LOAD", script.source) for script in scripts], timeout)
            count = len(forgotten) + len(last)
            return await self._exchange(_pack_calls(forgotten, last), count, timeout)

        return await complete(calls, answers, load_and_run)

    async def close(self) -> None:
        """Close the connection; the next call opens another."""
        connection, self._connection = self._connection, None
        self._wire = None
        self._outdated = False
        if connection is not None:
            redis_private.drop(connection)

    async def distrust(self) -> None:
        """Close the connection: an answer was none to what was asked, and the next may be none either."""
        await self.close()

    async def _connect(self) -> Wire:
        self._opened_at = time.monotonic()
        await self._server.open(self._name, self._keep)
        if self._connection is None:
            raise ConnectionError("The connection was closed while it was opened.")
        self._wire = Wire.over(self._connection)
        return self._wire

    def _keep(self, connection: AbstractConnection) -> None:
        # Before it is open, so that whatever interrupts the handshake closes it.
        self._connection = connection


def new_backoff() -> Backoff:
    """Pauses between attempts to reach the backplane."""
    return Backoff(FIRST_PAUSE, LONGEST_PAUSE)


async def until_reached(attempt: Callable[[], Awaitable[T]], deadline: float) -> T:
    """Repeat an attempt to reach the backplane until it succeeds.

    Args:
        attempt: raises one of FAILURES, or BackplaneUnavailable, when it does not.
        deadline: loop time after which to give up.

    Raises:
        BackplaneUnavailable: it did not succeed in time; the message says why.
    """
    loop = asyncio.get_running_loop()
    pauses = new_backoff()
    while True:
        try:
            return await attempt()
        except (*FAILURES, BackplaneUnavailable) as error:
            pause = pauses.take()
            if loop.time() + pause >= deadline:
                if isinstance(error, BackplaneUnavailable):
                    raise
                raise unusable(error) from error
        await asyncio.sleep(pause)


class AnyLink(Protocol):
    """What `Link` is to those that read and publish."""

    @property
    def connected(self) -> bool:
        """Whether the next call needs no new connection."""

    async def call(self, commands: Sequence[Command], timeout: float) -> list[Any]:
        """See `Link.call`."""

    async def run(
        self, calls: Sequence[Call], timeout: float, last: Sequence[Command] = ()
    ) -> list[Any]:
        """See `Link.run`."""

    async def close(self) -> None:
        """See `Link.close`."""

    async def distrust(self) -> None:
        """See `Link.distrust`."""


class AnyBackplane(ABC):
    """What a worker has of the backplane, whether that is one server or a Cluster.

    Args:
        worker_name: names this worker among all that use the backplane, ever.
    """

    def __init__(self, settings: Settings, worker_name: str) -> None:
        self.settings = settings
        # Its own random part: a pid may come back while the old one's results are still kept.
        self.worker_name = f"{worker_name}-{secrets.token_hex(4)}"
        self.errors: Counter[str] = Counter()
        """Failed calls since the start, by cause (`faults.CAUSES`)."""
        self.reading_fault: Fault | None = None
        """What the last read of the streams has met; None: it went well."""
        self.reading_faults: dict[str, Fault] = {}
        """The same by type, over a Cluster."""
        self._answered = False
        self._answered_at = -math.inf
        self._warnings: list[str] = []
        self._key: bytes | None = None

    @abstractmethod
    async def connect(self, deadline: float, *, replica: bool = False) -> None:
        """Wait until the backplane answers.

        Args:
            deadline: loop time after which to give up.
            replica: whether this machine runs a replica of it.

        Raises:
            BackplaneUnavailable: it did not answer in time.
        """

    @abstractmethod
    async def close(self) -> None:
        """Close every connection."""

    @abstractmethod
    async def ask(self, commands: Sequence[Command]) -> list[Any]:
        """Commands that may run twice, beside the streams: history, presence, claims.

        Args:
            commands: with keys of one slot, if any.

        Raises:
            FAILURES: no answer from this connection, nor from a fresh one if it was an old one.
        """

    @abstractmethod
    async def run(self, script: Script, arguments: Sequence[Argument]) -> Any:
        """One script beside the streams; raises as `ask` does, but is never repeated."""

    @abstractmethod
    def reading_calls(self, types: Sequence[str]) -> AnyLink:
        """The connection over which the streams of types are read."""

    @abstractmethod
    def publishing_calls(self, type: str | None) -> AnyLink:
        """The connection over which messages of a type are stored; None: of all types."""

    def warnings(self) -> list[str]:
        """Ways in which the server's own configuration can lose messages, found at `connect`."""
        return list(self._warnings)

    @property
    def available(self) -> bool:
        """Whether the last command was answered, at most `ANSWER_AGE` ago."""
        return self._answered and time.monotonic() - self._answered_at < ANSWER_AGE

    async def shared_key(self) -> bytes:
        """32 random bytes that all workers share; a backplane that lost them gets them back."""
        try:
            (stored,) = await self._ask_repaired(b"rt:key", b"string", (b"GET", b"rt:key"))
            # Only then, so that a worker can start while nothing can be written.
            if not _is_key(stored):
                key = self._key or secrets.token_bytes(_KEY_BYTES)
                stored = await self.run(SHARE_KEY, (1, b"rt:key", key))
            if not _is_key(stored):
                raise UnexpectedAnswer("the key of the workers is none")
        except FAILURES as error:
            raise unavailable(error, "The key of the workers is unavailable") from error
        self._key = stored
        return stored

    async def get_presence(self) -> dict[str, str]:
        """The presence state as it was last set; empty before that."""
        try:
            found = await self._read_presence()
        except FAILURES as error:
            raise unavailable(error, "The presence is unavailable") from error
        return {name: word for name, word in found.items() if word is not None}

    async def set_presence(self, fields: Mapping[str, str]) -> None:
        """Replace fields of the presence state; `since` stays where nothing else changes."""
        try:
            old = await self._read_presence()
            if old["since"] and _goes_on(old, fields):
                fields = {**fields, "since": old["since"]}
            pairs = [word for pair in fields.items() for word in pair]
            await self.ask([(b"HSET", b"rt:presence", *pairs)])
        except FAILURES as error:
            raise unavailable(error, "The presence cannot be stored") from error

    async def _read_presence(self) -> dict[str, str | None]:
        # By name: another program may have added a million fields.
        command = (b"HMGET", b"rt:presence", *_PRESENCE)
        (reply,) = await self._ask_repaired(b"rt:presence", b"hash", command)
        with reading_answer():
            words = [None if word is None else word.decode(errors="replace") for word in reply]
            return dict(zip(_PRESENCE, words, strict=True))

    async def _ask_repaired(self, key: bytes, type: bytes, command: Command) -> list[Any]:
        """As `ask`, with one command about one key, which is made usable if it is of another type."""
        try:
            return await self.ask([command])
        except FAILURES as error:
            if not is_damage(error):
                raise
        log_repaired([await self.run(*repair_keys({key: type}))])
        return await self.ask([command])

    @abstractmethod
    def note_misread(self, types: Sequence[str], fault: Fault) -> None:
        """Note that an answer about the streams of types was none to what was asked."""

    def count(self, fault: Fault) -> None:
        """Count a fault that no call was answered with."""
        self.errors[fault.cause] += 1

    def _note(self, faults: Sequence[Fault]) -> None:
        if faults:
            self.errors.update(fault.cause for fault in faults)
            self._answered = all(fault.answered for fault in faults)
        else:
            self._answered = True
        if self._answered:
            self._answered_at = time.monotonic()

    def _note_reading(self, faults: Sequence[Fault]) -> None:
        self._note(faults)
        self.reading_fault = faults[0] if faults else None


class Backplane(AnyBackplane):
    """All connections of one worker to one server.

    Args:
        url: where it is; see `setting_values.backplane_url`.
        worker_name: names this worker among all that use the backplane, ever.
    """

    def __init__(self, url: str, settings: Settings, worker_name: str) -> None:
        super().__init__(settings, worker_name)
        self._server = server = server_at(url)
        self._listening: asyncio.Task[None] | None = None
        self._aborting: asyncio.Task[None] | None = None
        self.reading = Link(server, f"yujian-read-{worker_name}", self._note_reading)
        self.publishing = Link(server, f"yujian-publish-{worker_name}", self._note_publishing)
        self._asking = Link(server, f"yujian-ask-{worker_name}", self._note)
        self._misled = False
        self._lock = asyncio.Lock()

    def reading_calls(self, types: Sequence[str]) -> AnyLink:
        """See `AnyBackplane`; the same for all."""
        return self.reading

    def publishing_calls(self, type: str | None) -> AnyLink:
        """See `AnyBackplane`; the same for all."""
        return self.publishing

    async def connect(self, deadline: float, *, replica: bool = False) -> None:
        """See `AnyBackplane`."""
        info = await until_reached(self._read_info, deadline)
        config = await server_config(self.ask)
        self._warnings = risks(info, config, self.settings)
        if self.settings.backplane_url:
            self._warnings += await missing(self.ask, needs(self.settings, replica=replica))
        if self._listening is None:
            self._listening = self._server.listen(self._leave_server)

    async def _read_info(self) -> str:
        """The server's INFO, once it has loaded its data."""
        (reply,) = await self.ask([(b"INFO",)])
        info = info_of(reply)
        if "\nloading:1" in info:
            raise BusyLoadingError("it is loading its data")
        return info

    async def close(self) -> None:
        """See `AnyBackplane`."""
        for task in (self._listening, self._aborting):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        for link in (self.reading, self.publishing, self._asking):
            await link.close()
        await self._server.close()

    async def ask(self, commands: Sequence[Command]) -> list[Any]:
        """See `AnyBackplane`."""
        packed = pack(commands)
        async with self._lock:
            stale = self._asking.connected
            try:
                return await self._asking.send(packed, len(commands), ANSWER_TIMEOUT)
            except FAILURES:
                if not stale or self._asking.connected:
                    raise
                return await self._asking.send(packed, len(commands), ANSWER_TIMEOUT)

    async def run(self, script: Script, arguments: Sequence[Argument]) -> Any:
        """See `AnyBackplane`."""
        async with self._lock:
            return (await self._asking.run([(script, arguments)], ANSWER_TIMEOUT))[0]

    def note_misread(self, types: Sequence[str], fault: Fault) -> None:
        """See `AnyBackplane`."""
        self._note_reading([fault])

    def note_well(self) -> None:
        """Reading has gone well, on a connection that is not this object's."""
        self._note_reading(())

    def _leave_server(self) -> None:
        """Another server is the primary: let no call wait for the old one."""
        self._aborting = asyncio.get_running_loop().create_task(self._abort())

    async def _abort(self) -> None:
        for link in (self.reading, self.publishing, self._asking):
            link.renew()
            await link.abort()

    def _note_publishing(self, faults: Sequence[Fault]) -> None:
        self._note(faults)
        misled = bool(faults) and any(fault.elsewhere for fault in faults)
        if misled is not self._misled and (misled or not faults):
            # Where writing works now, or no longer, the other connections belong too.
            self._misled = misled
            self.reading.renew()
            self._asking.renew()


async def server_config(ask: Callable[[Sequence[Command]], Awaitable[list[Any]]]) -> dict[str, str]:
    """What of a server's configuration may lose messages; empty where it does not say it."""
    try:
        replies = await ask(
            [
                (b"CONFIG", b"GET", name)
                for name in (b"append*", b"maxmemory-policy", b"cluster-require-full-coverage")
            ]
        )
        words = [word.decode(errors="replace") for reply in replies for word in reply]
        return dict(zip(words[::2], words[1::2], strict=True))
    except (*FAILURES, *MISREAD):
        return {}  # a hosted server may forbid CONFIG; INFO then has to do


def info_of(reply: Any) -> str:
    """An answer to INFO as text.

    Raises:
        UnexpectedAnswer: it is none.
    """
    if not isinstance(reply, bytes):
        raise UnexpectedAnswer(f"{type(reply).__name__} in place of INFO")
    return reply.decode(errors="replace")


def _is_key(stored: Any) -> TypeGuard[bytes]:
    return isinstance(stored, bytes) and len(stored) == _KEY_BYTES


def _goes_on(old: Mapping[str, str | None], new: Mapping[str, str]) -> bool:
    """Whether a presence state says the same as the one before it, without a silence between."""
    if (old["state"], old["task"]) != (new.get("state"), new.get("task")):
        return False
    try:
        silence = int(new["updatedAt"]) - int(old["updatedAt"] or "")
    except (KeyError, ValueError):
        return False
    return silence <= PRESENCE_SILENCE * 1000


def risks(
    info: str, config: Mapping[str, str], settings: Settings, share: float | None = None
) -> list[str]:
    """What in a server's INFO and CONFIG can lose messages or cannot work.

    Args:
        info: its answer to INFO.
        config: from `server_config`.
        settings: of the service.
        share: of all types that are on this node of a Cluster; None: it is to be one server.
    """
    full = int(full_backplane(settings) * (1.0 if share is None else share))
    facts = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    risks = []
    if share is None and facts.get("cluster_enabled") == "1":
        risks.append(
            "the backplane is a node of a Cluster: BACKPLANE_URL must begin with redis+cluster://"
        )
    if share is not None and config.get("cluster-require-full-coverage") == "yes":
        risks.append(
            "cluster-require-full-coverage yes: one shard that is down stops the types of all"
        )
    if int(facts.get("redis_version", "7").split(".")[0]) < 7:
        risks.append("the backplane is older than Redis 7: it cannot number the streams")
    if facts.get("aof_enabled") == "0":
        risks.append("the backplane has no append-only file: a restart loses messages")
    elif config.get("appendfsync") == "everysec":
        risks.append("appendfsync everysec: a killed backplane may lose two seconds of messages")
    policy = config.get("maxmemory-policy", facts.get("maxmemory_policy", "noeviction"))
    if facts.get("maxmemory", "0") != "0" and policy != "noeviction":
        risks.append(f"maxmemory-policy {policy}: a full backplane drops messages without notice")
    replicas = len(Replication.of(info).replicas)
    if replicas < settings.backplane_wait:
        risks.append(
            f"BACKPLANE_WAIT is {settings.backplane_wait}, and the backplane has {replicas}"
            " replicas: publishing is refused until there are enough"
        )
    elif replicas and not settings.backplane_wait:
        risks.append("BACKPLANE_WAIT is 0: a failover to a replica may lose the last messages")
    limit = facts.get("maxmemory", "0").strip()
    if limit.isdigit() and 0 < int(limit) < full:
        risks.append(
            f"maxmemory {int(limit) / 2**20:.0f} MB: full histories take {full / 2**20:.0f} MB"
            " (HISTORY_BYTES for each of MESSAGE_TYPES), and publishing is refused before that"
        )
    return risks
