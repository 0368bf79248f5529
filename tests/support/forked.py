"""Runs of a Python program as forks of a process that has imported it: most of what a run costs.

Each run is a process of its own, with its arguments, directory, environment and streams, and ends
as the interpreter ends it. What imports cost and do is seen only by tests that start the program.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Self

_SERVER = """
import importlib, json, os, runpy, sys
program, *imported = sys.argv[1:]
for name in imported:
    importlib.import_module(name)
for line in sys.stdin.buffer.raw:
    run = json.loads(line)
    pid = os.fork()
    if pid == 0:
        for number, (path, flags) in enumerate(run["streams"]):
            os.dup2(os.open(path, flags), number)
        os.chdir(run["cwd"])
        os.environ.clear()
        os.environ.update(run["environ"])
        sys.argv[1:] = run["arguments"]
        runpy.run_module(program, run_name="__main__", alter_sys=True)
        break
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.write(1, b"%d\\n" % code)
"""
_READ, _WRITE = 0, 1  # os.O_RDONLY and os.O_WRONLY
_TIMEOUT = 60
"""Seconds that a run may take."""


class ForkedProgram:
    """A module that is run as `python -m` runs it.

    Args:
        program: the module.
        imported: the modules that it imports.
        environ: of the process that imports them.
    """

    def __init__(self, program: str, *imported: str, environ: Mapping[str, str]) -> None:
        self._command = [sys.executable, "-u", "-c", _SERVER, program, *imported]
        self._environ = dict(environ)
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._server = subprocess.Popen(
            self._command,
            env=self._environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait(_TIMEOUT)
        self._server.stdout.close()

    def run(
        self, cwd: Path, environ: Mapping[str, str], *arguments: str, input: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run it to its end; one run at a time."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        with tempfile.TemporaryDirectory(prefix="yj-f-") as directory, self._lock:
            streams = [Path(directory) / name for name in ("in", "out", "err")]
            for stream in streams:
                stream.write_text(input if stream.name == "in" else "")
            request = {
                "streams": [
                    (str(stream), _READ if stream.name == "in" else _WRITE) for stream in streams
                ],
                "cwd": str(cwd),
                "environ": dict(environ),
                "arguments": arguments,
            }
            self._server.stdin.write(json.dumps(request).encode() + b"\n")
            watch = threading.Timer(_TIMEOUT, os.killpg, (self._server.pid, signal.SIGKILL))
            watch.start()
            try:
                code = self._server.stdout.readline()
            finally:
                watch.cancel()
            assert code, f"{arguments} did not end within {_TIMEOUT} s"
            _, out, err = (stream.read_text() for stream in streams)
            return subprocess.CompletedProcess(list(arguments), int(code), out, err)
