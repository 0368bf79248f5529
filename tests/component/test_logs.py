"""Log lines: both formats, their fields, what never gets into them, and every library's logger."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("style", ["text", "json"])
def test_all_libraries_write_through_one_formatter(style: str) -> None:
    """In a child, since it changes the loggers of its process."""
    code = f"""
import logging, sys
from gunicorn.config import Config
from gunicorn.glogging import Logger
from workers.logs import logconfig
import socketio

config = Config()
config.set("logconfig_dict", logconfig("INFO", {style!r}))
Logger(config).info("from gunicorn")
logging.getLogger("gunicorn.access").info("from access")
logging.getLogger("aiohttp.server").warning("from aiohttp")
logging.getLogger("app.x").info("from app")
logging.getLogger("app.x").debug("too quiet")
socketio.AsyncServer().logger.warning("from socketio")
assert "app" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = done.stderr.splitlines()
    said = ["gunicorn", "access", "aiohttp", "app", "socketio"]
    assert len(lines) == len(said)
    for line, name in zip(lines, said, strict=True):
        if style == "json":
            assert json.loads(line)["message"] == f"from {name}"
        else:
            assert line.endswith(f": from {name}")


# Secrets in whatever a library or a client may say
