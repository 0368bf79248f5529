"""The benchmark's own ruler: numbers must be found however TCP cuts the bytes."""

from __future__ import annotations

import json
import random

import pytest

from benchmarks.peers.wire import text_frame
from benchmarks.scan import Scanner, Track


def _message(seq: int) -> dict[str, object]:
    return {"event": "status_update", "data": {"pad": "x" * 150}, "seq": seq, "epoch": "e1"}


def _feed(scanner: Scanner, track: Track, data: bytes, cuts: list[int]) -> list[bytes]:
    found = []
    for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        if end > start:
            scanner.room[: end - start] = data[start:end]
            found += scanner.scan(track, end - start)
    return found


def test_every_place_to_cut_finds_each_number_once() -> None:
    data = text_frame({"seq": 41}) + text_frame({"seq": 42, "epoch": "e"}) + text_frame({"seq": 43})
    for cut in range(len(data) + 1):
        scanner = Scanner("seq")
        track = Track()
        assert _feed(scanner, track, data, [cut]) == [b"41", b"42", b"43"], cut
        assert track.rest == b""
        assert (track.received, track.next) == (3, 44)
        assert not scanner.counts["missing"]
        assert not scanner.counts["repeated"]


@pytest.mark.parametrize("seed", range(5))
def test_random_pieces(seed: int) -> None:
    rng = random.Random(seed)
    data = b"".join(text_frame(_message(seq)) for seq in range(8, 208))
    cuts = sorted(rng.sample(range(len(data)), 600))
    scanner, track = Scanner("seq"), Track()
    _feed(scanner, track, data, cuts)
    assert (track.received, track.next) == (200, 208)
    assert +scanner.counts == {"received": 200}


def test_holes_and_repeats_are_counted() -> None:
    scanner, track = Scanner("seq"), Track()
    data = b"".join(text_frame(_message(seq)) for seq in (1, 2, 5, 5, 6))
    _feed(scanner, track, data, [])
    assert scanner.counts["missing"] == 2
    assert scanner.counts["repeated"] == 1
    assert track.next == 7


def test_a_gap_event_covers_what_it_names_and_no_more() -> None:
    scanner, track = Scanner("seq"), Track()
    gap = {"event": "gap", "data": {"first": 3, "last": 5, "reason": "history"}}
    data = b"".join(map(text_frame, (_message(1), _message(2), gap, _message(6), _message(8))))
    for at in range(0, len(data), 7):
        scanner.parse(track, data[at : at + 7])
    assert scanner.counts["announced"] == 3
    assert scanner.counts["missing"] == 1
    assert track.received == 7


def test_frames_of_the_bare_loop_hold_json() -> None:
    for size in (10, 200, 70_000):
        frame = text_frame({"pad": "x" * size})
        head = 2 if size == 10 else 4 if size == 200 else 10
        assert json.loads(frame[head:]) == {"pad": "x" * size}
