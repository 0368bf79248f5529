"""What is known of other processes, also by one that can open nothing more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.protocol.envelope import new_id
from workers.shared.processes import command_line, start_time

REPO = Path(__file__).parents[2]

FULL = """
import os, resource, sys
from pathlib import Path
from workers.shared.processes import start_time
from workers.shared.slots import SlotTable

table = SlotTable(Path(sys.argv[1]))
table.claim_row(master=1)
last = os.open("/dev/null", os.O_RDONLY)
resource.setrlimit(resource.RLIMIT_NOFILE, (last + 1, last + 1))
try:
    start_time(os.getpid())
except OSError:
    print("cannot tell")
print(table.sweep(), len(table.rows()))
"""


def test_start_time_of_the_living_and_the_dead() -> None:
    born = start_time(os.getpid())
    assert born
    assert start_time(os.getpid()) == born
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin
    assert child.stdout
    child.stdin.write(b"x")
    child.stdin.flush()
    assert child.stdout.read(1) == b"x"  # it is itself by now, not a copy of this process
    assert (start_time(child.pid) or 0) >= born
    assert command_line(child.pid) == b"cat\0"
    child.stdin.close()
    child.stdout.close()
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert start_time(child.pid) is None  # a zombie
    child.wait()
    assert start_time(child.pid) is None
    assert command_line(child.pid) == b""


@pytest.mark.parametrize("pid", [0, 2**22 + 1])
def test_no_such_process(pid: int) -> None:
    assert start_time(pid) is None


def test_full_descriptor_table(tmp_path: Path) -> None:
    """No process is taken for dead, and no row is freed, because /proc cannot be opened."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "slots")],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["cannot tell", "[] 1"]


def test_a_child_makes_other_ids() -> None:
    new_id()
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, new_id().encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 100).decode() not in {new_id() for _ in range(200)}
    os.close(reading)
    os.close(writing)
