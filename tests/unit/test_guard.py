"""Shared files that are put back: when, and what is said of it."""

from __future__ import annotations

import logging

import pytest

from workers.shared.guard import Part, SharedFilesGuard


class File:
    def __init__(self) -> None:
        self.there = True
        self.error: Exception | None = None
        self.mine = True

    def is_there(self) -> bool:
        return self.there

    def restore(self) -> bool:
        if self.error is not None:
            raise self.error
        if self.there or not self.mine:
            return False
        self.there = True
        return True


class Bench:
    def __init__(self) -> None:
        self.parts = {"the table": File(), "a socket": File()}
        self.counted = 0
        self.guard = SharedFilesGuard(
            {name: Part(one.is_there, one.restore) for name, one in self.parts.items()}, self.count
        )

    def count(self) -> None:
        self.counted += 1


def test_nothing_is_said_while_all_is_there(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    bench.guard.look()
    assert bench.guard.faults() == []
    assert bench.counted == 0
    assert caplog.records == []


def test_what_is_gone_is_named_and_put_back(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    bench.parts["a socket"].there = False
    assert bench.guard.faults() == ["shared files: a socket is gone"]
    bench.guard.look()
    assert bench.guard.faults() == []
    assert bench.counted == 1
    assert [r.getMessage() for r in caplog.records] == [
        "Something removed a socket; it is there again"
    ]


def test_what_another_process_puts_back_is_named_only() -> None:
    bench = Bench()
    bench.parts["a socket"].there = bench.parts["a socket"].mine = False
    bench.guard.look()
    assert bench.guard.faults() == ["shared files: a socket is gone"]
    assert bench.counted == 0


def test_a_part_that_fails_keeps_the_others_and_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench()
    bench.parts["the table"].error = OSError("no space")
    bench.parts["a socket"].there = False
    for _ in range(3):
        bench.guard.look()
    assert bench.counted == 1
    assert [r.levelno for r in caplog.records] == [logging.ERROR] * 2
    bench.parts["the table"].error = None
    bench.guard.look()
