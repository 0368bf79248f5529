"""What a server lacks, or does not allow, is said at the start: one line for each command."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest
import redis

from app.backplane.client import Backplane
from app.config import Settings
from tests.support.valkeys import Starter

COMMON = ("+@all", "~{rt:*", "~rt:*", "&*")


async def warnings(url: str, *, replica: bool = False, wait: int = 0) -> list[str]:
    settings = dataclasses.replace(Settings(), backplane_url=url, backplane_wait=wait)
    backplane = Backplane(url, settings, "test")
    try:
        await backplane.connect(asyncio.get_running_loop().time() + 5, replica=replica)
    finally:
        await backplane.close()
    words = ("has no command", "may not run")
    return [line for line in backplane.warnings() if any(word in line for word in words)]


def as_user(url: str, *rules: str) -> str:
    with redis.from_url(url) as client:
        client.execute_command("ACL", "SETUSER", "lab", "reset", "on", ">word", *rules)
    return url.replace("redis://", "redis://lab:word@")


async def test_a_server_with_everything_is_fine(start_valkey: Starter) -> None:
    url = start_valkey()
    assert await warnings(url, replica=True, wait=1) == []
    assert await warnings(as_user(url, *COMMON), replica=True, wait=1) == []


@pytest.mark.parametrize(
    ("rule", "line"),
    [
        ("-xread", "the user of BACKPLANE_URL may not run XREAD: messages are read"),
        ("-psync", "the user of BACKPLANE_URL may not run PSYNC: BACKPLANE_REPLICA"),
        ("-role", "the user of BACKPLANE_URL may not run ROLE: BACKPLANE_WAIT"),
        (
            "-script|load",
            "the user of BACKPLANE_URL may not run SCRIPT: messages are stored by scripts",
        ),
    ],
)
async def test_a_right_that_is_missing(start_valkey: Starter, rule: str, line: str) -> None:
    assert await warnings(as_user(start_valkey(), *COMMON, rule), replica=True, wait=1) == [line]


async def test_keys_that_are_not_allowed(start_valkey: Starter) -> None:
    (line,) = await warnings(as_user(start_valkey(), "+@all", "~{rt:*", "&*"))
    assert line == "the user of BACKPLANE_URL may not run SET: workers share a key"


async def test_what_is_not_used_need_not_be_allowed(start_valkey: Starter) -> None:
    url = as_user(start_valkey(), *COMMON, "-psync", "-replconf", "-wait", "-role")
    assert await warnings(url) == []


async def test_a_command_that_the_server_lacks(start_valkey: Starter) -> None:
    url = start_valkey("--rename-command", "WAIT", "")
    assert await warnings(url, wait=1) == ["the backplane has no command WAIT: BACKPLANE_WAIT"]


async def test_a_server_that_does_not_say_what_it_allows(start_valkey: Starter) -> None:
    assert (
        await warnings(as_user(start_valkey(), *COMMON, "-acl", "-command", "-psync"), replica=True)
        == []
    )
