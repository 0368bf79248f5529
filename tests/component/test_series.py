"""Samples of the machines over time, in a real Valkey."""

from __future__ import annotations

import json
from typing import Any

import pytest

from app.backplane.series import COARSE, FINE, Sample, Series
from app.errors import BackplaneUnavailable
from tests.support.backplane import MakeNode
from tests.support.clock import Clock
from tests.support.valkeys import ValkeyProcess


async def read(series: Series, range: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(await series.read(range))
    return found


async def test_samples_come_back_by_host(make_node: MakeNode) -> None:
    series = Series((await make_node()).backplane)
    await series.add("a", FINE, Sample(1.26, 40.0, 50.0, 3))
    await series.add("b", FINE, Sample(99.0, 41.0, 51.0, 0))
    await series.add("a", FINE, Sample(2.0, 42.0, 52.0, 4.5))
    await series.add("a", COARSE, Sample(7.0, 8.0, 9.0, 10))
    fine = await read(series, "15m")
    assert (fine["range"], fine["step"], fine["end"] - fine["start"]) == ("15m", 5, 900_000)
    assert set(fine["hosts"]) == {"a", "b"}
    columns = fine["hosts"]["a"]
    assert [900 - at < 30 for at in columns.pop("t")] == [True, True]
    assert columns == {
        "cpu": [1.3, 2],
        "memory": [40, 42],
        "disk": [50, 52],
        "connections": [3, 4.5],
    }
    for range in ("1h", "6h", "24h"):
        coarse = await read(series, range)
        assert (coarse["step"], coarse["hosts"]["a"]["cpu"]) == (60, [7])


async def test_an_answer_is_given_again_for_a_while(make_node: MakeNode) -> None:
    node = await make_node()
    clock = Clock()
    series = Series(node.backplane, clock)
    assert (await read(series, "15m"))["hosts"] == {}
    await series.add("a", FINE, Sample(1, 2, 3, 4))
    assert (await read(series, "15m"))["hosts"] == {}
    assert (await read(series, "1h"))["hosts"] == {}
    clock.now = 2.0
    assert "a" in (await read(series, "15m"))["hosts"]


async def test_what_another_version_wrote_is_left_out(make_node: MakeNode) -> None:
    node = await make_node()
    key = b"rt:series:fine"
    for fields in ([b"v", b"1,2,3,4"], [b"h", b"x", b"v", b"1,2"], [b"h", b"x", b"v", b"nan,1,1,1"],
                   [b"h", b"\xff", b"v", b"1,2,3,4"], [b"z", b"z"]):  # fmt: skip
        await node.backplane.ask([(b"XADD", key, b"*", *fields)])
    series = Series(node.backplane)
    await series.add("ok", FINE, Sample(1, 2, 3, 4))
    assert list((await read(series, "15m"))["hosts"]) == ["ok"]


async def test_the_streams_are_bounded(make_node: MakeNode) -> None:
    node = await make_node()
    series = Series(node.backplane)
    command = (b"XADD", b"rt:series:fine", b"*", b"h", b"a", b"v", b"1,2,3,4")
    for _ in range(7):
        await node.backplane.ask([command] * 500)
    await series.add("a", FINE, Sample(1, 2, 3, 4))
    (length,) = await node.backplane.ask([(b"XLEN", b"rt:series:fine")])
    assert 3_000 <= length <= 3_200


async def test_without_the_backplane(make_node: MakeNode, valkey: ValkeyProcess) -> None:
    series = Series((await make_node()).backplane)
    valkey.kill()
    with pytest.raises(BackplaneUnavailable):
        await series.add("a", FINE, Sample(1, 2, 3, 4))
    with pytest.raises(BackplaneUnavailable):
        await series.read("15m")
