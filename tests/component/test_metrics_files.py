"""Joining the metrics of processes, with real ones that count and are killed."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.metrics import Metrics
from app.prometheus_private import process_name
from workers.shared import metrics_files
from workers.shared.metrics_files import MetricsFiles
from workers.shared.processes import start_time


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def fork() -> Iterator[Callable[[Callable[[], None]], int]]:
    """Run a function in a child process; the children that are left are killed in the end."""
    children: list[int] = []

    def start(work: Callable[[], None]) -> int:
        pid = os.fork()
        if pid == 0:
            try:
                work()
                os._exit(0)
            finally:
                os._exit(1)
        children.append(pid)
        return pid

    yield start
    for pid in children:
        if start_time(pid):
            kill(pid)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def count_and_exit(fork: Callable[[Callable[[], None]], int]) -> None:
    """Run a process that delivers 3 messages in 0.2 s each, and ends."""

    def work() -> None:
        metrics = Metrics(["status"])
        metrics.delivered["status"].inc(3)
        metrics.delivery_latency.observe_many(0.2, 3)
        metrics.subscriptions["status"].set(3)

    assert os.waitpid(fork(work), 0)[1] == 0


class Dead:
    """Leaves the files of any number of processes that have counted and ended, from those of one."""

    def __init__(self, fork: Callable[[Callable[[], None]], int], directory: Path) -> None:
        count_and_exit(fork)
        self._directory = directory
        self._files = [(path.name, path.read_bytes()) for path in directory.glob("*.db")]
        assert self._files
        self._born = 1  # the first jiffies of the machine: no process that lives has begun then
        for name, _ in self._files:
            (directory / name).unlink()

    def leave(self) -> None:
        self._born += 1
        for name, content in self._files:
            before, _, _ = name.rpartition("-")
            (self._directory / f"{before}-{self._born}.db").write_bytes(content)


def value(files: MetricsFiles, name: str, **labels: str) -> float | None:
    for family in files.collect():
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return sample.value
    return None


DELIVERED = "realtime_messages_delivered_total"
BUCKET = "realtime_delivery_latency_seconds_bucket"


@pytest.mark.no_cover
def test_totals_never_fall_and_files_do_not_pile_up(
    directory: Path, fork: Callable[[Callable[[], None]], int]
) -> None:
    generations = 50
    files = MetricsFiles(directory)

    def work(ready: int) -> Callable[[], None]:
        def count_for_ever() -> None:
            metrics = Metrics(["status"])
            metrics.delivered["status"].inc(2)
            metrics.delivery_latency.observe_many(0.2, 5)
            metrics.subscriptions["status"].set(1)
            os.write(ready, b".")
            while True:
                metrics.received_bytes.inc(7)

        return count_for_ever

    received = 0.0
    most_files = 0
    for generation in range(1, generations + 1):
        readable, writable = os.pipe()
        pid = fork(work(writable))
        os.close(writable)
        assert os.read(readable, 1) == b"."
        os.close(readable)
        alive = value(files, "realtime_received_bytes_total")
        assert value(files, "realtime_subscriptions", type="status") == 1
        kill(pid)
        dead = value(files, "realtime_received_bytes_total")
        assert alive is not None
        assert dead is not None
        assert received <= alive <= dead
        assert dead % 7 == 0
        received = dead
        assert value(files, DELIVERED, type="status") == 2 * generation
        assert value(files, BUCKET, le="0.25") == 5 * generation
        assert value(files, BUCKET, le="0.1") == 0
        assert value(files, "realtime_delivery_latency_seconds_sum") == pytest.approx(generation)
        assert value(files, "realtime_subscriptions", type="status") is None
        most_files = max(most_files, len(list(directory.iterdir())))
    assert received > 0
    assert most_files <= 3  # the lock and one folded file of each kind


@pytest.mark.no_cover
@pytest.mark.parametrize("kind", ["unlink", "replace"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_while_folding_counts_nothing_twice(
    directory: Path,
    fork: Callable[[Callable[[], None]], int],
    kind: str,
    when: str,
) -> None:
    """Folding is killed at its first, second, ... such call until it comes through."""
    files = MetricsFiles(directory)
    dead = Dead(fork, directory)
    expected = 0

    def fold_and_die(at: int) -> Callable[[], None]:
        def work() -> None:
            original = getattr(Path, kind)
            calls = 0

            def deadly(*args: object, **options: object) -> object:
                nonlocal calls
                calls += 1
                if calls == at and when == "before":
                    os.kill(os.getpid(), signal.SIGKILL)
                result = original(*args, **options)
                if calls == at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result

            setattr(Path, kind, deadly)
            files.fold()

        return work

    for _ in range(2):  # the second time there are folded files already
        at = 0
        while True:
            at += 1
            for _ in range(3):
                dead.leave()
                expected += 3
            status = os.waitpid(fork(fold_and_die(at)), 0)[1]
            if status == 0:
                break
            assert os.WTERMSIG(status) == signal.SIGKILL
            # The next one to fold has more to do than what was left, and may die as well.
            dead.leave()
            expected += 3
            os.waitpid(fork(fold_and_die(at)), 0)
            assert value(files, DELIVERED, type="status") == expected
            assert value(files, BUCKET, le="+Inf") == expected
        assert at > 2
        assert value(files, DELIVERED, type="status") == expected
    assert {path.name for path in directory.iterdir()} == {
        "lock",
        "counter_folded.db",
        "histogram_folded.db",
    }


def test_without_room_the_files_of_dead_processes_are_counted_as_they_are(
    directory: Path,
    fork: Callable[[Callable[[], None]], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def is_full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no room")

    files = MetricsFiles(directory)
    count_and_exit(fork)
    with monkeypatch.context() as full:
        full.setattr(os, "posix_fallocate", is_full)
        assert value(files, DELIVERED, type="status") == 3
        assert value(files, "realtime_subscriptions", type="status") is None
    assert value(files, DELIVERED, type="status") == 3
    assert {path.name for path in directory.glob("counter*")} == {"counter_folded.db"}


def test_counts_are_those_of_dead_and_living_processes(
    directory: Path, fork: Callable[[Callable[[], None]], int]
) -> None:
    count_and_exit(fork)
    metrics = Metrics(["status"])
    metrics.delivered["status"].inc(4)
    metrics.delivery_latency.observe_many(0.2, 4)
    counts = MetricsFiles(directory).counts()
    assert sum(count.value for count in counts if count.name == DELIVERED) == 7
    by_bound = {0.1: 0.0, 0.25: 0.0, 0.5: 0.0}
    for name, bound, value in counts:
        if name == BUCKET and bound in by_bound:
            by_bound[bound] += value
    assert by_bound == {0.1: 0, 0.25: 7, 0.5: 0}
    assert not any(count.name == "realtime_subscriptions" for count in counts)


def test_files_of_living_processes_stay(
    directory: Path, fork: Callable[[Callable[[], None]], int]
) -> None:
    count_and_exit(fork)
    files = MetricsFiles(directory, alive=lambda _: True)
    before = sorted(directory.iterdir())
    assert files.fold() == 0
    assert [path for path in sorted(directory.iterdir()) if path.name != "lock"] == before
    assert value(files, DELIVERED, type="status") == 3


def test_the_name_of_a_process_is_more_than_its_pid() -> None:
    own = process_name()
    assert metrics_files.is_alive(own)
    assert not metrics_files.is_alive(own + "0")
    assert metrics_files.is_alive(own.partition("-")[0])
    assert not metrics_files.is_alive("nonsense")


def test_unfinished_and_damaged_files_of_dead_processes_are_removed(
    directory: Path,
    fork: Callable[[Callable[[], None]], int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    count_and_exit(fork)
    (directory / "counter_1-1.db").touch()
    (directory / "histogram_1-1.db").write_bytes(b"\xff\x0f\0\0" + b"\1" * 96)
    files = MetricsFiles(directory)
    files.fold()
    assert len(list(directory.iterdir())) == 3
    assert value(files, DELIVERED, type="status") == 3
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_new_file_without_a_size_is_left_alone(directory: Path) -> None:
    (directory / f"counter_{process_name()}.db").touch()
    files = MetricsFiles(directory)
    assert files.collect() == []
    assert (directory / f"counter_{process_name()}.db").exists()


def test_one_at_a_time_even_between_threads(
    directory: Path,
    fork: Callable[[Callable[[], None]], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    count_and_exit(fork)
    inside, leave = threading.Event(), threading.Event()

    def alive(process: str) -> bool:
        inside.set()
        leave.wait(10)
        return False

    slow = threading.Thread(target=MetricsFiles(directory, alive).fold)
    slow.start()
    assert inside.wait(10)
    monkeypatch.setattr(metrics_files, "LOCK_WAIT", 0.05)
    files = MetricsFiles(directory)
    with pytest.raises(TimeoutError):
        files.collect()
    leave.set()
    slow.join()
    assert value(files, DELIVERED, type="status") == 3


@pytest.mark.parametrize(
    "content", [b"junk", b"\xff" * 5000, b"\x20\x00\x00\x00\x00\x00\x00\x00" + b"\xff" * 24]
)
@pytest.mark.parametrize(
    "name", ["counter_1-1.db", "counter_folded.db", "histogram_x.db", "x_y.db"]
)
def test_files_that_no_process_wrote_so_cost_nothing_else(
    directory: Path, fork: Callable[[Callable[[], None]], int], content: bytes, name: str
) -> None:
    count_and_exit(fork)
    (directory / name).write_bytes(content)
    files = MetricsFiles(directory)
    for _ in range(2):
        counts = [count.value for count in files.counts() if count.name == DELIVERED]
        assert sum(counts) in (0, 3)
        found = {
            sample.name: sample.value for family in files.collect() for sample in family.samples
        }
    assert found.get("realtime_messages_delivered_total", 0) in (0, 3)
    count_and_exit(fork)
    total = sum(
        sample.value
        for family in files.collect()
        for sample in family.samples
        if sample.name == "realtime_messages_delivered_total"
    )
    assert total >= 3
