"""The configuration of the gunicorn master. It is executed again on every reload (HUP).

The settings come from the environment and `.env` by way of a child process, so that the master
never imports `app`: see `workers/master.py`, which also keeps what must outlive a reload.
"""

import atexit
import gc
import importlib
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

_CODE = Path(__file__).resolve().parent
if not (_CODE / "workers").is_dir():
    _CODE = _CODE.parent  # a wheel has this file inside of `workers`
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while all this is imported: no traceback
if str(_CODE) not in sys.path:
    sys.path.insert(0, str(_CODE))
gc.disable()  # what is imported stays: to look through it each time takes a tenth of the start

from workers import gunicorn_private, logs, master  # noqa: E402
from workers.shared import paths  # noqa: E402
from workers.shared.file import explain  # noqa: E402

try:
    _master = master.load(paths.home())
except master.WrongSettings as error:
    sys.exit(str(error))
except OSError as error:
    raise logs.ending(explain(error)) from None
_settings = _master.settings

os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(_master.metrics_dir)  # read at the first import
# python-socketio imports every client library of Redis that there is. This one takes a sixth of the time of all
# imports, and the service does not use it; application handlers may.
_left_out = {"valkey"} - sys.modules.keys()
sys.modules.update(dict.fromkeys(_left_out))
for _name in (
    "aiohttp.web",
    "engineio",
    "hiredis",
    "jwt",
    "orjson",
    "prometheus_client.multiprocess",
    "psutil",
    "redis.asyncio",
    "socketio",
    "uvloop",
):
    importlib.import_module(_name)  # in the master, so that the workers share their memory
for _name in _left_out:
    del sys.modules[_name]
gc.enable()

_SEND_BUFFER = 128 * 1024
"""Bytes; the kernel doubles it. Without a limit a stuck client holds megabytes there."""

wsgi_app = "workers.runtime:create"
worker_class = "workers.gunicorn_worker.RealtimeWorker"
chdir = str(paths.home())
bind = _master.bind
workers = _settings["workers"]
backlog = 16384  # all clients come back at once; the kernel bounds it by net.core.somaxconn
timeout = 30
keepalive = 150  # seconds: longer than proxies keep idle connections, so that they end them
graceful_timeout = _settings["graceful_timeout"]
pidfile = str(_master.pid_file)
worker_tmp_dir = str(_master.metrics_dir.parent)  # in memory: a slow disk must not look like a hang
gunicorn_private.write_pid_files_by(_master.write_pid_file)
control_socket_disable = True
logconfig_dict = logs.logconfig(_settings["log_level"].upper(), _settings["log_format"])
proc_name = "yujian-presence"


def on_starting(server: Any) -> None:
    _master.lock.share()  # once more, in case gunicorn has become a daemon since
    _master.await_address(server)
    _master.record()
    _master.allow_open_files()


def when_ready(server: Any) -> None:
    _master.guard_configuration(server)
    _master.guard_addresses(server)
    _master.announce_stop(server)
    _master.watch_over(server)
    _master.guard_terminal(server)
    _master.guard_spawning(server)
    _master.guard_succession(server)
    _limit_send_buffers(server)
    # What exists now is shared with the workers as long as their collector leaves it alone.
    gc.collect()
    gc.freeze()
    # An error that gunicorn does not expect ends it without `on_exit`.
    atexit.register(_leave_unless_served)


def on_reload(server: Any) -> None:
    _limit_send_buffers(server)
    _master.allow_open_files()
    _master.note_reload(server)


def pre_fork(server: Any, _worker: Any) -> None:
    gunicorn_private.claim_pid_file(server)
    _master.slots.note_fork()


def post_fork(server: Any, worker: Any) -> None:
    atexit.unregister(_leave_unless_served)
    worker.take_early_signals(gunicorn_private.signals(server))


def pre_exec(server: Any) -> None:
    gunicorn_private.start_again_by_module(server)


def child_exit(server: Any, _worker: Any) -> None:
    _master.slots.sweep()
    _master.end_failed_reload(server)


def on_exit(_: Any) -> None:
    atexit.unregister(_leave_unless_served)
    _master.pass_pid_file_on()
    _leave()


def _leave() -> None:
    """Let the last master end what outlives its workers."""
    if _master.lock.is_alone():
        try:
            # Not before: the newest code stops it, and the master stays small.
            importlib.import_module("workers.leader.valkey").stop(_master.data_dir)
        except (ImportError, OSError, SyntaxError) as error:
            _master.end_servers(error)
        _master.clean_up()


def _leave_unless_served() -> None:
    """Workers of a master that is gone do it when the last of them ends."""
    _master.slots.sweep()
    if not _master.slots.rows():
        _leave()


if "--check-config" in sys.argv:
    # A service that ended while `make reload` checked its configuration was not alone.
    atexit.register(_leave_unless_served)


def _limit_send_buffers(server: Any) -> None:
    """Set on the listeners: sockets that they accept inherit it."""
    for listener in gunicorn_private.listening_sockets(server):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
