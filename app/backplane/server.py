"""Which server the backplane is: the one at an address, or the primary that Sentinels name.

With Sentinels each new connection asks them for the primary and asks that server for its role. In
addition every Sentinel is listened to: `+switch-master` ends the connections to the old primary, which
may be frozen and so may keep them open (https://valkey.io/topics/sentinel-clients/).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit, urlunsplit

from redis.asyncio import Redis
from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    ConnectionPool,
    RedisSSLContext,
    SSLConnection,
    parse_url,
)
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as LibraryTimeout

from app.backplane.faults import MISREAD, explain, reading_answer
from app.errors import SettingsError
from app.setting_values import SentinelAddress, cluster_address, sentinel_address

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT = 1.0
"""Seconds for opening a connection to a server."""
SENTINEL_TIMEOUT = 0.5
"""Seconds for which one Sentinel is waited for before the next one is asked."""
LISTEN_PAUSE = 1.0
"""Seconds before a Sentinel that could not be listened to is tried again."""
PING_SECONDS = 5
"""Seconds without a message after which the connection to a Sentinel is tried."""

_SWITCH = "+switch-master"
_SENTINEL_WORDS = ("sentinel_username", "sentinel_password")


class Server(Protocol):
    """Makes connections to a server that takes writes."""

    async def open(self, name: str, keep: Callable[[AbstractConnection], None]) -> None:
        """Open a connection.

        Args:
            name: shown by CLIENT LIST.
            keep: is given the connection before it is open, to close it if this is cancelled.

        Raises:
            RedisError, OSError: it cannot be opened.
        """

    def listen(self, switched: Callable[[], None]) -> asyncio.Task[None] | None:
        """Call `switched` when another server has become the primary, until the task is cancelled."""

    async def close(self) -> None:
        """Close what serves to find the server; connections to it are their owner's."""


def server_at(url: str) -> Server:
    """The server that BACKPLANE_URL means; see `setting_values.backplane_url`."""
    address = sentinel_address(url)
    return SingleServer(url) if address is None else SentinelServer(address)


class Certificates:
    """What connections check a server's certificate with, read again when one of its files has changed.

    To read those of all authorities takes some 50 ms, in which a worker serves no client: too long
    for each attempt to open a connection.
    """

    def __init__(self) -> None:
        self._latest: RedisSSLContext | None = None
        self._states: list[tuple[int, ...]] = []

    def latest(self, own: RedisSSLContext) -> RedisSSLContext:
        """What a connection is to use.

        Args:
            own: made for the connection, from options that are the same each time.
        """
        usual = ssl.get_default_verify_paths()
        files = (own.ca_certs, own.ca_path, own.certfile, own.keyfile, usual.cafile, usual.capath)
        states = [_state(path) for path in files if path]
        if self._latest is None or states != self._states:
            self._latest, self._states = own, states
        return self._latest


def _state(path: str) -> tuple[int, ...]:
    """Differs when a file has been replaced or written to."""
    try:
        found = Path(path).stat()
    except OSError:
        return ()
    return found.st_ino, found.st_mtime_ns, found.st_size


class TlsConnection(SSLConnection):
    """With certificates that others have read.

    Args:
        certificates: of all connections to the same server.
        options: see `SSLConnection`.
    """

    def __init__(self, *, certificates: Certificates, **options: Any) -> None:
        super().__init__(**options)
        self.ssl_context = certificates.latest(self.ssl_context)


def connection_options(url: str) -> tuple[type[AbstractConnection], dict[str, Any]]:
    """Kind and options of connections to the server of a URL that redis-py understands."""
    options: dict[str, Any] = dict(parse_url(url))
    kind: type[AbstractConnection] = options.pop("connection_class", Connection)
    if kind is SSLConnection:
        kind = TlsConnection
        options["certificates"] = Certificates()
    return kind, options | {
        "driver_info": None,
        "protocol": 2,
        "retry": Retry(NoBackoff(), 0),
        "socket_connect_timeout": CONNECT_TIMEOUT,
        "socket_timeout": None,
    }


def check_options(url: str) -> None:
    """Find out whether the options of a BACKPLANE_URL are some that connections have.

    Raises:
        SettingsError: they are not.
    """
    sentinels, cluster = sentinel_address(url), cluster_address(url)
    if sentinels is not None:
        _, url = _without_sentinel_words(sentinels.url)
    elif cluster is not None:
        url = cluster.url
    try:
        kind, options = connection_options(url)
        kind(client_name="", **options)
    except (TypeError, ValueError, RedisError) as error:
        raise SettingsError(f"BACKPLANE_URL: an option of it is wrong: {error}") from None


async def open_connection(connection: AbstractConnection) -> None:
    """Open a connection: address, TLS, login.

    Raises:
        RedisError, OSError: it cannot be opened, whatever the server says or its address is.
    """
    try:
        with reading_answer():
            await connection.connect()  # type: ignore[no-untyped-call]
    except LibraryTimeout as error:
        raise TimeoutError("no connection in time") from error


class SingleServer:
    """The server at one address.

    Args:
        url: `unix://path`, `redis://` or `rediss://`.
    """

    def __init__(self, url: str) -> None:
        self._kind, self._options = connection_options(url)

    async def open(self, name: str, keep: Callable[[AbstractConnection], None]) -> None:
        """See `Server`."""
        connection = self._kind(client_name=name, **self._options)
        keep(connection)
        await open_connection(connection)

    def listen(self, switched: Callable[[], None]) -> asyncio.Task[None] | None:
        """An address means the same server for ever."""
        return None

    async def close(self) -> None:
        """Nothing is kept."""


