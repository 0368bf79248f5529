"""Programs and receivers of the monitoring tests."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

REPO = Path(__file__).resolve().parents[2]
MONITORING = REPO / "monitoring"

needs_prometheus = pytest.mark.skipif(
    not (shutil.which("promtool") and shutil.which("prometheus")),
    reason="Prometheus is not installed (Debian: prometheus)",
)
needs_alertmanager = pytest.mark.skipif(
    not (shutil.which("amtool") and shutil.which("prometheus-alertmanager")),
    reason="Alertmanager is not installed (Debian: prometheus-alertmanager)",
)


def run(*command: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a program to its end with these variables and nothing else in its environment."""
    base = {"PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"}
    return subprocess.run(
        [str(part) for part in command],
        env=base | environ,
        capture_output=True,
        text=True,
        timeout=50,
    )


def shellcheck(script: Path) -> None:
    """Assert that a script is clean."""
    result = run(Path(sys.executable).with_name("shellcheck"), script)
    assert result.returncode == 0, result.stdout


class Receiver:
    """An HTTP server that keeps what is posted to it; `status` is what it answers."""

    def __init__(self) -> None:
        self.posts: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.status = 200
        self.pages: dict[str, tuple[int, str]] = {}
        """What it answers to GET, by path."""
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if receiver.status < 300:
                    receiver.posts.append(json.loads(body))
                    receiver.headers.append(dict(self.headers))
                self.answer(receiver.status, "")

            def do_GET(self) -> None:
                self.answer(*receiver.pages.get(self.path, (404, "")))

            def answer(self, status: int, text: str) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class Program:
    """A program in the background, killed at the end; its output is in `log`."""

    def __init__(self, log: Path, *command: str | Path, **environ: str) -> None:
        self.log = log
        self._command = [str(part) for part in command]
        self._environ = {"PATH": "/usr/local/bin:/usr/bin:/bin"} | environ

    def __enter__(self) -> Self:
        with self.log.open("wb") as out:
            self._process = subprocess.Popen(
                self._command, env=self._environ, stdout=out, stderr=subprocess.STDOUT
            )
        return self

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        if error is not None:
            error.add_note(self.log.read_text(errors="replace")[-3000:])
