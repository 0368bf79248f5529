"""What a reload makes of old workers, with real processes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.support.waiting import until_now
from workers.reload.watch import Watch
from workers.shared import paths
from workers.shared.slots import READY, SlotTable


def test_a_worker_that_has_given_its_row_up_is_still_leaving(tmp_path: Path) -> None:
    """On a busy machine it takes a while to end, which is no death of a new worker."""
    path = paths.slots_file(tmp_path)
    table = SlotTable(path)
    master = os.getpid()
    worker = os.fork()
    if not worker:
        mine = SlotTable(path)
        mine.set_state(mine.claim_row(master), READY)
        signal.pause()
    try:
        until_now(lambda: [row.state for row in table.rows()] == [READY], "the worker serves")
        watch = Watch(tmp_path, master, {"workers": 1, "graceful_timeout": 1})
        assert watch._is_settled()
        table.free(worker)
        assert not watch._look()
        assert not watch._is_settled()
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)
        worker = 0
        assert watch._look()
        assert watch._is_settled()
    finally:
        if worker:
            os.kill(worker, signal.SIGKILL)
            os.waitpid(worker, 0)
        path.unlink()
