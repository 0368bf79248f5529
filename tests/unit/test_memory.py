"""When memory is given back: after growth, not while it still grows, and not too often."""

from __future__ import annotations

import gc

from app.memory import GROWTH, PAUSE, SETTLED_CHANGE, THRESHOLDS, Memory, resident_bytes

MB = 2**20


class Machine:
    """A process whose memory and clock the test moves."""

    def __init__(self) -> None:
        self.resident = 100 * MB
        self.now = 1000.0
        self.garbage = 0
        self.did: list[str] = []
        self.memory = Memory(lambda: self.resident, self.collect, self.trim, lambda: self.now)

    def collect(self) -> None:
        self.did.append("collect")
        self.resident -= self.garbage
        self.garbage = 0

    def trim(self) -> None:
        self.did.append("trim")

    def second(self, connections: int = 0, grown: int = 0) -> list[str]:
        self.did = []
        self.now += 1.0
        self.resident += grown
        self.memory.look(connections)
        return self.did


def test_garbage_of_a_storm_is_collected_when_it_is_over() -> None:
    machine = Machine()
    for _ in range(int(PAUSE)):
        assert machine.second() == []
    machine.garbage = GROWTH
    assert machine.second(grown=GROWTH) == []  # it rises
    assert machine.second() == ["collect", "trim"]
    assert machine.resident == 100 * MB
    assert machine.second() == []


def test_what_is_really_needed_is_collected_for_once() -> None:
    machine = Machine()
    machine.now += PAUSE
    assert machine.second(grown=GROWTH) == []
    assert machine.second() == ["collect", "trim"]
    for _ in range(100):
        assert machine.second() == []


def test_not_twice_within_the_pause() -> None:
    machine = Machine()
    machine.now += PAUSE
    machine.second(grown=GROWTH)
    assert machine.second() == ["collect", "trim"]
    machine.second(grown=GROWTH)
    for _ in range(int(PAUSE) - 2):
        assert machine.second() == []
    assert machine.second() == ["collect", "trim"]


def test_memory_that_rises_without_an_end_is_collected_as_well() -> None:
    machine = Machine()
    machine.now += PAUSE
    rounds = [machine.second(grown=GROWTH // 2) for _ in range(8)]
    assert rounds[:7] == [[]] * 7
    assert rounds[7] == ["collect", "trim"]


def test_connections_that_have_settled_leave_the_sight_of_the_collector() -> None:
    machine = Machine()
    assert machine.second(SETTLED_CHANGE) == []
    assert machine.second(SETTLED_CHANGE) == ["collect"]
    assert machine.second(SETTLED_CHANGE) == []


def test_resident_bytes() -> None:
    assert 10 * MB < resident_bytes() < 10_000 * MB


def test_the_collector_takes_few_objects_at_a_time() -> None:
    """Requests that fail leave cycles, as fast as clients send them; each step stops the loop."""
    steps: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "stop":
            steps.append(info["collected"])

    before = gc.get_threshold()
    gc.collect()
    gc.set_threshold(*THRESHOLDS)
    gc.callbacks.append(note)
    try:
        for _ in range(50_000):
            cycle: list[object] = []
            cycle.append(cycle)
    finally:
        gc.callbacks.remove(note)
        gc.set_threshold(*before)
    assert len(steps) >= 40
    assert max(steps) <= 2000
