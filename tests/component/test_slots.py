"""The slot table, driven by real processes that are killed at random."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import itertools
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from app.config import Settings
from tests.support.clock import Clock
from tests.support.slots import slots
from tests.support.waiting import until_now
from workers.shared import slots as layout
from workers.shared import users as shared_users
from workers.shared.locks import FileLock
from workers.shared.slots import READY, SlotTable
from workers.shared.worker_slots import WorkerSlots

FORK = multiprocessing.get_context("fork")
CAP = 20
USER_CAP = 3


def run(target: Callable[..., None], *args: object) -> ForkProcess:
    process = FORK.Process(target=target, args=args, daemon=True)
    process.start()
    return process


def kill(process: ForkProcess) -> None:
    assert process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def hammer(path: Path, seed: int) -> None:
    """Reserve and release connections and users for ever."""
    table = SlotTable(path)
    row = table.claim_row(master=1)
    chance = random.Random(seed)
    held: list[str] = []
    while True:
        if held and chance.random() < 0.45:
            user = held.pop(chance.randrange(len(held)))
            slots(table, row).release_user(user)
            slots(table, row).release_connection()
        elif slots(table, row, connections=CAP).reserve_connection():
            user = f"user-{chance.randrange(8)}"
            if slots(table, row, per_user=USER_CAP).claim_user(user):
                held.append(user)
            else:
                slots(table, row).release_connection()


def hold(path: Path, users: list[str], cap: int) -> None:
    table = SlotTable(path)
    row = table.claim_row(master=1)
    for user in users:
        assert slots(table, row, connections=10_000).reserve_connection()
        assert slots(table, row, per_user=cap).claim_user(user)
    slots(table, row, queue=(10, 100)).reserve_queue(5)
    table.set_stats(row, {"held": len(users)})
    table.set_state(row, READY)
    time.sleep(60)


def test_killed_processes_never_break_the_caps(path: Path, table: SlotTable) -> None:
    chance = random.Random(1)
    processes = [run(hammer, path, seed) for seed in range(4)]
    try:
        seen = 0
        for turn in range(60):
            until_now(lambda: slots(table).total_connections() > 0)
            for _ in range(20):
                total = slots(table).total_connections()
                seen = max(seen, total)
                assert total <= CAP
            if turn % 3 == 0:
                victim = chance.randrange(4)
                kill(processes[victim])
                table.sweep()
                processes[victim] = run(hammer, path, turn + 10)
            time.sleep(0.01)
        until_now(lambda: slots(table).total_connections() == CAP)
        assert seen <= CAP
    finally:
        for process in processes:
            kill(process)
    table.sweep()
    assert table.rows() == []
    assert slots(table).total_connections() == 0
    assert slots(table).unique_users() == 0
    row = table.claim_row(master=1)
    for number in range(8):
        assert [
            slots(table, row, per_user=USER_CAP).claim_user(f"user-{number}") for _ in range(4)
        ] == [
            True,
            True,
            True,
            False,
        ]


def test_cap_per_user_holds_over_processes(path: Path, table: SlotTable) -> None:
    row = table.claim_row(master=1)
    other = run(hold, path, ["ann", "ann", "bob"], 3)
    try:
        until_now(lambda: any(r.state == READY for r in table.rows()))
        assert slots(table).unique_users() == 2
        assert slots(table, row, per_user=3).claim_user("ann")
        assert not slots(table, row, per_user=3).claim_user("ann")
        assert slots(table).unique_users() == 2
    finally:
        kill(other)
    assert not slots(table, row, per_user=3).claim_user("ann")
    assert table.sweep() == [other.pid]
    assert slots(table, row, per_user=3).claim_user("ann")
    assert slots(table).unique_users() == 1
    slots(table, row).release_user("ann")
    assert slots(table).unique_users() == 1
    slots(table, row).release_user("ann")
    assert slots(table).unique_users() == 0
    slots(table, row).release_user("ann")
    assert slots(table).unique_users() == 0


def test_unrelated_process_sees_the_rows(path: Path, table: SlotTable) -> None:
    row = table.claim_row(master=7)
    slots(table, row, connections=1).reserve_connection()
    table.set_stats(row, {"a": 1})
    script = (
        "import sys; from pathlib import Path; from app.config import Settings\n"
        "from workers.shared.slots import SlotTable\n"
        "from workers.shared.worker_slots import WorkerSlots\n"
        "t = SlotTable(Path(sys.argv[1])); (r,) = t.rows()\n"
        "s = WorkerSlots(t, r.number, Settings(max_total_connections=1))\n"
        "print(r.pid, r.master, r.connections, r.stats, s.reserve_connection())"
    )
    shown = subprocess.run(
        [sys.executable, "-c", script, str(path)], check=True, capture_output=True, text=True
    )
    assert shown.stdout == f"{os.getpid()} 7 1 {{'a': 1}} False\n"


def test_row_of_a_dead_process(path: Path, table: SlotTable) -> None:
    process = run(hold, path, ["ann"], 3)
    until_now(lambda: any(r.state == READY for r in table.rows()))
    (row,) = table.rows()
    assert (row.pid, row.connections, row.stats) == (process.pid, 1, {"held": 1})
    assert slots(table).queue_totals() == (1, 5)
    assert table.sweep() == []
    kill(process)
    assert table.free(row.pid)
    assert not table.free(row.pid)
    assert table.rows() == []
    assert slots(table).queue_totals() == (0, 0)


def test_first_processes_at_once_share_one_file(path: Path) -> None:
    processes = [run(hold, path, ["ann"], 8) for _ in range(8)]
    try:
        table = SlotTable(path)
        until_now(lambda: sum(r.state == READY for r in table.rows()) == 8)
        assert slots(table).total_connections() == 8
        assert slots(table).unique_users() == 1
    finally:
        for process in processes:
            kill(process)


def can_lock(path: Path) -> None:
    with path.open("r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)


def test_growing_does_not_lose_the_lock(path: Path, table: SlotTable) -> None:
    with table.lock:
        table.users.make_room(100_000)
        table.users.claim(5, 0, 1)
        assert is_locked(path)
    assert not is_locked(path)
    table.sweep()
    other = SlotTable(path)
    other.users.make_room(200_000)
    with table.lock:
        assert not table.users.claim(5, 0, 1)
        assert is_locked(path)


def is_locked(path: Path) -> bool:
    """Ask from a child, since a process never excludes itself."""
    child = run(can_lock, path)
    child.join()
    return child.exitcode != 0


class Touched:
    """Stands for the entries of the users' table, and counts how many words are used."""

    def __init__(self, entries: memoryview, gate: Gate) -> None:
        self.entries = entries
        self.gate = gate

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, at: int | slice) -> Any:
        part = self.entries[at]
        self.gate.count(1 if isinstance(at, int) else len(part))  # type: ignore[arg-type]
        return part

    def __setitem__(self, at: int, value: int) -> None:
        self.gate.count(1)
        self.entries[at] = value

    def tolist(self) -> list[int]:
        self.gate.count(len(self.entries))
        return self.entries.tolist()

    def release(self) -> None:
        self.entries.release()


