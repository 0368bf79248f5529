"""What the service needs of a server that is run apart from it: its commands, and the rights to them.

A managed Redis or Valkey may lack commands, or have renamed them, and its users may have few rights. What the
server itself says of both (`COMMAND INFO`, `ACL DRYRUN`) becomes one line for each command that cannot be used.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio.connection import parse_url
from redis.exceptions import RedisError

from app.backplane.faults import reading_answer
from app.config import Settings
from app.setting_values import cluster_address, sentinel_address

Command = tuple[bytes | str | int, ...]


@dataclass(frozen=True, slots=True)
class Need:
    """A command that must work."""

    purpose: str
    """What does not work without it."""
    sample: Command
    """A call as the service makes it, with keys and words of its kind."""

    @property
    def command(self) -> str:
        """Its name in an access list, such as `xadd` or `script|load`."""
        words = self.sample[: 1 + (self.sample[0] in _WITH_SUBCOMMANDS)]
        return b"|".join(bytes(word) for word in words).decode().lower()  # type: ignore[arg-type]


_STREAM, _META, _ONCE = b"{rt:status}:s", b"{rt:status}:m", b"{rt:status}:o"
_RECORD, _USERS, _HELD = b"{rt:status}:w:worker", b"{rt:users}", b"{rt:users}:worker"

STORING, READING = "messages are stored", "messages are read"
SCRIPTS = "messages are stored by scripts"
BOUNDING, IDS, REPAIRING = "history is bounded", "known ids are kept", "damaged keys are repaired"
COUNTING, KEY = "users are counted", "workers share a key"

ALWAYS = (
    Need("connections have names", (b"CLIENT", b"SETNAME", b"yujian")),
    Need(SCRIPTS, (b"EVALSHA", b"0" * 40, 1, _STREAM)),
    Need("history is read by a script", (b"EVAL", b"return 1", 1, _STREAM)),
    Need(SCRIPTS, (b"SCRIPT", b"LOAD", b"return 1")),
    Need(STORING, (b"XADD", _STREAM, b"0-*", b"p", b"")),
    Need(STORING, (b"XINFO", b"STREAM", _STREAM)),
    Need(STORING, (b"EXISTS", _STREAM)),
    Need(STORING, (b"GET", _RECORD)),
    Need(STORING, (b"HSET", _META, b"p", b"")),
    Need(STORING, (b"TIME",)),
    Need(BOUNDING, (b"XLEN", _STREAM)),
    Need(BOUNDING, (b"XTRIM", _STREAM, b"MINID", b"0-1")),
    Need(IDS, (b"HGET", _ONCE, b"id")),
    Need(IDS, (b"HLEN", _ONCE)),
    Need(IDS, (b"PEXPIRE", _ONCE, 1)),
    Need(IDS, (b"RENAME", _ONCE, b"{rt:status}:q")),
    Need(IDS, (b"UNLINK", _ONCE)),
    Need(READING, (b"XREAD", b"STREAMS", _STREAM, b"0-0")),
    Need(READING, (b"XRANGE", _STREAM, b"-", b"+")),
    Need(READING, (b"XREVRANGE", _STREAM, b"+", b"-")),
    Need(READING, (b"HMGET", _META, b"p")),
    Need(REPAIRING, (b"TYPE", _STREAM)),
    Need(REPAIRING, (b"DEL", _STREAM)),
    Need(COUNTING, (b"ZADD", _USERS, 0, b"w")),
    Need(COUNTING, (b"ZREM", _USERS, b"w")),
    Need(COUNTING, (b"ZCARD", _USERS)),
    Need(COUNTING, (b"ZCOUNT", _USERS, b"-inf", b"+inf")),
    Need(COUNTING, (b"ZSCORE", _USERS, b"w")),
    Need(COUNTING, (b"ZRANGE", _USERS, 0, -1)),
    Need(COUNTING, (b"ZRANGEBYSCORE", _USERS, b"-inf", b"+inf")),
    Need(COUNTING, (b"ZREMRANGEBYSCORE", _USERS, b"-inf", 0)),
    Need(COUNTING, (b"HDEL", _HELD, b"u")),
    Need(COUNTING, (b"HINCRBY", _HELD, b"u", 1)),
    Need(COUNTING, (b"HKEYS", _HELD)),
    Need(COUNTING, (b"HRANDFIELD", _HELD, 1)),
    Need(KEY, (b"SET", b"rt:key", b"")),
    Need("its state is known", (b"INFO", b"replication")),
)
LISTS = (
    Need(
        "PRESENCE_NAMES and JOIN_LEAVE", (b"ZRANGEBYLEX", b"{rt:attendance}:n:status", b"-", b"+")
    ),
)
SELECTED = (Need("BACKPLANE_URL names a database", (b"SELECT", 0)),)
WAITING = (
    Need("BACKPLANE_WAIT", (b"WAIT", 1, 1)),
    Need("BACKPLANE_WAIT", (b"ROLE",)),
)
SENTINELS = (Need("the primary is recognised", (b"ROLE",)),)
CLUSTERS = (
    Need("its nodes are found", (b"CLUSTER", b"SLOTS")),
    Need("messages are read when they come", (b"CLIENT", b"TRACKING", b"ON", b"BCAST")),
    Need("slots that move are followed", (b"ASKING",)),
)
REPLICAS = (
    Need("BACKPLANE_REPLICA", (b"PSYNC", b"?", b"-1")),
    Need("BACKPLANE_REPLICA", (b"REPLCONF", b"ACK", 0)),
    Need("BACKPLANE_REPLICA", (b"PING",)),
)
CHECKS = ("command|info", "acl|whoami", "acl|dryrun")
"""Rights without which nothing is checked at the start; nothing else needs them."""
KEYS = ("~{rt:*", "~rt:*")
"""All keys of the service, as rules of an access list."""

_WITH_SUBCOMMANDS = {b"CLIENT", b"CLUSTER", b"SCRIPT", b"XINFO"}


def needs(settings: Settings, *, replica: bool) -> list[Need]:
    """What these settings need; each command once.

    Args:
        settings: of the service.
        replica: whether the machine runs a replica of the server.
    """
    found = [*ALWAYS]
    if settings.listed_types() or settings.announced_types():
        found += LISTS
    if settings.backplane_wait:
        found += WAITING
    sentinels = sentinel_address(settings.backplane_url)
    if sentinels is not None:
        found += SENTINELS
    plain = settings.backplane_url if sentinels is None else sentinels.url
    if cluster_address(plain) is None and parse_url(plain).get("db"):
        found += SELECTED
    if cluster_address(settings.backplane_url) is not None:
        found += CLUSTERS
    if replica:
        found += REPLICAS
    return list({need.command: need for need in reversed(found)}.values())[::-1]


def access_rules(wanted: Sequence[Need]) -> list[str]:
    """What an access list (`ACL SETUSER`) must allow for these; with `CHECKS`."""
    return [*KEYS, *sorted(f"+{need.command}" for need in wanted), *(f"+{one}" for one in CHECKS)]


async def missing(
    ask: Callable[[Sequence[Command]], Awaitable[list[Any]]], wanted: Sequence[Need]
) -> list[str]:
    """One line for each command that the server lacks or this user may not run.

    A server that does not answer such questions is taken to have everything.

    Args:
        ask: runs commands and returns their replies; raises `RedisError` or `OSError` when one fails.
        wanted: from `needs`.
    """
    lines: list[str] = []
    names = [bytes(need.sample[0]) for need in wanted]  # type: ignore[arg-type]
    try:
        with reading_answer():
            (found,) = await ask([(b"COMMAND", b"INFO", *names)])
            known = [entry is not None for entry in found]
            (user,) = await ask([(b"ACL", b"WHOAMI")])
            allowed = await ask(
                [(b"ACL", b"DRYRUN", user, *need.sample) for need in _those(wanted, known)]
            )
            for need, is_known in zip(wanted, known, strict=True):
                if not is_known:
                    lines.append(f"the backplane has no command {_name(need)}: {need.purpose}")
            for need, answer in zip(_those(wanted, known), allowed, strict=True):
                if answer != b"OK":
                    lines.append(
                        f"the user of BACKPLANE_URL may not run {_name(need)}: {need.purpose}"
                    )
    except (RedisError, OSError):
        return []
    return lines


def _those(wanted: Sequence[Need], known: Sequence[bool]) -> list[Need]:
    return [need for need, is_known in zip(wanted, known, strict=True) if is_known]


def _name(need: Need) -> str:
    return bytes(need.sample[0]).decode()  # type: ignore[arg-type]