class SentinelServer:
    """The primary that Sentinels name.

    Args:
        address: of the Sentinels, the name of the primary, and how to log in.
    """

    def __init__(self, address: SentinelAddress) -> None:
        self._name = address.name
        words, url = _without_sentinel_words(address.url)
        self._kind, self._options = connection_options(url)
        for where in ("host", "port"):
            self._options.pop(where, None)
        self._sentinel_options: dict[str, Any] = {
            "decode_responses": True,
            "protocol": 2,
            "retry": Retry(NoBackoff(), 0),
            "socket_connect_timeout": SENTINEL_TIMEOUT,
            "username": words.get("sentinel_username"),
            "password": words.get("sentinel_password"),
        }
        self._sentinel_options |= {
            word: value
            for word, value in self._options.items()
            if word.startswith("ssl_") or word == "certificates"
        }
        self._addresses = address.sentinels
        self._last_switch = ""
        self._searching = asyncio.Lock()  # a search reorders the Sentinels
        self._sentinels = Sentinel([])  # type: ignore[no-untyped-call]
        self._sentinels.sentinels.extend(
            self._client(*place, socket_timeout=SENTINEL_TIMEOUT) for place in address.sentinels
        )

    async def open(self, name: str, keep: Callable[[AbstractConnection], None]) -> None:
        """See `Server`; asks the Sentinels first."""
        async with self._searching:
            host, port = await self._find()
        where: dict[str, Any] = {"host": host, "port": port}
        connection = self._kind(client_name=name, **where, **self._options)
        keep(connection)
        await open_connection(connection)
        with reading_answer():
            await connection.send_command("ROLE")
            role = await connection.read_response()
            is_primary = bytes(role[0]) == b"master"
        if not is_primary:
            raise MasterNotFoundError(f"the primary for {self._name!r} has become a replica")

    def _client(self, host: str, port: int, **options: Any) -> Redis:
        """A client of one Sentinel."""
        kind = TlsConnection if self._kind is TlsConnection else Connection
        pool = ConnectionPool(
            connection_class=kind, host=host, port=port, **self._sentinel_options, **options
        )
        return Redis.from_pool(pool)

    async def _find(self) -> tuple[str, int]:
        """Where the primary is, by the first Sentinel that knows one; it is asked first the next time.

        Raises:
            MasterNotFoundError: none does.
        """
        sentinels, said = self._sentinels.sentinels, ""
        for number, sentinel in enumerate(sentinels):
            try:
                primaries: Any = await sentinel.sentinel_masters()
                found = primaries.get(self._name)
                if found and self._sentinels.check_master_state(found, self._name):
                    sentinels[0], sentinels[number] = sentinel, sentinels[0]
                    return str(found["ip"]), int(found["port"])
            except (RedisError, OSError, *MISREAD) as error:
                # One that is ill keeps no other from being asked.
                said = f"; one of them: {explain(error).words}"
        raise MasterNotFoundError(f"no Sentinel names a primary for {self._name!r}{said}")

    def listen(self, switched: Callable[[], None]) -> asyncio.Task[None] | None:
        """See `Server`."""
        return asyncio.get_running_loop().create_task(self._listen(switched), name="sentinels")

    async def close(self) -> None:
        """Close the connections to the Sentinels."""
        with contextlib.suppress(RedisError, OSError):
            await self._sentinels.aclose()

    async def _listen(self, switched: Callable[[], None]) -> None:
        async with asyncio.TaskGroup() as group:
            for host, port in self._addresses:
                group.create_task(self._listen_to(host, port, switched))

    async def _listen_to(self, host: str, port: int, switched: Callable[[], None]) -> None:
        while True:
            client = self._client(host, port, health_check_interval=PING_SECONDS)
            async with client, client.pubsub() as channel:
                with contextlib.suppress(RedisError, OSError, *MISREAD):
                    await channel.subscribe(_SWITCH)
                    while True:
                        message = await channel.get_message(
                            ignore_subscribe_messages=True, timeout=PING_SECONDS
                        )
                        if message and self._is_new(str(message["data"])):
                            switched()
            await asyncio.sleep(LISTEN_PAUSE)

    def _is_new(self, data: str) -> bool:
        """Whether '<name> <old ip> <old port> <new ip> <new port>' is about our primary.

        Every Sentinel announces the same switch.
        """
        words = data.split()
        if len(words) != 5 or words[0] != self._name or data == self._last_switch:
            return False
        self._last_switch = data
        logger.warning(
            "The primary of the backplane has changed: %s:%s in place of %s:%s",
            *(words[3], words[4], words[1], words[2]),
        )
        return True


def _without_sentinel_words(url: str) -> tuple[dict[str, str], str]:
    """Take out of a URL's query what is for the Sentinels alone."""
    parts = urlsplit(url)
    found, others = {}, []
    for pair in parts.query.split("&"):
        word, _, value = pair.partition("=")
        if word in _SENTINEL_WORDS:
            found[word] = unquote(value)
        elif pair:
            others.append(pair)
    return found, urlunsplit(parts._replace(query="&".join(others)))
