"""The private names of prometheus_client, and what is built on them: cheaper counting, kept files.

They are no interface of the library, so this module makes sure of them when it is imported.
tests/unit/test_private_names.py says what is expected of what they do.
"""

from __future__ import annotations

import bisect
import functools
import mmap
import os
import struct
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import CodeType
from typing import Any, ClassVar

import prometheus_client
from prometheus_client import Counter, Histogram, values
from prometheus_client.mmap_dict import MmapedDict

_NAMES: Mapping[Any, frozenset[str]] = {
    MmapedDict.__init__: frozenset({"_capacity", "_f", "_fname", "_m", "_positions"}),
    Counter._metric_init: frozenset({"_value", "ValueClass"}),
    Histogram._metric_init: frozenset({"_buckets", "_sum", "_upper_bounds", "ValueClass"}),
    values.MultiProcessValue: frozenset(
        {"MmapedDict", "_file", "_key", "_timestamp", "_value", "process_identifier"}
    ),
}
"""By function of the library: names that it sets, takes or looks up."""


def check(names: Mapping[Any, frozenset[str]] = _NAMES) -> None:
    """Make sure that the library has the names.

    Raises:
        ImportError: one of them is gone.
    """
    missing = [
        f"{name} of {function.__qualname__}"
        for function, wanted in names.items()
        for name in sorted(wanted - _names_in(function.__code__))
    ]
    if missing:
        version = getattr(prometheus_client, "__version__", "of this version")
        raise ImportError(f"prometheus_client {version} is not supported: no {', '.join(missing)}")


def _names_in(code: CodeType) -> set[str]:
    """All names in a function and in those that it defines."""
    names = {*code.co_names, *code.co_varnames, *code.co_cellvars}
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            names |= _names_in(inner)
    return names


check()


def to_steps(seconds: float) -> float:
    """Round to 2**-20 s, about a microsecond.

    Sums of such numbers are exact, in whatever order the figures of dead workers are added: a sum
    that falls by its last digit would look like a restart.
    """
    return round(seconds * 1_048_576) / 1_048_576


class PlainCounter(Counter):
    """A counter whose labels are known to be set and whose amounts not to be negative."""

    def inc(self, amount: float = 1, exemplar: dict[str, str] | None = None) -> None:
        """Add to it."""
        self._value.inc(amount)


class WeightedHistogram(Histogram):
    """A histogram that takes many equal observations at the price of one."""

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:
        """Observe one amount."""
        self.observe_many(amount, 1)

    def observe_many(self, amount: float, count: int) -> None:
        """Observe `amount` `count` times."""
        self.observe_all([(amount, count)])

    def observe_all(self, observed: Iterable[tuple[float, int]]) -> None:
        """Observe many amounts, each so many times; a negative one (clocks differ) counts as zero."""
        total = 0.0
        buckets: dict[int, int] = {}
        for exact, count in observed:
            amount = to_steps(max(exact, 0.0))
            total += amount * count
            place = bisect.bisect_left(self._upper_bounds, amount)
            buckets[place] = buckets.get(place, 0) + count
        if buckets:
            self._sum.inc(total)
        for place, count in buckets.items():
            self._buckets[place].inc(count)


def process_name() -> str:
    """Name this process as no other is named until the machine restarts: `<pid>-<start time>`."""
    try:
        stat = Path("/proc/self/stat").read_text("ascii", "replace")
    except OSError:
        return str(os.getpid())
    # The second field, the command in brackets, may hold blanks and brackets itself.
    return f"{os.getpid()}-{stat.rpartition(')')[2].split()[19]}"


_mmaped_dict: Any = MmapedDict  # the library leaves it untyped

_FIRST_SIZE = 64 * 1024
_ENTRY = 32
"""Bytes that an entry of a file takes at most beside its key."""