class Gate:
    """The lock, and how many words of the users' table were used each time it was held."""

    def __init__(self, lock: FileLock) -> None:
        self.lock = lock
        self.held = False
        self.times: list[int] = []

    def __enter__(self) -> None:
        self.lock.__enter__()
        assert not self.held
        self.held = True
        self.times.append(0)

    def __exit__(self, *_: object) -> None:
        self.held = False
        self.lock.__exit__()

    def count(self, words: int) -> None:
        if self.held:
            self.times[-1] += words


def watch(table: SlotTable) -> Gate:
    untyped: Any = table
    gate = untyped.lock = Gate(table.lock)
    untyped.users._entries = Touched(table.users._entries, gate)
    return gate


def hold_many(path: Path, users: int) -> None:
    table = SlotTable(path)
    row = table.claim_row(master=1)
    for number in range(users):
        assert slots(table, row, per_user=3).claim_user(f"user-{number}")
        slots(table, row).set_user_types(f"user-{number}", 1)
    slots(table, row, connections=10).reserve_connection()
    table.set_state(row, READY)
    time.sleep(60)


def test_nothing_holds_the_lock_for_all_users(path: Path, table: SlotTable) -> None:
    """Whatever is asked, the lock is held for a few entries of the table, not for all users."""
    row = table.claim_row(master=1)
    other = run(hold_many, path, 10_000)
    until_now(lambda: any(r.state == READY for r in table.rows()))
    for number in range(0, 1000, 2):
        slots(table, row, per_user=3).claim_user(f"user-{number}")
        slots(table, row).set_user_types(f"user-{number}", 2)
    gate = watch(table)
    assert (slots(table).users_of_type(0), slots(table).users_of_type(1)) == (10_000, 500)
    assert not slots(table, row, per_user=2).claim_user("user-0")
    assert slots(table, row, per_user=2).claim_user("ann")
    slots(table, row).set_user_types("ann", 3)
    slots(table, row).release_user("ann")
    table.rows()
    kill(other)
    steps = table.sweep_in_steps()
    assert next(steps) == 0
    assert slots(table).total_connections() == 0, "the cap has room again at once"
    assert slots(table, row, per_user=1).claim_user("user-1"), (
        "what the dead worker held no longer counts"
    )
    assert [pid for pid in steps if pid] == [other.pid]
    assert slots(table).unique_users() == 501
    assert [slots(table).users_of_type(number) for number in range(2)] == [0, 500]
    table.free(os.getpid())
    assert slots(table).unique_users() == 0
    assert len(gate.times) > 1000
    assert max(gate.times) < 500


