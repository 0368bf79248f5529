"""Heartbeats, one tick after the other by hand."""

from __future__ import annotations

from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.transport.timer_wheel import TimerWheel


class Peer:
    """Notes at which ticks it was pinged and given up."""

    heartbeat_every: ClassVar[float | None] = None

    def __init__(self, wheel: TimerWheel) -> None:
        self.pings: list[int] = []
        self.missed: list[int] = []
        self.seen = 0
        self.move_to(wheel)

    def move_to(self, wheel: TimerWheel) -> None:
        """Become the newest connection of a wheel."""
        self.wheel = wheel
        connections = wheel._connections
        assert isinstance(connections, list)
        self.fd = len(connections)
        connections.append(self)

    def heartbeat(self) -> None:
        self.pings.append(self.wheel.now)

    def heartbeat_missed(self) -> None:
        self.missed.append(self.wheel.now)


INTERVAL, TIMEOUT = 30, 60


def make(interval: float = INTERVAL, timeout: float = TIMEOUT) -> TimerWheel:
    return TimerWheel(interval, timeout, [])


def watched(wheel: TimerWheel) -> int:
    return sum(map(bool, wheel._places))


def run(wheel: TimerWheel, ticks: int, *answering: Peer) -> None:
    for _ in range(ticks):
        wheel.advance()
        for peer in answering:
            peer.seen = wheel.now


def test_a_tick_is_a_second_or_a_tenth_of_a_short_interval() -> None:
    assert make().tick_length == 1.0
    assert make(0.5, 1.0).tick_length == pytest.approx(0.05)


def test_pings_come_every_interval_while_something_is_received() -> None:
    wheel = make()
    wheel.now = 17
    peer = Peer(wheel)
    wheel.add(peer)
    run(wheel, 200, peer)
    assert peer.pings == [47, 77, 107, 137, 167, 197]
    assert peer.missed == []
    assert watched(wheel) == 1


@pytest.mark.parametrize("silent_since", [0, 1, 29, 30, 31, 44, 59, 60, 61, 100])
def test_the_timeout_comes_after_exactly_that_many_ticks_of_silence(silent_since: int) -> None:
    wheel = make()
    peer = Peer(wheel)
    wheel.add(peer)
    run(wheel, silent_since, peer)
    run(wheel, TIMEOUT - 1)
    assert peer.missed == []
    run(wheel, 1)
    assert peer.missed == [silent_since + TIMEOUT]
    assert watched(wheel) == 0
    run(wheel, 200)
    assert len(peer.missed) == 1
    assert watched(wheel) == 0


def test_a_silent_peer_is_pinged_before_it_is_given_up() -> None:
    wheel = make()
    peer = Peer(wheel)
    wheel.add(peer)
    run(wheel, 100)
    assert peer.pings == [30]
    assert peer.missed == [60]


@given(
    st.integers(1, 10),
    st.integers(1, 25),
    st.lists(st.tuples(st.booleans(), st.booleans()), max_size=100),
)
def test_whatever_is_received_and_flushed(
    interval: int, longer: int, steps: list[tuple[bool, bool]]
) -> None:
    # Early pings come at will, and what is received is any pattern.
    timeout = interval + longer
    wheel = make(interval * 10.0, timeout * 10.0)
    wheel._interval, wheel._timeout, wheel._buckets = interval, timeout, interval + 1
    peer = Peer(wheel)
    wheel.add(peer)
    for receives, flushes in steps:
        if receives:
            peer.seen = wheel.now
        if flushes:
            wheel.ping_early()
        wheel.advance()
        silent = wheel.now - peer.seen
        if peer.missed:
            assert silent >= timeout
            assert peer.missed == [wheel.now]
            assert silent == timeout
            assert watched(wheel) == 0
            break
        assert silent < timeout
        assert watched(wheel) == 1
        last = peer.pings[-1] if peer.pings else 0
        assert wheel.now - last <= interval


