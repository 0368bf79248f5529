"""When a worker shows its master that it lives."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from app.seconds import REST, seconds_of
from tests.support.clock import VirtualLoop, elapse
from workers import gunicorn_worker, runtime
from workers.gunicorn_worker import RealtimeWorker


class Worker:
    """One that serves; only its signs of life are real."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.signs: list[float] = []
        process: Any = RealtimeWorker.__new__(RealtimeWorker)
        process.loop, process.booted, process.alive = loop, True, True
        process.ppid = os.getppid()
        process.log = SimpleNamespace(info=lambda _: None)
        process.notify = lambda: self.signs.append(loop.time())
        process.wake = lambda: None
        self.process = process


def run(act: Callable[[Worker, VirtualLoop], Any]) -> None:
    loop = VirtualLoop()
    try:
        loop.run_until_complete(act(Worker(loop), loop))
    finally:
        loop.close()


def steps(worker: Worker) -> list[float]:
    return [round(b - a, 1) for a, b in zip(worker.signs, worker.signs[1:], strict=False)]


def test_signs_of_life_come_when_the_worker_wakes_up_anyway() -> None:
    async def act(worker: Worker, loop: VirtualLoop) -> None:
        worker.process._keep_notifying()
        await elapse(5.0)
        assert steps(worker) == [gunicorn_worker._NOTIFY_SECONDS], "from the fork on"
        runtime._share_wake_ups(worker.process)
        seconds = seconds_of(loop)
        await elapse(20.0)
        assert steps(worker)[-2:] == [runtime._SIGN_SECONDS] * 2
        seconds.rest()
        await elapse(3.0 * REST)
        assert steps(worker)[-1] == REST
        assert {round((at - seconds._phase) % 1.0, 2) % 1.0 for at in worker.signs[3:]} == {0.0}
        seconds.wake()
        await elapse(10.0)
        assert steps(worker)[-1] == runtime._SIGN_SECONDS

    run(act)


def test_a_worker_whose_master_is_gone_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    async def act(worker: Worker, loop: VirtualLoop) -> None:
        runtime._share_wake_ups(worker.process)
        worker.process._keep_notifying()
        monkeypatch.setattr(os, "getppid", lambda: 1)
        await elapse(runtime._SIGN_SECONDS + 1.5)
        assert not worker.process.alive

    run(act)


def test_the_class_of_an_earlier_master_keeps_its_own_timer() -> None:
    earlier: Any = SimpleNamespace(loop=None)
    runtime._share_wake_ups(earlier)
