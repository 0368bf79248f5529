"""The slot table, where one process is enough to see it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.support.slots import slots
from workers.shared import slots as shared_slots
from workers.shared import users as shared_users
from workers.shared.processes import start_time
from workers.shared.slots import LEAVING, READY, STARTING, SlotTable


def test_reused_pid_is_not_taken_for_the_worker(
    table: SlotTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    table.claim_row(master=1)
    born = start_time(os.getpid())
    assert born
    monkeypatch.setattr(shared_slots, "start_time", lambda pid: born + 1)
    assert table.sweep() == [os.getpid()]


def test_states_and_failed_starts(table: SlotTable) -> None:
    row = table.claim_row(master=1)
    first = table.rows()[0]
    assert first.state == STARTING
    table.set_state(row, LEAVING)
    assert table.rows()[0].state == LEAVING
    table.free(os.getpid())
    assert table.failed_starts == 0
    table.claim_row(master=1)
    assert table.rows()[0].generation == first.generation + 1
    table.free(os.getpid())
    assert table.failed_starts == 1


def test_workers_that_died_while_they_served_are_counted(
    table: SlotTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    for state in (READY, LEAVING, STARTING):
        table.set_state(table.claim_row(master=1), state)
        table.free(os.getpid())
    assert table.deaths == 0
    for state in (READY, LEAVING, STARTING):
        table.set_state(table.claim_row(master=1), state)
        with monkeypatch.context() as patch:
            patch.setattr(shared_slots, "start_time", lambda pid: None)
            assert table.sweep() == [os.getpid()]
            assert table.sweep() == []
    assert table.deaths == 1


def test_queue_is_bounded_in_messages_and_bytes(table: SlotTable) -> None:
    row = table.claim_row(master=1)
    assert slots(table, row, queue=(2, 100)).reserve_queue(60)
    assert not slots(table, row, queue=(2, 100)).reserve_queue(41)
    assert slots(table, row, queue=(2, 100)).reserve_queue(40)
    assert not slots(table, row, queue=(2, 100)).reserve_queue(0)
    assert not slots(table, row, queue=(5, 200)).reserve_queue(10, 4)
    assert not slots(table, row, queue=(5, 200)).reserve_queue(101, 3)
    assert slots(table, row, queue=(5, 200)).reserve_queue(100, 3)
    assert slots(table).queue_totals() == (5, 200)
    slots(table, row).release_queue(5, 200)
    assert slots(table).queue_totals() == (0, 0)


def test_evictions_ask_the_lowest_rank_first(table: SlotTable) -> None:
    here = table.claim_row(master=1)
    one = table.claim_row(master=1)
    two = table.claim_row(master=1)
    slots(table, here).set_queued((0, 0, 5))
    slots(table, one).set_queued((1, 1, 0))
    slots(table, two).set_queued((0, 0, 1))
    assert not slots(table, here).ask_to_evict(2)
    assert slots(table, here).ask_to_evict(0)
    assert [slots(table, row).evictions_asked() for row in (one, two)] == [0, 1]
    assert [slots(table, row).evictions_awaited() for row in (here, two)] == [1, 0]
    slots(table, two).end_evictions(1)
    assert slots(table, here).evictions_awaited() == 0
    slots(table, two).set_queued((0, 0, 0))
    assert slots(table, here).ask_to_evict(0)
    assert not slots(table, here).ask_to_evict(0), "the high one stays, the normal one is asked for"
    assert slots(table, one).evictions_asked() == 1
    slots(table, one).end_evictions(1)
    assert slots(table, one).evictions_asked() == 0
    assert not slots(table, here).ask_to_evict(1)


def test_figures_have_a_limit(table: SlotTable) -> None:
    row = table.claim_row(master=1)
    with pytest.raises(ValueError, match="over 4000"):
        table.set_stats(row, {"text": "x" * 4000})
    table.set_stats(row, {"text": "x" * 3900})
    before = time.time()
    table.set_stats(row, {"n": 1})
    after = time.time()
    assert table.rows()[0].stats == {"n": 1}
    assert before - 1e-6 <= table.rows()[0].updated <= after + 1e-6


@pytest.mark.no_cover
def test_users_table_grows_and_tidies_itself(path: Path) -> None:
    table = SlotTable(path, connections=10)
    other = SlotTable(path, connections=10)
    row = table.claim_row(master=1)
    kept = [f"kept-{n}" for n in range(500)]
    assert all(slots(table, row, per_user=1).claim_user(user) for user in kept)
    for n in range(40_000):
        assert slots(table, row, per_user=1).claim_user(f"u{n}")
        if n >= 20_000:
            slots(table, row).release_user(f"u{n - 20_000}")
    assert slots(table).unique_users() == 20_500
    SlotTable(path, connections=100_000)
    for view in (table, other):
        assert not any(slots(view, row, per_user=1).claim_user(user) for user in kept)
        assert slots(view).unique_users() == 20_500
    table.free(os.getpid())
    assert slots(other).unique_users() == 0
    assert slots(other, row, per_user=1).claim_user("kept-1")


def test_file_of_another_version_is_replaced(path: Path, table: SlotTable) -> None:
    row = table.claim_row(master=1)
    with path.open("r+b") as file:
        file.write(b"YJ-SLOTS\xff")
    new = SlotTable(path)
    assert new.rows() == []
    assert table.rows()[0].number == row, "a process that has the old file keeps it"


@pytest.mark.no_cover
def test_table_full_of_workers(table: SlotTable) -> None:
    for _ in range(shared_slots.ROWS):
        table.claim_row(master=1)
    with pytest.raises(RuntimeError, match="all 128 rows"):
        table.claim_row(master=1)


def test_file_of_another_user_is_refused(
    path: Path, table: SlotTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(PermissionError, match="belongs to another user"):
        SlotTable(path)


def test_only_the_first_halts_a_master(table: SlotTable) -> None:
    assert table.first_to_halt(os.getpid())
    assert not table.first_to_halt(os.getpid())
    assert table.first_to_halt(os.getppid())


def test_a_stop_is_announced_to_the_workers_of_that_master(table: SlotTable) -> None:
    mine, other = table.claim_row(master=7), table.claim_row(master=8)
    table.note_stop(7)
    assert table.is_stopping(mine)
    assert not table.is_stopping(other)
    for _ in range(2):
        table.free(os.getpid())
    assert not table.is_stopping(table.claim_row(master=7)), "a row of the worker before"


def test_users_of_a_type_are_counted_once(table: SlotTable) -> None:
    one, two = table.claim_row(master=1), table.claim_row(master=1)
    for row in (one, two):
        assert slots(table, row, per_user=3).claim_user("ann")
        slots(table, row).set_user_types("ann", 0b11)
    assert slots(table, one, per_user=3).claim_user("bob")
    slots(table, one).set_user_types("bob", 1 << 31)
    assert [slots(table).users_of_type(n) for n in (0, 1, 31)] == [1, 1, 1]
    slots(table, one).set_user_types("ann", 0b10)
    assert [slots(table).users_of_type(n) for n in (0, 1)] == [1, 1]
    slots(table, two).release_user("ann")
    assert [slots(table).users_of_type(n) for n in (0, 1)] == [0, 1]
    slots(table, one).set_user_types("eve", 1)
    assert slots(table).users_of_type(0) == 0
    slots(table, one).release_user("ann")
    assert [slots(table).users_of_type(n) for n in (0, 1, 31)] == [0, 0, 1]


# A file that something removes


def test_an_empty_rival_gives_way(path: Path, table: SlotTable) -> None:
    row = table.claim_row(master=1)
    slots(table, row, connections=10).reserve_connection()
    path.unlink()
    rival = SlotTable(path)  # as a process of an older version makes it
    assert slots(rival).total_connections() == 0
    assert table.restore()
    assert rival.rows()[0].connections == 1
    assert slots(rival, row, connections=10).reserve_connection()
    assert slots(table).total_connections() == 2


def test_a_missing_file_is_waited_for(path: Path, table: SlotTable) -> None:
    path.unlink()
    with pytest.raises(FileNotFoundError):
        SlotTable(path, wait=0.05)
    assert not path.exists()
    table.restore()
    assert SlotTable(path, wait=10).rows() == []


ODD_STATS = [
    b"",
    b"null",
    b"[]",
    b"5",
    b'"x"',
    b"\xff\xfe",
    b"{",
    b"[" * 3900,
    b'{"plain":' + b"9" * 3000 + b"}",
    b'{"plain":NaN,"lag":Infinity,"slow":1e308,"queued":1e400}',
    b'{"subscriptions":5,"unnamed":[1],"queued":{"high":"x"},"dropped":{"high":{}}}',
    b'{"plain":{},"deaf":[],"hears":{},"lag":"long","fault":{"a":1}}',
]


@pytest.mark.parametrize("stats", ODD_STATS)
def test_odd_figures_of_another_worker(table: SlotTable, stats: bytes) -> None:
    row = table.claim_row(1)
    table.set_state(row, READY)
    start = shared_slots._STATS_AT + row * shared_slots.STATS_SIZE
    table._map[start : start + len(stats)] = stats
    table.columns[shared_slots.STATS_LENGTH][row] = len(stats)
    (found,) = table.rows()
    for value in found.stats.values():
        assert isinstance(value, bool | int | float | str | dict)
        for number in value.values() if isinstance(value, dict) else [value]:
            assert isinstance(number, str) or abs(number) < 2**53


def test_odd_words_in_a_row(table: SlotTable) -> None:
    row = table.claim_row(1)
    table.set_state(row, READY)
    odd = table.claim_row(1)
    for number, column in enumerate(table.columns):
        if number != shared_slots.PID:
            column[odd] = 2**64 - 1
    table._header[shared_slots._HIGH] = 2**40
    assert {found.number for found in table.rows()} == {row, odd}
    assert not slots(
        table, row, connections=10
    ).reserve_connection()  # the other row seems to have more than the cap
    table.set_stats(row, {"plain": 1})
    slots(table).queue_totals()
    slots(table, row).ask_to_evict(0)
    slots(table, row).evictions_awaited()
    slots(table, odd).end_evictions(slots(table, odd).evictions_asked())
    table.sweep()
    assert table.free(os.getpid())


def test_a_count_that_a_killed_process_has_left_hides_no_user(table: SlotTable) -> None:
    row = table.claim_row(1)
    users = table.users
    assert not any(users.keys_of_row(row))
    assert slots(table, row, per_user=5).claim_user("ann")
    (before,) = [keys for keys in users.keys_of_row(row) if keys]
    users._by_type[shared_users._SETTLED] = 0
    users._header[shared_users._FILLED] = 0
    assert [keys for keys in users.keys_of_row(row) if keys] == [before]
    users.recount()
    assert users._header[shared_users._FILLED] == 1


def test_odd_words_in_the_table_of_users(path: Path) -> None:
    table = SlotTable(path)
    row = table.claim_row(1)
    users = table.users
    assert slots(table, row, per_user=5).claim_user("ann")
    # Every place taken by something else.
    for at in range(2 * (users._mask + 1)):
        users._entries[at] = 2**64 - 1
    assert slots(table, row, per_user=5).claim_user("ann")
    slots(table, row).release_user("ann")
    slots(table, row).release_user("unknown")
    slots(table, row).set_user_types("ann", 1)
    for word in (0, 2**64 - 1):
        for name in (shared_users._DISTINCT, shared_users._FILLED):
            users._header[name] = word
        assert slots(table, row, per_user=5).claim_user(f"bob {word}")
        slots(table, row).release_user(f"bob {word}")
    area = users._header[shared_users._AREA]
    for word in (1, 4096, 2**63, 2**64 - 1, area + 2**40):
        users._header[shared_users._AREA] = word
        assert slots(table, row, per_user=5).claim_user(f"carl {word}")
    fresh = SlotTable(path)
    users._header[shared_users._AREA] = 2**63
    fresh.users._area = 0
    assert slots(fresh, row, per_user=5).claim_user("dora")
    slots(table).unique_users()
    slots(table).users_of_type(0)