def test_an_early_ping_takes_the_place_of_the_one_that_was_due() -> None:
    wheel = make()
    peer = Peer(wheel)
    wheel.add(peer)
    run(wheel, 28, peer)
    wheel.ping_early()
    assert peer.pings == []
    run(wheel, 1, peer)
    wheel.ping_early()
    assert peer.pings == [29]
    wheel.ping_early()
    run(wheel, 1, peer)
    assert peer.pings == [29]
    run(wheel, 100, peer)
    assert peer.pings == [29, 60, 90, 120]


def test_an_early_ping_gives_no_peer_up() -> None:
    wheel = make()
    peer = Peer(wheel)
    wheel.add(peer)
    run(wheel, TIMEOUT - 1)
    wheel.ping_early()
    wheel.ping_early()
    assert peer.missed == []
    assert peer.pings == [30]
    run(wheel, 1)
    assert peer.missed == [60]


def test_a_peer_that_answers_after_the_last_early_ping_stays() -> None:
    wheel = make()
    peer = Peer(wheel)
    wheel.add(peer)
    run(wheel, TIMEOUT - 1)
    wheel.ping_early()
    peer.seen = wheel.now
    run(wheel, 1)
    assert peer.missed == []
    assert peer.pings == [30, 60]


def test_discard_leaves_nothing() -> None:
    wheel = make()
    peers = [Peer(wheel) for _ in range(3)]
    for peer in peers:
        wheel.add(peer)
    wheel.discard(peers[1])
    wheel.discard(peers[1])
    assert watched(wheel) == 2
    run(wheel, 30)
    wheel.discard(peers[0])
    run(wheel, 200)
    assert (peers[0].pings, peers[0].missed) == ([30], [])
    assert (peers[1].pings, peers[1].missed) == ([], [])
    assert (peers[2].pings, peers[2].missed) == ([30], [60])
    assert watched(wheel) == 0


def test_a_peer_that_is_discarded_by_its_own_heartbeat_is_gone() -> None:
    wheel = make()

    class Leaving(Peer):
        def heartbeat(self) -> None:
            super().heartbeat()
            wheel.discard(self)

        def heartbeat_missed(self) -> None:
            super().heartbeat_missed()
            wheel.discard(self)

    pinged = Leaving(wheel)
    wheel.add(pinged)
    run(wheel, 100)
    assert (pinged.pings, pinged.missed) == ([30], [])
    assert watched(wheel) == 0


def test_many_are_spread_by_when_they_came() -> None:
    wheel = make()
    peers = []
    for _ in range(INTERVAL):
        peers.append(Peer(wheel))
        wheel.add(peers[-1])
        run(wheel, 1, *peers)
    for place, peer in enumerate(peers):
        run_until = place + INTERVAL
        assert peer.pings == ([run_until] if run_until <= wheel.now else [])
    run(wheel, INTERVAL, *peers)
    assert [peer.pings[0] for peer in peers] == list(range(INTERVAL, 2 * INTERVAL))


@pytest.mark.parametrize("ticks", [0, 1, 29, 30, 31, 45, 59])
def test_another_wheel_goes_on_with_the_same_times(ticks: int) -> None:
    first, second = make(), make()
    second.now = 1007
    moved, stayed = Peer(first), Peer(first)
    first.add(moved)
    first.add(stayed)
    run(first, ticks)
    times = first.times(moved)
    first.discard(moved)
    pings = len(moved.pings)
    moved.move_to(second)
    second.resume(moved, *times)
    run(first, 100)
    run(second, 100)
    shift = 1007 - ticks
    assert [ping - shift for ping in moved.pings[pings:]] == stayed.pings[pings:]
    assert [tick - shift for tick in moved.missed] == stayed.missed == [60]


