"""What a replica knows of its primary, how far it is behind, and which one confirms a message."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from app.backplane.publisher import _confirmations
from app.backplane.replica import ReplicaFile, ReplicaNote
from app.backplane.replication import Attached, Replication
from app.config import Settings
from workers.leader.replica import Address, Lag, Source, source_of, url, why_none

PRIMARY = """# Replication\r
role:master\r
connected_slaves:3\r
slave0:ip=10.0.0.2,port=6379,state=online,offset=120,lag=0,type=replica\r
slave1:ip=10.0.0.3,port=0,state=online,offset=120,lag=0,type=replica\r
slave2:ip=fd00::4,port=6380,state=wait_bgsave,offset=0,lag=0,type=replica\r
master_replid:abc\r
master_repl_offset:123\r
"""
REPLICA = """role:slave\r
master_host:10.0.0.1\r
master_port:6379\r
master_link_status:up\r
slave_repl_offset:120\r
master_replid:abc\r
master_repl_offset:123\r
"""


def test_a_primary_names_its_replicas() -> None:
    found = Replication.of(PRIMARY)
    assert (found.role, found.history, found.offset) == ("master", "abc", 123)
    assert found.replicas == [Attached("10.0.0.2", 6379, True), Attached("fd00::4", 6380, False)]
    assert len(found.attached) == 3
    assert not found.counts_replicas
    assert Replication.of(PRIMARY + "min_slaves_good_slaves:1\r\n").counts_replicas


def test_a_replica_names_its_primary() -> None:
    found = Replication.of(REPLICA)
    assert (found.role, found.primary, found.linked) == ("slave", ("10.0.0.1", 6379), True)
    assert found.offset == 120, "what it has carried out"
    assert Replication.of("") == Replication("", "", 0, ("", 0), False, False, [])


def test_lag_is_known_in_bytes_and_seconds() -> None:
    lag = Lag()
    assert lag.behind(1.0, 5) == (0, 0.0)
    for second, offset in enumerate((100, 100, 200, 300)):
        lag.note_primary(float(second), offset)
    assert lag.behind(3.0, 300) == (0, 0.0)
    assert lag.behind(3.0, 310) == (0, 0.0), (
        "it may have more than the primary had when it was asked"
    )
    assert lag.behind(3.5, 200) == (100, 0.5)
    assert lag.behind(3.0, 100) == (200, 1.0)
    assert lag.behind(3.0, 50) == (250, 3.0)


def test_another_primary_begins_its_lag_anew() -> None:
    lag = Lag()
    lag.note_primary(1.0, 1000)
    lag.note_primary(2.0, 10)
    assert lag.behind(2.0, 10) == (0, 0.0)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("redis://10.0.0.1", Source(Address("10.0.0.1", 6379), "", "", 0)),
        ("redis://u:p%40@[fd00::1]:7000/3", Source(Address("fd00::1", 7000), "u", "p@", 3)),
        ("redis+sentinel://u:p@a,b:1/lab/2", Source(None, "u", "p", 2)),
    ],
)
def test_what_can_be_followed(text: str, found: Source) -> None:
    assert source_of(text) == found


@pytest.mark.parametrize(
    "text",
    ["unix:///run/valkey.sock", "rediss://a", "rediss+sentinel://a/lab", "redis+cluster://a"],
)
def test_what_cannot(text: str) -> None:
    assert isinstance(source_of(text), str)
    settings = dataclasses.replace(Settings(), backplane_url=text, workers=4)
    assert url(settings) is None
    assert why_none(settings) == source_of(text)


def test_without_a_shared_server_there_is_nothing_to_say() -> None:
    settings = dataclasses.replace(Settings(), workers=4)
    assert url(settings) is None
    assert why_none(settings) is None
    off = dataclasses.replace(settings, backplane_url="redis://a", backplane_replica="0")
    assert url(off) is None
    assert why_none(off) is None


def role(offset: int, *replicas: tuple[int, int]) -> list[object]:
    return [b"master", offset, [[b"ip", b"%d" % port, b"%d" % at] for port, at in replicas]]


@pytest.mark.parametrize(
    ("after", "count"),
    [
        (role(50, (6379, 40), (6380, 10)), 2),  # none of a machine: WAIT is exact
        (role(50, (6379, 40), (0, 50)), 1),
        (role(50, (6379, 39), (0, 50)), 0),
        (role(50, (0, 50), (0, 50)), 0),
    ],
)
def test_replicas_of_machines_confirm_nothing(after: list[object], count: int) -> None:
    assert _confirmations(role(40), 2, after) == count


def test_without_the_right_to_ask_for_roles_the_answer_to_wait_counts() -> None:
    assert _confirmations(RuntimeError(), 2, RuntimeError()) == 2


def test_a_note_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    file = ReplicaFile(tmp_path / "note")
    assert file.read() is None
    note = ReplicaNote(1.0, True, "in sync", "abc", 2.0, 0, 0.0)
    file.write(note)
    assert file.read() == note
    sound = (tmp_path / "note").read_text()
    odd = sound.replace("1.0", '"x"'), sound.replace("1.0", "NaN")
    for text in ("", "{", "[]", '{"at": 1}', "null", *odd):
        (tmp_path / "note").write_text(text)
        assert file.read() is None
    (tmp_path / "note").unlink()
    (tmp_path / "note").symlink_to("/etc/passwd")
    assert file.read() is None
    file.remove()
    file.remove()
