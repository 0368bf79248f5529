"""The slot table, driven by real processes that are killed at random."""

from __future__ import annotations

import dataclasses
import fcntl
import functools
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import pytest

from app.config import Settings
from workers.shared import slots as shared_slots
from workers.shared import users as shared_users
from workers.shared.file import FileLock
from workers.shared.processes import start_time
from workers.shared.slots import LEAVING, READY, STARTING, SlotTable
from workers.shared.worker_slots import WorkerSlots

FORK = multiprocessing.get_context("fork")
CAP = 20
USER_CAP = 3


@functools.cache
def caps(connections: int, per_user: int, messages: int, size: int) -> Settings:
    return dataclasses.replace(
        Settings(),
        max_total_connections=connections,
        max_connections_per_user=per_user,
        max_queue_size=messages,
        max_queue_bytes=size,
    )


def slots(
    table: SlotTable,
    row: int = 0,
    *,
    connections: int = 10_000,
    per_user: int = 10_000,
    queue: tuple[int, int] = (10, 100),
) -> WorkerSlots:
    """One worker's part of a table, with caps of its own."""
    return WorkerSlots(table, row, caps(connections, per_user, *queue))


@pytest.fixture
def path() -> Iterator[Path]:
    path = Path(f"/dev/shm/yujian-test-{os.getpid()}-{random.randrange(2**32)}")
    yield path
    path.unlink(missing_ok=True)


@pytest.fixture
def table(path: Path) -> SlotTable:
    return SlotTable(path)


def until(condition: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


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
            until(lambda: slots(table).total_connections() > 0)
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
        until(lambda: slots(table).total_connections() == CAP)
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
        until(lambda: any(r.state == READY for r in table.rows()))
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
    until(lambda: any(r.state == READY for r in table.rows()))
    (row,) = table.rows()
    assert (row.pid, row.connections, row.stats) == (process.pid, 1, {"held": 1})
    assert slots(table).queue_totals() == (1, 5)
    assert table.sweep() == []
    kill(process)
    assert table.free(row.pid)
    assert not table.free(row.pid)
    assert table.rows() == []
    assert slots(table).queue_totals() == (0, 0)


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
    assert slots(table).queue_totals() == (2, 100)
    slots(table, row).release_queue(2, 100)
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
    assert (slots(table, one).take_evictions(), slots(table, two).take_evictions()) == (0, 1)
    slots(table, two).set_queued((0, 0, 0))
    assert slots(table, here).ask_to_evict(0)
    assert not slots(table, here).ask_to_evict(0), "the high one stays, the normal one is asked for"
    assert slots(table, one).take_evictions() == 1
    assert slots(table, one).take_evictions() == 0
    assert not slots(table, here).ask_to_evict(1)


def test_figures_have_a_limit(table: SlotTable) -> None:
    row = table.claim_row(master=1)
    with pytest.raises(ValueError, match="over 4000"):
        table.set_stats(row, {"text": "x" * 4000})
    table.set_stats(row, {"text": "x" * 3900})
    table.set_stats(row, {"n": 1})
    assert table.rows()[0].stats == {"n": 1}
    assert table.rows()[0].updated == pytest.approx(time.time(), abs=5)


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
    assert table.rows()[0].number == row, "whoever has the old file keeps it"


def test_first_processes_at_once_share_one_file(path: Path) -> None:
    processes = [run(hold, path, ["ann"], 8) for _ in range(8)]
    try:
        table = SlotTable(path)
        until(lambda: sum(r.state == READY for r in table.rows()) == 8)
        assert slots(table).total_connections() == 8
        assert slots(table).unique_users() == 1
    finally:
        for process in processes:
            kill(process)


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
        self.gate.count(1 if isinstance(at, int) else len(part))
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
    whole: Any = table
    gate = whole.lock = Gate(table.lock)
    whole.users._entries = Touched(table.users._entries, gate)
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
    until(lambda: any(r.state == READY for r in table.rows()))
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
    until(lambda: any(r.state == READY for r in table.rows()))
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
    until(lambda: any(r.state == READY for r in table.rows()))
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
    whole: Any = table
    # As a process leaves it that was killed when it had written the entry but no count yet.
    whole.users._by_type[shared_users._SETTLED] = 0
    whole.users._by_type[0] = 7
    whole.users._header[shared_users._DISTINCT] = 9
    other = run(hold, path, ["bob"], 3)
    until(lambda: any(r.state == READY for r in table.rows()))
    kill(other)
    assert table.sweep() == [other.pid]
    assert [slots(table).users_of_type(number) for number in range(3)] == [1, 0, 1]
    assert slots(table).unique_users() == 1


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


def test_a_removed_file_is_put_back_with_all_counts(path: Path, table: SlotTable) -> None:
    """Processes that have it open go over to it, and those that start find the same."""
    row = table.claim_row(master=1)
    other = run(hold, path, ["ann", "ann", "bob"], 3)
    try:
        until(lambda: any(r.state == READY for r in table.rows()))
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
        until(lambda: len(table.rows()) == 3)
        for turn in range(40):
            path.unlink(missing_ok=True)
            if turn % 3 == 0:
                kill(processes[0])
                processes[0] = run(hammer_and_restore, path, turn + 10)
            until(lambda: table.restore() or table.is_there())
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


def test_a_rival_with_workers_and_another_layout_are_left_alone(
    path: Path, table: SlotTable
) -> None:
    path.unlink()
    other = run(hold, path, ["ann"], 3)
    try:
        until(lambda: path.exists() and any(r.state == READY for r in SlotTable(path).rows()))
        assert not table.restore()
        assert not table.is_there()
    finally:
        kill(other)
    path.write_bytes(b"YJ-SLOTS of a later layout" * 100)
    assert table.is_there()
    assert not table.restore()
    assert path.read_bytes().startswith(b"YJ-SLOTS of a later layout")


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
    slots(table, odd).take_evictions()
    table.sweep()
    assert table.free(os.getpid())


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
    slots(table, row).release_user("nobody")
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