@given(st.lists(st.tuples(st.integers(1, 3600), st.booleans()), min_size=1, max_size=40))
def test_each_is_looked_at_when_it_is_due_and_no_other(peers: list[tuple[int, bool]]) -> None:
    """Whatever the numbers of buckets are that stand side by side."""
    wheel = make(3600, 7200)
    due: dict[int, list[Peer]] = {}
    for seconds, stays in peers:
        peer = Peer(wheel)
        wheel.resume(peer, 0, seconds)
        if stays:
            due.setdefault(seconds, []).append(peer)
        else:
            wheel.discard(peer)
    for seconds in sorted(due):
        wheel.now = seconds - 1
        wheel.advance()
        assert {peer for group in due.values() for peer in group if peer.pings} == {
            peer for other, group in due.items() if other <= seconds for peer in group
        }
    assert all(peer.pings == [seconds] for seconds, group in due.items() for peer in group)
    assert watched(wheel) == sum(map(len, due.values()))


def test_numbers_that_overlap_in_the_table_of_others_are_not_taken_for_them() -> None:
    """The bytes 1 2 1 2 are the bucket 0x0201 twice, and 0x0102 between them."""
    wheel = make(3600, 7200)
    others = [Peer(wheel) for _ in range(3)]
    peer = Peer(wheel)
    for other in others:
        wheel.resume(other, 0, 0x0201 - 1)
    wheel.resume(peer, 0, 0x0102 - 1)
    run(wheel, 0x0102 - 1)
    assert peer.pings == [0x0102 - 1]
    assert [other.pings for other in others] == [[], [], []]
    run(wheel, 0x0201 - 0x0102)
    assert [other.pings for other in others] == [[0x0201 - 1]] * 3


def test_a_descriptor_that_another_connection_gets_has_its_time_only() -> None:
    wheel = make()
    gone = Peer(wheel)
    wheel.add(gone)
    run(wheel, 10)
    wheel.discard(gone)
    peer = Peer(wheel)
    peer.fd = gone.fd
    assert isinstance(wheel._connections, list)
    wheel._connections[peer.fd] = peer
    wheel.add(peer)
    run(wheel, 30, peer)
    assert (gone.pings, peer.pings) == ([], [40])
    assert watched(wheel) == 1


def test_what_should_have_been_looked_at_long_ago_is_looked_at_next() -> None:
    wheel = make()
    late, silent = Peer(wheel), Peer(wheel)
    wheel.resume(late, 5.0, -7.0)
    wheel.resume(silent, 500.0, -400.0)
    run(wheel, 1)
    assert late.pings == [1]
    assert silent.missed == [1]


class Often(Peer):
    """One that wants a heartbeat more often than the others."""

    heartbeat_every: ClassVar[float | None] = 7.0


def test_some_are_looked_at_more_often() -> None:
    wheel = make()
    often, other = Often(wheel), Peer(wheel)
    wheel.add(often)
    wheel.add(other)
    for _ in range(INTERVAL + 1):
        wheel.advance()
    assert often.pings == [7, 14, 21, 28]
    assert other.pings == [30]
    assert not often.missed


def test_no_peer_is_checked_less_often_than_the_wheel_turns() -> None:
    wheel = make(5, 10)
    often = Often(wheel)
    wheel.add(often)
    for _ in range(round(8 / wheel.tick_length)):
        wheel.advance()
    assert [round(ping * wheel.tick_length) for ping in often.pings] == [5]


def test_a_connection_that_fails_costs_no_other_one_its_place() -> None:
    failed: list[tuple[object, Exception]] = []
    wheel = TimerWheel(INTERVAL, TIMEOUT, [], lambda peer, error: failed.append((peer, error)))
    error = RuntimeError("broken")

    class Broken(Peer):
        def heartbeat(self) -> None:
            raise error

        heartbeat_missed = heartbeat

    broken = Broken(wheel)
    silent, answering = Peer(wheel), Peer(wheel)
    for peer in (broken, silent, answering):
        wheel.add(peer)
    run(wheel, 2 * TIMEOUT, answering)
    assert failed == [(broken, error), (broken, error)], "its ping, and its end"
    assert len(silent.missed) == 1
    assert len(answering.pings) == 2 * TIMEOUT // INTERVAL
    assert watched(wheel) == 1