def test_a_sweep_that_was_cut_short_is_finished(path: Path, table: SlotTable) -> None:
    other = run(hold_many, path, 1000)
    until_now(lambda: any(r.state == READY for r in table.rows()))
    kill(other)
    steps = table.sweep_in_steps()
    next(steps)
    assert table.rows() == []
    assert 0 < slots(table).unique_users() < 1000
    late = SlotTable(path)
    assert late.sweep() == [other.pid]
    assert not any(steps), "the one that was slow finds nothing more to do"
    assert (slots(late).unique_users(), slots(late).users_of_type(0), late.deaths) == (0, 0, 1)
    row = late.claim_row(master=1)
    assert slots(late, row, per_user=1).claim_user("user-1")


def test_a_table_that_moves_is_swept_to_the_end(path: Path, table: SlotTable) -> None:
    other = run(hold_many, path, 3000)
    until_now(lambda: any(r.state == READY for r in table.rows()))
    kill(other)
    steps = table.sweep_in_steps()
    next(steps)
    SlotTable(path, connections=100_000)
    assert [pid for pid in steps if pid] == [other.pid]
    assert (slots(table).unique_users(), slots(table).users_of_type(0)) == (0, 0)


def test_counts_of_users_are_right_after_a_kill_within_a_step(path: Path, table: SlotTable) -> None:
    row = table.claim_row(master=1)
    assert slots(table, row, per_user=3).claim_user("ann")
    slots(table, row).set_user_types("ann", 0b101)
    untyped: Any = table
    # As a process leaves it that was killed when it had written the entry but no count yet.
    untyped.users._by_type[shared_users._SETTLED] = 0
    untyped.users._by_type[0] = 7
    untyped.users._header[shared_users._DISTINCT] = 9
    other = run(hold, path, ["bob"], 3)
    until_now(lambda: any(r.state == READY for r in table.rows()))
    kill(other)
    assert table.sweep() == [other.pid]
    assert [slots(table).users_of_type(number) for number in range(3)] == [1, 0, 1]
    assert slots(table).unique_users() == 1


# Addresses


def limited(table: SlotTable, row: int, cap: int) -> WorkerSlots:
    return WorkerSlots(table, row, dataclasses.replace(Settings(), max_connections_per_address=cap))


def hold_addresses(path: Path, addresses: list[str]) -> None:
    table = SlotTable(path)
    row = table.claim_row(master=1)
    assert all(limited(table, row, 3).claim_address(address) for address in addresses)
    table.set_state(row, READY)
    time.sleep(60)