class _KeptDict(_mmaped_dict):  # type: ignore[misc]
    """A file of figures that can be put back when it was removed.

    It has all of its memory from the start: to write to a map of what is not there kills (SIGBUS).
    """

    opened: ClassVar[list[_KeptDict]] = []
    _f: Any
    _m: Any
    _fname: str
    _capacity: int
    _used: int

    def __init__(self, filename: str, read_mode: bool = False) -> None:
        if not read_mode:
            with Path(filename).open("ab") as file:
                os.posix_fallocate(file.fileno(), 0, _FIRST_SIZE)
        super().__init__(filename, read_mode)
        if not read_mode:
            self.opened.append(self)

    def _init_value(self, key: str) -> None:
        if self._used + len(key.encode()) + _ENTRY > self._capacity:
            os.posix_fallocate(self._f.fileno(), 0, 2 * self._capacity)  # the library doubles it
        super()._init_value(key)

    def close(self) -> None:
        """Close the file."""
        super().close()
        if self in self.opened:
            self.opened.remove(self)

    def restore(self) -> bool:
        """Write the file anew with all figures, if it is gone."""
        if os.path.exists(self._fname):  # noqa: PTH110 (every two seconds)
            return False
        path = Path(self._fname)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = path.with_suffix(".new")
        file = temporary.open("w+b")
        os.posix_fallocate(file.fileno(), 0, self._capacity)
        shown = mmap.mmap(file.fileno(), self._capacity)
        shown[:] = self._m[:]
        temporary.replace(path)
        self._m.close()
        self._f.close()
        self._f, self._m = file, shown
        return True


def files_are_there() -> bool:
    """Whether the files of this process are where a scrape looks for them."""
    return all(os.path.exists(kept._fname) for kept in _KeptDict.opened)  # noqa: PTH110 (every two seconds)


def restore_files() -> bool:
    """Put back files of this process that were removed; False when there were none."""
    return sum(kept.restore() for kept in _KeptDict.opened) > 0


class _ProcessName:
    """`process_name` of this process, looked up once after each fork.

    prometheus_client asks for it at every increment.
    """

    def __init__(self) -> None:
        self.known = ""
        """The name; empty after a fork, until it is asked for."""
        os.register_at_fork(after_in_child=self._forget)

    def __call__(self) -> str:
        if not self.known:
            self.known = process_name()
        return self.known

    def _forget(self) -> None:
        self.known = ""


@functools.cache
def use_process_files() -> None:
    """Make metrics that are created from now on keep their values in files of this process.

    The files are named by `process_name` instead of the bare pid, which the kernel gives
    away again: the figures of a dead worker must not become those of a stranger.
    """
    library: Any = values
    library.MmapedDict = _KeptDict
    name = _ProcessName()
    library.ValueClass = _counting_fast(library.MultiProcessValue(name), name)


def _counting_fast(kind: Any, name: _ProcessName) -> Any:
    """The library's class of values, with changes that cost a third.

    Every connection and every publish counts several times.
    """
    lock, pack = threading.Lock(), struct.Struct("dd").pack

    class Value(kind):  # type: ignore[misc]
        """A value in the file of this process."""

        _value: float
        _timestamp: float | None

        def inc(self, amount: float) -> None:
            """Add to it."""
            if not name.known:  # a fork: the library begins new files
                super().inc(amount)
                return
            with lock:
                value = self._value = self._value + amount
                # `_show`, without another call: each publish counts eight times.
                file = self._file
                at = file._positions[self._key]
                file._m[at : at + 16] = pack(value, 0.0)

        def set(self, value: float, timestamp: float | None = None) -> None:
            """Replace it."""
            if not name.known or timestamp:
                super().set(value, timestamp)
                return
            if value == self._value and not self._timestamp:
                return  # most gauges are set once a second, to what they are
            with lock:
                self._value, self._timestamp = value, 0.0
                self._show()

        def _show(self) -> None:
            file = self._file
            at = file._positions[self._key]
            # One copy: `pack_into` writes zeros first, which another process may read.
            file._m[at : at + 16] = pack(self._value, 0.0)

    return Value
