"""`make run`: prepares the first start, says where to look, and becomes gunicorn."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

from app import config
from app.config import Settings
from app.errors import SettingsError

ROOT = Path(__file__).resolve().parents[1]
# Addresses to listen on, and what to call them from here.
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104

BANNER = """\
Yujian Presence on {base}

  Page       {base}/
  Socket     {socket}  (plain JSON; Socket.IO: the same path)
  State      {base}/status
  Metrics    {base}/metrics

Try, in a second terminal:
  make listen{url}
  curl {curl}/status
  curl {curl}/ws/broadcast -H "Authorization: Bearer $(sed -n 's/^PUBLISH_TOKEN=//p' .env)" \\
    -H 'Content-Type: application/json' \\
    -d '{{"type": "status", "event": "greeting", "data": {{"hello": "world"}}}}'

Ctrl-C stops the service.
"""


def write_dotenv(path: Path) -> bool:
    """Write a first `.env` that only this user can read; False when there is one already."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(
            f"# docs/SETTINGS.md lists all settings.\nPUBLISH_TOKEN={secrets.token_urlsafe(32)}\n"
        )
    return True


def banner(settings: Settings) -> str:
    """Where the service will be found, and commands to try."""
    if settings.bind.startswith("unix:"):
        path = settings.bind.removeprefix("unix:")
        base, socket, url = "http://localhost", "ws://localhost/ws/realtime", ""
        return BANNER.format(base=base, socket=socket, url=url, curl=f"--unix-socket {path} {base}")
    host, _, port = settings.bind.rpartition(":")
    address = f"{EVERYWHERE.get(host, host)}:{port}"
    socket = f"ws://{address}/ws/realtime"
    url = "" if address == "127.0.0.1:3001" else f" URL={socket}"
    base = f"http://{address}"
    return BANNER.format(base=base, socket=socket, url=url, curl=base)


def main() -> None:
    """Start the service in place of this process.

    Raises:
        SystemExit: a setting is wrong; it bears the line that says so.
    """
    os.chdir(ROOT)
    dotenv_path = Path(".env")
    if write_dotenv(dotenv_path):
        print("Wrote .env with a new PUBLISH_TOKEN.\n")
    try:
        settings = config.load(os.environ, dotenv_path)
    except SettingsError as error:
        sys.exit(str(error))
    print(banner(settings), flush=True)
    command = [sys.executable, "-m", "gunicorn", "-c", "gunicorn.conf.py"]
    os.execv(sys.executable, command)  # noqa: S606


if __name__ == "__main__":
    main()
