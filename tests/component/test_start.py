"""What `python -m workers.start` does before it becomes gunicorn."""

from __future__ import annotations

import os
import subprocess
import sys

from workers.shared import paths


def test_sockets_where_gunicorn_looks_for_them() -> None:
    """In a process of its own, since the numbers are in use here; whatever they were before."""
    code = """
import os, socket
from workers import start
from workers.shared import paths
listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
ports = [one.getsockname()[1] for one in listeners]
given = [one.detach() for one in listeners]
environ = start.place([given[1], given[0], given[2]], {"A": "b"})
assert environ == {"A": "b", "LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "3"}, environ
found = [socket.socket(fileno=3 + n) for n in range(3)]
assert [one.getsockname()[1] for one in found] == [ports[1], ports[0], ports[2]]
assert all(os.get_inheritable(one.fileno()) for one in found)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_wrong_setting_ends_the_start_with_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "workers.start"],
        env={**os.environ, "WORKERS": "none"},
        cwd=paths.home(),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1
    assert "WORKERS" in done.stderr
