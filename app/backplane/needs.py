"""What the service needs of a server that is run apart from it: its commands, and the rights to them.

A managed Redis or Valkey may lack commands, or have renamed them, and its users may have few rights. What the
server itself says of both (`COMMAND INFO`, `ACL DRYRUN`) becomes one line for each command that cannot be used.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from redis.exceptions import RedisError

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


_STREAM, _META = b"{rt:status}:s", b"{rt:status}:m"

ALWAYS = (
    Need("messages are stored by scripts", (b"EVALSHA", b"0" * 40, 1, _STREAM)),
    Need("history is read by a script", (b"EVAL", b"return 1", 1, _STREAM)),
    Need("messages are stored by scripts", (b"SCRIPT", b"LOAD", b"return 1")),
    Need("messages are stored", (b"XADD", _STREAM, b"0-*", b"p", b"")),
    Need("history is bounded", (b"XTRIM", _STREAM, b"MINID", b"0-1")),
    Need("messages are read", (b"XREAD", b"STREAMS", _STREAM, b"0-0")),
    Need("messages are read", (b"XRANGE", _STREAM, b"-", b"+")),
    Need("messages are read", (b"HMGET", _META, b"p")),
    Need("messages are stored", (b"HSET", _META, b"p", b"")),
    Need("messages are stored", (b"TIME",)),
    Need("users are counted", (b"ZADD", b"{rt:users}", 0, b"w")),
    Need("workers share a key", (b"SET", b"rt:key", b"")),
    Need("its state is known", (b"INFO", b"replication")),
)
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
)


def needs(settings: Settings, *, replica: bool) -> list[Need]:
    """What these settings need; each command once.

    Args:
        settings: of the service.
        replica: whether the machine runs a replica of the server.
    """
    found = [*ALWAYS]
    if settings.backplane_wait:
        found += WAITING
    if sentinel_address(settings.backplane_url) is not None:
        found += SENTINELS
    if cluster_address(settings.backplane_url) is not None:
        found += CLUSTERS
    if replica:
        found += REPLICAS
    return list({need.sample[:2]: need for need in found}.values())


async def missing(
    ask: Callable[[Sequence[Command]], Awaitable[list[Any]]], wanted: Sequence[Need]
) -> list[str]:
    """One line for each command that the server lacks or this user may not run.

    A server that does not answer such questions is taken to have everything.

    Args:
        ask: runs commands and returns their replies; raises `RedisError` when one fails.
        wanted: from `needs`.
    """
    lines: list[str] = []
    names = [bytes(need.sample[0]) for need in wanted]  # type: ignore[arg-type]
    try:
        (found,) = await ask([(b"COMMAND", b"INFO", *names)])
        known = [entry is not None for entry in found]
        (user,) = await ask([(b"ACL", b"WHOAMI")])
        answers = await ask(
            [(b"ACL", b"DRYRUN", user, *need.sample) for need in _those(wanted, known)]
        )
    except RedisError:
        return lines
    for need, is_known in zip(wanted, known, strict=True):
        if not is_known:
            lines.append(f"the backplane has no command {_name(need)}: {need.purpose}")
    for need, answer in zip(_those(wanted, known), answers, strict=True):
        if bytes(answer) != b"OK":
            lines.append(f"the user of BACKPLANE_URL may not run {_name(need)}: {need.purpose}")
    return lines


def _those(wanted: Sequence[Need], known: Sequence[bool]) -> list[Need]:
    return [need for need, is_known in zip(wanted, known, strict=True) if is_known]


def _name(need: Need) -> str:
    return bytes(need.sample[0]).decode()  # type: ignore[arg-type]
