"""Servers that are reached by TLS: one, a Cluster, and what Sentinels name."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator

import pytest

from app.backplane.client import Backplane, Link
from app.backplane.history import History
from app.backplane.server import server_at
from app.config import Settings
from app.errors import BackplaneUnavailable
from tests.support.backplane import Node, draft
from tests.support.cluster import Cluster, Side
from tests.support.delivery import turn
from tests.support.descriptors import open_files
from tests.support.tls import TlsFront
from tests.support.valkeys import Starter, port_of
from tests.support.waiting import until
from workers.leader import replica

pytestmark = [pytest.mark.timeout(120), pytest.mark.no_cover]


@pytest.fixture
def front() -> Iterator[TlsFront]:
    with TlsFront() as front:
        yield front


def settings_of(url: str, **others: object) -> Settings:
    return dataclasses.replace(Settings(), backplane_url=url, workers=2, **others)  # type: ignore[arg-type]


async def test_one_server(front: TlsFront, start_valkey: Starter) -> None:
    port = front.relay(("127.0.0.1", port_of(start_valkey())))
    url = f"rediss://127.0.0.1:{port}/0?{front.options}"
    settings = settings_of(url)
    node = Node(url, settings, None)  # type: ignore[arg-type]
    try:
        await node.backplane.connect(asyncio.get_running_loop().time() + 30)
        await node.reader.start()
        large = b'{"large":"%b"' % (b"x" * 900_000)
        await node.publish(draft(), draft(large))
        first, second = await node.read(2)
        assert (first.seq, second.body) == (1, large)  # type: ignore[union-attr]
        front.cut()
        (third,) = await node.publish(draft())
        assert third.seq == 3
        assert (await node.read(1))[0].seq == 3  # type: ignore[union-attr]
        assert (await History(node.backplane, node.reader.positions).newest("status", 5))[0]
        assert (front.plain, front.encrypted) == (0, front.encrypted)
        assert front.encrypted >= 3
    finally:
        await node.backplane.close()
    assert replica.why_none(settings) == (
        "a replica does not check the name in a TLS certificate, as workers do"
    )


async def refused(backplane: Backplane, said: str) -> None:
    """Wait until the backplane is refused for a reason; a slow machine may be late with it."""
    with pytest.raises(BackplaneUnavailable, match=said):
        async with asyncio.timeout(60):
            while True:
                try:
                    await backplane.connect(asyncio.get_running_loop().time())
                except BackplaneUnavailable as error:
                    if "in time" not in str(error):
                        raise
    await backplane.close()
    await turn()  # asyncio closes what has failed its handshake in a later pass


@pytest.mark.parametrize(
    ("scheme", "words", "said"),
    [
        ("rediss", "", "certificate verify failed"),
        ("redis", "", "the connection is lost"),
    ],
    ids=["an authority that is not known", "no TLS where it is asked for"],
)
async def test_what_cannot_be_trusted(
    start_valkey: Starter, scheme: str, words: str, said: str
) -> None:
    with TlsFront("other.example") as front:
        port = front.relay(("127.0.0.1", port_of(start_valkey())))
        url = f"{scheme}://127.0.0.1:{port}/0{words}"
        front.refuses_plain = True
        backplane = Backplane(url, settings_of(url), "test")
        await refused(backplane, said)


async def test_a_certificate_for_another_name(start_valkey: Starter) -> None:
    with TlsFront("other.example") as front:
        port = front.relay(("127.0.0.1", port_of(start_valkey())))
        url = f"rediss://127.0.0.1:{port}/0?{front.options}"
        backplane = Backplane(url, settings_of(url), "test")
        await refused(backplane, "IP address mismatch")


@pytest.mark.parametrize("encrypted", [True, False])
async def test_a_server_that_has_stopped_keeps_no_socket_open(
    front: TlsFront, start_valkey: Starter, encrypted: bool
) -> None:
    port = front.relay(("127.0.0.1", port_of(start_valkey())))
    url = (
        f"rediss://127.0.0.1:{port}/0?{front.options}"
        if encrypted
        else f"redis://127.0.0.1:{port}/0"
    )
    link = Link(server_at(url), "test", lambda _: None)
    await link.call([("PING",)], 30)
    with front.stopped():
        before = open_files()
        with pytest.raises(TimeoutError):
            await link.call([("SET", "large", b"x" * 20_000_000)], 0.1)
        await turn()
        assert open_files() == before - 1


async def test_a_cluster(front: TlsFront) -> None:
    front.refuses_plain = True
    with Cluster(front=front.relay) as cluster:
        url = f"{cluster.url.replace('redis+', 'rediss+')}?{front.options}"
        types = ("status", "stats", "health", "config")
        async with Side(url, "one") as writer, Side(url, "two") as reader:
            async with writer.streaming(types):
                await until(lambda: all(len(reader.got[type]) > 5 for type in types), "they come")
                to = cluster.others("status")[0]
                await asyncio.to_thread(cluster.migrate, "status", to)
                await asyncio.to_thread(cluster.wait_for_primary, "status", to)
                seen = len(reader.got["status"])
                await until(lambda: len(reader.got["status"]) > seen + 20, "it goes on")
                front.cut()
                before = {type: len(reader.got[type]) for type in types}
                await until(
                    lambda: all(len(reader.got[type]) > before[type] + 5 for type in types),
                    "all go on",
                )
            await until(
                lambda: all(
                    reader.numbers(type)[-1:] == writer.stored[type][-1:] for type in types
                ),
                "all is read",
            )
            assert reader.gaps() == []
            for type in types:
                assert reader.numbers(type) == writer.stored[type]
    assert front.plain == 0
