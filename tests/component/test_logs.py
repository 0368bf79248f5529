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


@pytest.mark.parametrize("style", ["text", "json"])
def test_what_python_says_by_itself_is_in_the_log(style: str) -> None:
    code = f"""
import sys, threading, warnings
from workers.logs import set_up

set_up("INFO", {style!r})

class Odd:
    def __del__(self):
        raise ValueError("in a finalizer")

def fail():
    raise ValueError("in a thread")

warnings.warn("of old")
Odd()
for target in (fail, sys.exit):
    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
raise ValueError("at last")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if not line.startswith("  ")]
    for line, said in zip(
        lines, ["of old", "in a finalizer", "in a thread", "at last"], strict=True
    ):
        if style == "json":
            entry = json.loads(line)
            assert said in entry["message"] + entry.get("traceback", "")
        else:
            assert line.startswith("20")


@pytest.mark.parametrize(("style", "plain"), [("text", True), ("json", False)])
def test_the_end_of_a_start_is_one_line(style: str, *, plain: bool) -> None:
    code = f"from workers import logs; logs.set_up('INFO', {style!r}); raise logs.ending('no: x')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line == "no: x" if plain else json.loads(line)["message"] == "no: x"
