"""Starts the service in the foreground: `make run`, or `yujian-presence` of an installed wheel.

The settings are read from the environment and `.env`: that of the checkout, or of the current
directory for an installed wheel. Without a `.env` one is written with a new PUBLISH_TOKEN.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from app import __version__, config
from app.command_line import make_parser
from app.config import Settings
from app.errors import SettingsError
from workers.shared import paths

# Addresses to listen on, and what to call them from here.
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104

BANNER = """\
Yujian Presence on {base}

{page}  Socket     {socket}  (plain JSON; Socket.IO: the same path)
  State      {base}/status
  Metrics    {base}/metrics

Try, in a second terminal:
{listen}  curl {curl}/status
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
        curl = f"--unix-socket {path} {base}"
    else:
        host, _, port = settings.bind.rpartition(":")
        address = f"{EVERYWHERE.get(host, host)}:{port}"
        socket = f"ws://{address}/ws/realtime"
        url = "" if address == "127.0.0.1:3001" else f" URL={socket}"
        base = curl = f"http://{address}"
    page = f"  Page       {base}/\n" if settings.page else ""
    return BANNER.format(base=base, page=page, socket=socket, listen=_listen(url), curl=curl)


def _listen(url: str) -> str:
    """The line about `make listen`, which only a checkout has."""
    return f"  make listen{url}\n" if paths.is_checkout() else ""


def main(arguments: Sequence[str] | None = None) -> None:
    """Replace this process by the service.

    Raises:
        SystemExit: a setting is invalid; the message is one line that names it.
    """
    parser = make_parser("yujian-presence", __doc__)
    parser.add_argument("--version", action="version", version=__version__)
    parser.parse_args(arguments)
    os.chdir(paths.home())
    dotenv_path = Path(".env")
    if write_dotenv(dotenv_path):
        print("Wrote .env with a new PUBLISH_TOKEN.\n")
    try:
        settings = config.load(os.environ, dotenv_path)
    except SettingsError as error:
        sys.exit(str(error))
    print(banner(settings), flush=True)
    command = [sys.executable, "-m", "gunicorn", "-c", str(paths.configuration())]
    os.execv(sys.executable, command)  # noqa: S606


if __name__ == "__main__":
    main()
