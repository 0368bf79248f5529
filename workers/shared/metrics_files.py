"""Join the metrics that the processes of the service keep in files (`app/metrics.py`).

Each process writes `<type>_<process>.db` files, which stay when it dies. Left alone they pile up
with each generation of workers; removed, the counters would fall. So what a dead process has
counted is added to `counter_folded.db` or `histogram_folded.db`, and its file is removed.

A process that is killed while it folds leaves nothing counted twice: the new folded file, which
also names the files that it holds in sum, takes its place by one rename, and only then are those
files removed. The next process that takes the lock removes what is left of them. Names of files never come
back, since they are made of the process' start time too.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from prometheus_client.metrics_core import Metric
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector

from workers.shared.file import is_full, write_atomically
from workers.shared.locks import open_lock, try_flock
from workers.shared.polling import block_until
from workers.shared.processes import start_time

LOCK_WAIT = 5.0
"""Seconds to wait for another process that scrapes or folds; that takes milliseconds."""
_LOCK_INTERVAL = 0.005
"""Seconds between two tries for it."""

KINDS = COUNTER, HISTOGRAM, GAUGE = "counter", "histogram", "gauge"
"""Of metrics, as the names of their files begin."""
_FOLDED = "folded"
_SOURCES = "realtime_folded_files"
"""Name of the entries of a folded file that name its sources; they are not metrics."""

_ENTRY = 32
"""Bytes that an entry of a file takes at most beside its key; so does the head of the file."""

_mmaped_dict: Any = MmapedDict  # the library leaves it untyped

_DAMAGE = (RuntimeError, ValueError, KeyError, TypeError, IndexError, struct.error)
"""What reading a file may raise that no process of this service has written so."""

_KEYS = 4_096
"""Keys of entries that are kept with what they say; a service has some hundreds."""

logger = logging.getLogger(__name__)


class Count(NamedTuple):
    """What a process has counted."""

    name: str
    """Of a counter, or with `_sum` or `_bucket` behind it of a histogram."""
    bound: float | None
    """Upper bound of the bucket, whose count does not include those below it; None: it is no bucket."""
    value: float


def is_alive(process: str) -> bool:
    """Whether the process with this name, `<pid>-<start time>`, still runs or may do so.

    One that could not read its start time is named by its pid alone.
    """
    pid, _, born = process.partition("-")
    if not (pid.isdigit() and (born.isdigit() or not born)):
        return False
    try:
        found = start_time(int(pid))
        return found is not None and (not born or found == int(born))
    except OSError:
        return True  # no descriptor is left to look: it is folded another time


class MetricsFiles:
    """The metrics of all processes, dead ones included. Calls block: use a thread.

    Args:
        directory: where the files are, PROMETHEUS_MULTIPROC_DIR.
        alive: tells whether a process, named as in its files, still runs.
    """

    def __init__(self, directory: Path, alive: Callable[[str], bool] = is_alive) -> None:
        self._directory = directory
        self._alive = alive

    def fold(self) -> int:
        """Fold the files of dead processes; return how many were removed.

        Raises:
            TimeoutError: another process has held the lock for `LOCK_WAIT` seconds.
        """
        with self._locked():
            return self._fold()

    def collect(self) -> list[Metric]:
        """All metrics, joined over the processes; folds the files of dead ones as well.

        Raises:
            TimeoutError: another process has held the lock for `LOCK_WAIT` seconds.
        """
        with self._locked():
            files = self._folded_files(KINDS)
            try:
                return _merge(files)
            except _DAMAGE:
                return _merge([file for file in files if _is_sound(Path(file))])

    def counts(self) -> list[Count]:
        """What counters and histograms say, not joined: a fifth of the cost of `collect`.

        Raises:
            TimeoutError: another process has held the lock for `LOCK_WAIT` seconds.
        """
        found: list[Count] = []
        with self._locked():
            for file in self._folded_files((COUNTER, HISTOGRAM)):
                try:
                    values = _mmaped_dict.read_all_values_from_file(file)
                    found += [Count(*_counted(key), value) for key, value, _, _ in values]
                except _DAMAGE as error:
                    _put_aside(Path(file), error)
        return found

    def _folded_files(self, kinds: tuple[str, ...]) -> list[str]:
        """The files of some kinds, once those of dead processes are folded."""
        try:
            self._fold()
        except OSError as error:
            if not is_full(error):
                raise  # else the files of dead processes stay, and are counted
        # A new process makes its files empty and gives them their size a moment later.
        return [
            entry.path
            for entry in os.scandir(self._directory)
            if entry.name.endswith(".db") and entry.name.startswith(kinds) and entry.stat().st_size
        ]

    def _locked(self) -> contextlib.AbstractContextManager[None]:
        """Hold the lock that all scrapes and foldings of this machine share."""
        return _locked(self._directory / "lock")

    def _fold(self) -> int:
        dead: dict[str, list[Path]] = {kind: [] for kind in KINDS}
        alive = functools.cache(self._alive)
        for name in os.listdir(self._directory):  # noqa: PTH208 (every few seconds)
            if not name.endswith(".db"):
                continue
            kind, _, rest = name.removesuffix(".db").partition("_")
            process = rest.rpartition("_")[2]
            if process != _FOLDED and kind in dead and not alive(process):
                dead[kind].append(self._directory / name)
        for path in dead[GAUGE]:
            path.unlink()
        for kind in (COUNTER, HISTOGRAM):
            try:
                self._fold_kind(kind, dead[kind])
            except _DAMAGE as error:
                _put_aside(self._directory / f"{kind}_{_FOLDED}.db", error)
        return sum(map(len, dead.values()))

    def _fold_kind(self, kind: str, sources: list[Path]) -> None:
        folded = self._directory / f"{kind}_{_FOLDED}.db"
        sums: dict[str, float] = {}
        counted: set[str] = set()
        if sources and folded.exists():
            for key, value in _read(folded):
                name, _, labels, _ = json.loads(key)
                if name == _SOURCES:
                    counted.add(labels["file"])
                else:
                    sums[key] = value
        fresh = [path for path in sources if path.name not in counted]
        # Those left over from a folding that was cut off go first: the new file forgets them.
        for path in sources:
            if path.name in counted:
                path.unlink()
        if fresh:
            for path in fresh:
                for key, value in _read(path):
                    sums[key] = sums.get(key, 0.0) + value
            for path in fresh:
                sums[mmap_key(_SOURCES, _SOURCES, ["file"], [path.name], "")] = 1.0
            _write(folded, sums)
        for path in fresh:
            path.unlink()


class PageFile:
    """The page of metrics that the workers of this machine answer with. Calls block: use a thread.

    Args:
        directory: as of `MetricsFiles`.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / "page"
        self._lock = directory / "page.lock"

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Hold the lock of the page.

        Raises:
            TimeoutError: another process has held it for `LOCK_WAIT` seconds.
        """
        return _locked(self._lock)

    def read(self) -> bytes:
        """What was written last; empty when there is nothing.

        Raises:
            OSError: it cannot be read.
        """
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return b""

    def write(self, content: bytes) -> None:
        """Replace it.

        Raises:
            OSError: there is no room for it.
        """
        write_atomically(self._path, content)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file.

    It is tied to a descriptor of its own, so that it also keeps the threads of one process
    apart, and falls with the process.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # it may be removed
    descriptor = open_lock(path)
    try:
        if not block_until(lambda: try_flock(descriptor), LOCK_WAIT, _LOCK_INTERVAL):
            raise TimeoutError("the metrics files stay locked")
        yield
    finally:
        os.close(descriptor)


@functools.lru_cache(_KEYS)
def _counted(key: str) -> tuple[str, float | None]:
    """Name and bound of an entry; see `Count`."""
    _, name, labels, _ = json.loads(key)
    bound = dict(labels).get("le")
    return str(name), None if bound is None else float(bound)


def _merge(files: list[str]) -> list[Metric]:
    merge: Callable[[list[str]], Iterable[Metric]] = MultiProcessCollector.merge
    return [metric for metric in merge(files) if metric.name != _SOURCES]


def _is_sound(path: Path) -> bool:
    """Whether a file can be read; one that is damaged is put aside, with what it has counted."""
    try:
        _merge([str(path)])
    except _DAMAGE as error:
        _put_aside(path, error)
        return False
    return True


def _put_aside(path: Path, error: Exception) -> None:
    logger.error("The metrics in %s are damaged and not counted: %r", path, error)
    with contextlib.suppress(OSError):
        path.replace(path.with_suffix(".damaged"))


def _read(path: Path) -> list[tuple[str, float]]:
    if path.stat().st_size == 0:
        return []
    try:
        values = _mmaped_dict.read_all_values_from_file(str(path))
        return [(key, value) for key, value, _, _ in values]
    except _DAMAGE as error:
        logger.warning("The metrics in %s are damaged and not counted: %s", path, error)
        return []


def _write(path: Path, values: dict[str, float]) -> None:
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as reserved:
        needed = sum(len(key.encode()) + _ENTRY for key in values)
        os.posix_fallocate(reserved.fileno(), 0, _ENTRY + needed)
    file = _mmaped_dict(str(temporary))
    try:
        for key, value in values.items():
            file.write_value(key, value, 0.0)
    finally:
        file.close()
    temporary.replace(path)