def test_the_cap_of_an_address_holds_over_processes(path: Path, table: SlotTable) -> None:
    mine = limited(table, table.claim_row(master=1), 3)
    other = run(hold_addresses, path, ["192.0.2.1", "192.0.2.1", "192.0.2.2"])
    try:
        until_now(lambda: any(r.state == READY for r in table.rows()))
        assert mine.claim_user("192.0.2.1"), "a user of that name is another user"
        assert mine.claim_address("192.0.2.1")
        assert not mine.claim_address("192.0.2.1")
        assert mine.connections_of_address("192.0.2.1") == 3
        assert (mine.connections_of_address("192.0.2.2"), mine.unique_users()) == (1, 1)
    finally:
        kill(other)
    steps = table.sweep_in_steps()
    next(steps)
    assert mine.connections_of_address("192.0.2.1") == 1, "a dead worker holds nothing"
    assert [pid for pid in steps if pid] == [other.pid]
    assert [mine.claim_address("192.0.2.1") for _ in range(3)] == [True, True, False]
    for _ in range(5):
        mine.release_address("192.0.2.1")
    assert mine.connections_of_address("192.0.2.1") == 0
    assert mine.unique_users() == 1
    table.users._by_type[shared_users._SETTLED] = 0
    table.users.recount()
    assert mine.unique_users() == 1


def test_a_new_worker_of_a_row_begins_with_no_addresses(path: Path, table: SlotTable) -> None:
    """A process of a version that does not know of them has swept the row."""
    row = table.claim_row(master=1)
    assert limited(table, row, 1).claim_address("192.0.2.1")
    table.columns[layout.PID][row] = 0
    again = table.claim_row(master=1)
    assert again == row
    assert limited(table, again, 1).connections_of_address("192.0.2.1") == 0


def test_an_address_moves_with_its_connection(table: SlotTable) -> None:
    giver, taker = (limited(table, table.claim_row(master=1), 1) for _ in range(2))
    assert giver.claim_address("192.0.2.1")
    generation = next(row.generation for row in table.rows() if row.number == giver.index)
    taker.adopt_address(giver.index, generation, "192.0.2.1")
    assert not giver.claim_address("192.0.2.1")
    giver.release_address("192.0.2.1")
    assert taker.connections_of_address("192.0.2.1") == 1
    taker.release_address("192.0.2.1")
    assert giver.claim_address("192.0.2.1")


def test_handshakes_and_lines_are_counted_for_all(table: SlotTable) -> None:
    now = Clock(1000.0)
    settings = Settings()
    one, two = (WorkerSlots(table, table.claim_row(master=1), settings, now) for _ in range(2))
    assert [slots.count_handshake("192.0.2.1") for slots in (one, two, one)] == [1, 2, 3]
    assert two.count_handshake("192.0.2.2") == 1
    now.now += 1.0
    assert two.count_handshake("192.0.2.1") == 1
    assert [slots.begin_line("cap", 60.0, 0) for slots in (one, two)] == [0, None]
    now.now += 60.0
    assert [slots.begin_line("cap", 60.0, 0) for slots in (two, one)] == [1, None]


# A file that something removes


def test_a_removed_file_is_put_back_with_all_counts(path: Path, table: SlotTable) -> None:
    """Processes that have it open go over to it, and those that start find the same."""
    row = table.claim_row(master=1)
    other = run(hold, path, ["ann", "ann", "bob"], 3)
    try:
        until_now(lambda: any(r.state == READY for r in table.rows()))
        assert all(slots(table, row, connections=20).reserve_connection() for _ in range(6))
        table.set_stats(row, {"plain": 6})
        assert table.is_there()
        path.unlink()
        assert not table.is_there()
        assert slots(table, row, connections=20).reserve_connection()  # counted before it is back
        assert table.restore()
        assert not table.restore()
        assert table.is_there()
        late = SlotTable(path, wait=0)
        assert slots(late).total_connections() == slots(table).total_connections() == 10
        assert [r.stats for r in late.rows()] == [r.stats for r in table.rows()]
        assert slots(late).unique_users() == 2
        assert slots(late, row, per_user=3).claim_user("ann")
        assert not slots(table, row, per_user=3).claim_user("ann")
        assert slots(late, row, connections=11).reserve_connection()
        assert not slots(table, row, connections=11).reserve_connection()
        assert (late.restored, table.restored) == (1, 1)
    finally:
        kill(other)
    table.sweep()
    assert slots(late).unique_users() == 1
    assert len(late.rows()) == 1


