"""`make reload`: let the running service take new code and settings, and say what came of it.

HUP is enough for what workers import after the fork. What the master holds itself needs a new
master (USR2). Either way the old workers go on until new ones serve, so a reload that fails
changes nothing.

Exit codes: 0 all went well; 1 the reload failed and the old workers serve as before; 2 nothing
runs, or wrong arguments; 3 connections were drained or lost, not all workers are running, or it was
interrupted.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from app.command_line import end_by_interrupts, make_parser
from workers.reload import fingerprint
from workers.reload.report import Report
from workers.reload.watch import Failed, Watch, workers_of
from workers.shared import paths
from workers.shared.file import explain
from workers.shared.listening import fault_of
from workers.shared.locks import FileLock, open_lock
from workers.shared.paths import data_directory
from workers.shared.processes import SUCCESSOR, command_line, is_stopped, read_pid, start_time

OK, FAILED, NOT_RUNNING, PARTLY = range(4)

_CHECK_SECONDS = 60
"""What a check of the new code may take."""
_LINES = 6
"""Last lines of an error that are shown."""
_NEEDS_FORK = ("GUNICORN_PID", "GUNICORN_FD", "LISTEN_PID", "LISTEN_FDS", SUCCESSOR)
_HANDLERS = "import importlib, os; importlib.import_module(os.environ['HANDLERS']).register"


class NotRunning(Exception):
    """There is no service to reload."""


def say(text: str) -> None:
    """Tell the operator; standard output is kept for the report."""
    print(text, file=sys.stderr, flush=True)


def find_data_dir() -> Path:
    """See `data_directory`.

    Raises:
        Failed: `.env` cannot be read.
    """
    try:
        return data_directory()
    except (OSError, UnicodeDecodeError) as error:
        raise Failed(f".env: cannot be read: {error}") from None


def find_master(data_dir: Path) -> int:
    """Pid of the running master.

    Raises:
        NotRunning: there is none.
    """
    # The second is that of a new master whose predecessor has just ended.
    for file in paths.pid_files(data_dir):
        pid = read_pid(file)
        if pid is not None and start_time(pid) and b"gunicorn" in command_line(pid):
            return pid
    raise NotRunning(f"no service runs with DATA_DIR {data_dir}")


def check_home(master: int) -> None:
    """A reload would renew the code of the directory that the master runs from.

    Raises:
        Failed: that is another one.
    """
    try:
        there = Path(f"/proc/{master}/cwd").readlink()
        if there.samefile(paths.home()):
            return
    except OSError:
        return  # of another user, or removed: not known
    raise Failed(
        f"master {master} runs from {there}, not from {paths.home()}: reload it there, or let this"
        " directory take its place with 'python -m workers.start --replace'"
    )


def environment_of(pid: int) -> dict[str, str]:
    """The environment that a master was started with, which its workers will have."""
    pairs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    found = dict(os.fsdecode(pair).partition("=")[::2] for pair in pairs if b"=" in pair)
    return {name: value for name, value in found.items() if name not in _NEEDS_FORK}


def check(environ: Mapping[str, str]) -> dict[str, Any]:
    """Find out in child processes whether the new code can start, before anything is touched.

    Returns:
        The settings that it will have.

    Raises:
        Failed: it cannot; says why.
    """
    settings: dict[str, Any] = json.loads(_run(environ, "-m", "app.config"))
    # Executes the configuration and imports the application, as a master and a worker would.
    _run(environ, "-m", "gunicorn", "--check-config", "-c", str(paths.configuration()))
    if settings["handlers"]:
        _run({**environ, "HANDLERS": settings["handlers"]}, "-c", _HANDLERS)
    return settings


def check_bind(data_dir: Path, master: int, bind: str) -> None:
    """A master that cannot listen on a new address would end; say that there is one.

    Raises:
        Failed: it cannot; says why.
    """
    before = fingerprint.bind_of(data_dir, master)
    if before is None or before == bind:
        return
    if fault := fault_of(bind, before):
        raise Failed(fault)
    say(f"BIND becomes {bind}, no longer {before}: what is connected stays, new clients need it")


def _run(environ: Mapping[str, str], *arguments: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603 (this Python, with arguments of our own)
            [sys.executable, *arguments],
            cwd=paths.home(),
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_CHECK_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"python {' '.join(arguments)} takes too long") from None
    if done.returncode:
        raise Failed(last_lines(done.stderr) or f"exit code {done.returncode}")
    return done.stdout


def last_lines(text: str) -> str:
    """The end of an error, which says what is wrong."""
    lines = [line for line in text.splitlines() if line.strip()]
    return "\n".join(lines[-_LINES:])


def choose(data_dir: Path, master: int) -> tuple[signal.Signals, str]:
    """The signal that the change needs, and why."""
    changed = fingerprint.changes(data_dir, master)
    if changed is None:
        needs, why = signal.SIGUSR2, "it is not recorded which code the master runs"
    elif changed:
        listed = ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" * (len(changed) > 5))
        needs, why = signal.SIGUSR2, f"the master itself must change: {listed}"
    else:
        return signal.SIGHUP, "only what the workers import may have changed"
    if master == 1 or _is_in_container(master):
        why += "; but it is the main process of its container, which would end with it:"
        return signal.SIGHUP, f"{why} only the workers are renewed, start the container anew"
    return needs, why


def _is_in_container(master: int) -> bool:
    """Whether a master is the main process of a container, though it may not be its first."""
    try:
        return "MASTER_PID_FILE" in environment_of(master)
    except OSError:
        return False


@contextmanager
def only_one(data_dir: Path) -> Iterator[None]:
    """Wait for a reload that is under way; say so.

    Raises:
        Failed: the file of the lock cannot be made.
        PermissionError: it is another user's.
    """
    try:
        fd = open_lock(paths.reload_lock(data_dir))
    except PermissionError:
        raise
    except OSError as error:
        raise Failed(explain(error)) from None
    lock = FileLock(fd)
    try:
        if not lock.try_enter():
            say("Another reload is under way; this one waits for it.")
            lock.__enter__()
        yield
    finally:
        os.close(fd)


@contextmanager
def _while_it_runs(master: int) -> Iterator[None]:
    """Raise NotRunning for what fails since the service has ended meanwhile."""
    born = start_time(master)
    try:
        yield
    except (OSError, Failed) as error:
        has_begun = isinstance(error, Failed) and not error.unchanged
        if has_begun or start_time(master) == born:
            raise
        raise NotRunning("the service ended while the reload was prepared") from None


def reload(data_dir: Path, wanted: signal.Signals | None) -> Report:
    """Reload, watch, and report.

    Raises:
        NotRunning: there is nothing to reload.
        Failed: the new workers do not come; the old ones serve.
    """
    master = find_master(data_dir)
    with _while_it_runs(master):
        return _reload(data_dir, master, wanted)


def _reload(data_dir: Path, master: int, wanted: signal.Signals | None) -> Report:
    check_home(master)
    for pid in filter(is_stopped, (master, *workers_of(master))):
        name = "master" if pid == master else "worker"
        raise Failed(f"{name} {pid} is stopped by a signal: continue it with kill -CONT {pid}")
    settings = check(environment_of(master))
    check_bind(data_dir, master, settings["bind"])
    chosen, why = choose(data_dir, master)
    if wanted is not None and wanted != chosen:
        chosen, why = wanted, f"asked for; by itself: {chosen.name}, {why}"
    say(f"{chosen.name} to master {master}: {why}")
    # Not before the check: it brings parts of the application.
    from workers.reload.figures import ReloadFigures  # noqa: PLC0415

    figures = ReloadFigures(data_dir)
    watch = Watch(data_dir, master, settings)
    began = time.monotonic()
    if chosen == signal.SIGUSR2:
        watch.change_masters()
    else:
        watch.renew_workers()
    seconds = time.monotonic() - began
    watch.wait_for_figures()
    return Report.make(chosen.name, why, seconds, watch, figures.since())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `make reload`; returns the exit code."""
    parser = make_parser("python -m workers.reload", __doc__)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument(
        "--signal",
        choices=["HUP", "USR2"],
        help="send this signal, not the one that the change needs",
    )
    options = parser.parse_args(arguments)
    end_by_interrupts()
    os.chdir(paths.home())
    report: dict[str, Any]
    try:
        data_dir = find_data_dir()
        find_master(data_dir)
        with only_one(data_dir):
            wanted = signal.Signals[f"SIG{options.signal}"] if options.signal else None
            done = reload(data_dir, wanted)
        report = asdict(done)
        text, code = str(done), PARTLY if done.drained or done.lost else OK
    except NotRunning as error:
        report, text, code = {"error": str(error)}, f"Not reloaded: {error}", NOT_RUNNING
    except PermissionError as error:
        report, code = {"error": str(error)}, FAILED
        text = f"Not reloaded: {error}: run this as the user of the service"
    except Failed as error:
        code = FAILED if error.unchanged else PARTLY
        after = (
            "The old workers serve as before."
            if error.unchanged
            else "The service is in an unknown state: check it."
        )
        report, text = {"error": str(error)}, f"The reload has failed:\n{error}\n{after}"
    except KeyboardInterrupt:
        report, code = {"error": "interrupted"}, PARTLY
        text = (
            "Interrupted: a new master that did not serve yet has ended; new workers of the same"
            " master come all the same. See GET /status."
        )
    report["code"] = code
    if options.json:
        print(json.dumps(report))
    else:
        print(text, file=sys.stderr if code in (FAILED, NOT_RUNNING) else sys.stdout)
    return code