def test_the_caps_hold_while_the_file_is_removed_again_and_again(
    path: Path, table: SlotTable
) -> None:
    """Processes count up and down all the time, some are killed, and any of them puts it back."""
    processes = [run(hammer_and_restore, path, seed) for seed in range(3)]
    try:
        until_now(lambda: len(table.rows()) == 3)
        for turn in range(40):
            path.unlink(missing_ok=True)
            if turn % 3 == 0:
                kill(processes[0])
                processes[0] = run(hammer_and_restore, path, turn + 10)
            until_now(lambda: table.restore() or table.is_there())
            table.sweep()
            assert slots(table).total_connections() <= CAP
        assert table.restored >= 20
    finally:
        for process in processes:
            kill(process)
    table.restore()
    table.sweep()
    assert table.rows() == []
    assert slots(table).total_connections() == 0
    assert slots(table).unique_users() == 0


def hammer_and_restore(path: Path, seed: int) -> None:
    """As `hammer`, and puts the file back where it is missing."""
    chance = random.Random(seed)
    table = SlotTable(path, wait=10)
    row = table.claim_row(master=1)
    held: list[str] = []
    while True:
        table.restore()
        user = f"user-{chance.randrange(8)}"
        if chance.random() < 0.5 and slots(table, row, connections=CAP).reserve_connection():
            if slots(table, row, per_user=USER_CAP).claim_user(user):
                held.append(user)
            else:
                slots(table, row).release_connection()
        elif held:
            slots(table, row).release_user(held.pop())
            slots(table, row).release_connection()
        assert slots(table).total_connections() <= CAP


def test_a_rival_with_workers_and_another_layout_are_left_alone(
    path: Path, table: SlotTable
) -> None:
    path.unlink()
    other = run(hold, path, ["ann"], 3)
    try:
        until_now(lambda: path.exists() and any(r.state == READY for r in SlotTable(path).rows()))
        assert not table.restore()
        assert not table.is_there()
    finally:
        kill(other)
    path.write_bytes(b"YJ-SLOTS of a later layout" * 100)
    assert table.is_there()
    assert not table.restore()
    assert path.read_bytes().startswith(b"YJ-SLOTS of a later layout")


def is_full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "no room")


def test_where_there_is_no_room_for_a_clean_table_no_claim_reads_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All workers wait for the lock meanwhile; a claim needs a few places only."""
    table = SlotTable(tmp_path / "slots")
    reads = Mock(wraps=table.users._live)
    monkeypatch.setattr(table.users, "_live", reads)
    with table.lock:
        monkeypatch.setattr(os, "posix_fallocate", is_full)
        for key in range(2, 2**15 + 100):  # half of the places are used, and some
            assert table.users.claim(key, 0, 1)
        assert reads.call_count == 0
        monkeypatch.undo()
        assert table.users.claim(2**40, 0, 1)
        assert table.users.held(2**40) == table.users.held(2) == 1


def test_where_there_is_no_place_for_both_the_entry_of_the_giver_is_used_again(
    table: SlotTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    giver, taker = (limited(table, table.claim_row(master=1), 1) for _ in range(2))
    assert giver.claim_user("ann")
    assert giver.claim_address("192.0.2.1")
    generation = next(row.generation for row in table.rows() if row.number == giver.index)
    monkeypatch.setattr(os, "posix_fallocate", is_full)
    with table.lock, contextlib.suppress(OSError):
        for key in itertools.count(2):
            table.users.claim(key, giver.index, 1)
    with pytest.raises(OSError, match="no room"):
        taker.adopt_user(giver.index, generation - 1, "ann")
    taker.adopt_user(giver.index, generation, "ann")
    taker.adopt_address(giver.index, generation, "192.0.2.1")
    assert taker.connections_of_address("192.0.2.1") == 1
    taker.release_user("ann")
    assert giver.claim_user("ann"), "it was counted once"


def test_where_there_is_no_room_for_a_clean_table_erased_places_are_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = SlotTable(tmp_path / "slots")
    users = table.users
    with table.lock:
        monkeypatch.setattr(os, "posix_fallocate", is_full)
        for key in range(2, 2**16 + 2):  # a place for each
            assert users.claim(key, 0, 1)
        with pytest.raises(OSError, match="no room"):
            users.claim(2**40, 0, 1)
        assert not users.claim(2, 0, 1)  # at its cap, as ever
        users.release(7, 0)
        assert users.claim(2**40, 0, 1)
        assert users.held(2**40) == users.held(2) == 1
        monkeypatch.undo()
        assert users.claim(7, 0, 1)
        assert users.distinct == 2**16 + 1
