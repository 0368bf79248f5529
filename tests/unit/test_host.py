"""Sampling the machine, and containers as trees of cgroup files."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from app import cgroups
from app.setting_values import worker_count
from workers.leader.host import Headroom, HostSampler

MB = 2**20


class Container:
    """A file tree like that which a container sees, and a clock."""

    def __init__(self, root: Path, own: str = "/") -> None:
        self.root = root
        self.now = 1000.0
        mount = root / "sys/fs/cgroup"
        self.group = mount / own.lstrip("/")
        self.group.mkdir(parents=True)
        (mount / "cgroup.controllers").write_text("cpu memory\n")
        (root / "proc/self").mkdir(parents=True)
        (root / "proc/self/cgroup").write_text(f"1:name=systemd:/x\n0::{own}\n")

    def sampler(self) -> HostSampler:
        return HostSampler(self.root, self.root, lambda: self.now)

    def use(self, seconds: float, group: Path | None = None) -> None:
        text = f"usage_usec {int(seconds * 1e6)}\nuser_usec 1\nsystem_usec 1\n"
        ((group or self.group) / "cpu.stat").write_text(text)

    def limit_cpu(self, text: str) -> None:
        (self.group / "cpu.max").write_text(text + "\n")

    def hold(self, used: int, limit: str, inactive: int = 0) -> None:
        (self.group / "memory.max").write_text(limit + "\n")
        (self.group / "memory.current").write_text(f"{used}\n")
        (self.group / "memory.stat").write_text(f"anon 1\ninactive_file {inactive}\n")


@pytest.fixture
def container(tmp_path: Path) -> Container:
    return Container(tmp_path)


def test_the_machine_itself(tmp_path: Path) -> None:
    sampler = HostSampler(tmp_path, root=tmp_path / "nothing")
    busy_until = time.process_time() + 0.05
    while time.process_time() < busy_until:
        pass
    sample = sampler.sample()
    assert 0 < sample.cpu_percent <= 100
    assert sample.cpus == len(os.sched_getaffinity(0))
    assert sample.memory_total == psutil.virtual_memory().total
    assert sample.memory_percent == pytest.approx(psutil.virtual_memory().percent, abs=5)
    assert sample.disk_total == psutil.disk_usage(str(tmp_path)).total
    assert 0 < sample.disk_percent <= 100
    assert sample.uptime > 0
    assert len(sample.load) == 3


def test_cores_that_are_not_ours_do_not_count(
    container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by `--cpuset-cpus`, or by `taskset`."""
    busy = [0.0, 0.0, 0.0, 0.0]

    def times(percpu: bool) -> list[SimpleNamespace]:
        assert percpu
        others = {"nice": 0.0, "system": 0.0, "irq": 0.0, "softirq": 0.0}
        return [SimpleNamespace(user=seconds, **others) for seconds in busy]

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 3})
    monkeypatch.setattr(psutil, "cpu_times", times)
    sampler = container.sampler()
    container.now += 10
    busy[:] = [10.0, 9.0, 10.0, 8.0]
    sample = sampler.sample()
    assert (sample.cpus, sample.cpu_percent) == (2, 85.0)
    # Fewer lines than the highest number: some cores are offline.
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 5})
    container.now += 10
    busy[:] = [11.0, 10.0, 10.0, 9.0]
    assert container.sampler().sample().cpus == 2


def test_a_container_is_measured_against_its_limits(container: Container) -> None:
    container.limit_cpu("50000 100000")
    container.use(10.0)
    container.hold(400 * MB, str(512 * MB), inactive=144 * MB)
    sampler = container.sampler()
    container.use(10.25)
    container.now += 2
    sample = sampler.sample()
    assert sample.cpus == 0.5
    assert sample.cpu_percent == 25.0  # a quarter of a second of the second that two seconds grant
    assert sample.memory_used == 256 * MB
    assert sample.memory_total == 512 * MB
    assert sample.memory_percent == 50.0


def test_bursts_above_the_quota_are_a_hundred_percent(container: Container) -> None:
    container.limit_cpu("50000 100000")
    container.use(0)
    sampler = container.sampler()
    container.use(5)
    container.now += 2
    assert sampler.sample().cpu_percent == 100.0


def test_samples_without_time_between_repeat_the_figure(container: Container) -> None:
    container.limit_cpu("50000 100000")
    container.use(0)
    sampler = container.sampler()
    container.use(0.5)
    container.now += 2
    assert sampler.sample().cpu_percent == 50.0
    assert sampler.sample().cpu_percent == 50.0


def test_a_container_without_limits_is_the_machine(container: Container) -> None:
    container.limit_cpu("max 100000")
    container.use(10.0)
    container.hold(400 * MB, "max")
    sample = container.sampler().sample()
    assert sample.cpus == len(os.sched_getaffinity(0))
    assert sample.memory_total == psutil.virtual_memory().total


def test_limits_beyond_the_machine_do_not_count(container: Container) -> None:
    container.limit_cpu("99900000 100000")
    container.use(10.0)
    container.hold(400 * MB, str(2**60))
    sample = container.sampler().sample()
    assert sample.cpus == len(os.sched_getaffinity(0))
    assert sample.memory_total == psutil.virtual_memory().total


def test_the_tightest_limit_above_the_own_group_counts(tmp_path: Path) -> None:
    container = Container(tmp_path, own="/service/worker")
    container.hold(100 * MB, str(1000 * MB))
    container.limit_cpu("max 100000")
    above = container.group.parent
    (above / "memory.max").write_text(str(500 * MB))
    (above / "memory.current").write_text(str(250 * MB))
    (above / "cpu.max").write_text("20000 100000")
    container.use(0, above)
    sampler = container.sampler()
    container.use(0.2, above)
    container.now += 2
    sample = sampler.sample()
    assert (sample.memory_used, sample.memory_total) == (250 * MB, 500 * MB)
    assert sample.cpus == 0.2
    assert sample.cpu_percent == 50.0


def test_a_looser_limit_above_does_not_count(tmp_path: Path) -> None:
    container = Container(tmp_path, own="/service/worker")
    container.limit_cpu("20000 100000")
    container.use(0)
    container.hold(100 * MB, str(200 * MB))
    above = container.group.parent
    (above / "cpu.max").write_text("50000 100000")
    (above / "memory.max").write_text(str(500 * MB))
    (above / "memory.current").write_text(str(450 * MB))
    container.use(0, above)
    sample = container.sampler().sample()
    assert sample.cpus == 0.2
    assert (sample.memory_used, sample.memory_total) == (100 * MB, 200 * MB)


def test_a_path_of_the_host_means_the_mount(container: Container) -> None:
    """Without a namespace of its own, a container sees its group's path on the host."""
    (container.root / "proc/self/cgroup").write_text("0::/docker/0123456789abcdef\n")
    container.hold(100 * MB, str(200 * MB))
    assert container.sampler().sample().memory_percent == 50.0


def test_a_limit_that_changes_gives_no_nonsense(container: Container) -> None:
    container.limit_cpu("50000 100000")
    container.use(100.0)
    sampler = container.sampler()
    container.limit_cpu("100000 100000")
    container.use(103.0)
    container.now += 2
    assert sampler.sample().cpu_percent == 0.0
    container.use(104.0)
    container.now += 2
    assert sampler.sample().cpu_percent == 50.0


def test_more_reclaimable_than_used_is_nothing_used(container: Container) -> None:
    container.hold(10 * MB, str(100 * MB), inactive=20 * MB)
    assert container.sampler().sample().memory_used == 0


def test_pages_of_files_are_not_in_use(container: Container) -> None:
    """Whether they were used lately or not: the kernel takes them back."""
    container.hold(500 * MB, str(512 * MB))
    stat = f"anon 1\nactive_file {395 * MB}\ninactive_file {5 * MB}\n"
    (container.group / "memory.stat").write_text(stat)
    assert container.sampler().sample().memory_used == 100 * MB


def test_the_kernels_caches_of_names_are_not_in_use(container: Container) -> None:
    """A backup that looks at a million files leaves them in the container's account."""
    container.hold(500 * MB, str(512 * MB))
    stat = f"anon 1\ninactive_file {5 * MB}\nslab_reclaimable {395 * MB}\nslab {396 * MB}\n"
    (container.group / "memory.stat").write_text(stat)
    assert container.sampler().sample().memory_used == 100 * MB


class LegacyContainer:
    """A container with cgroup v1: a tree for each controller."""

    def __init__(self, root: Path, own: str = "/docker/0123") -> None:
        self.root = root
        self.now = 1000.0
        (root / "proc/self").mkdir(parents=True)
        lines = [
            f"{n}:{name}:{own}\n" for n, name in enumerate(("cpuset", "memory", "cpu,cpuacct"))
        ]
        (root / "proc/self/cgroup").write_text("".join([*lines, "0::/\n"]))
        self.group = {}
        for name in ("memory", "cpu", "cpuacct"):
            # A namespace of its own, or not: the limits are at the mount then.
            self.group[name] = root / "sys/fs/cgroup" / name
            self.group[name].mkdir(parents=True)

    def write(self, controller: str, **values: object) -> None:
        for name, value in values.items():
            (self.group[controller] / name.replace("__", ".")).write_text(f"{value}\n")

    def sampler(self) -> HostSampler:
        return HostSampler(self.root, self.root, lambda: self.now)


def test_limits_of_cgroup_v1(tmp_path: Path) -> None:
    container = LegacyContainer(tmp_path)
    container.write(
        "memory",
        memory__limit_in_bytes=512 * MB,
        memory__usage_in_bytes=400 * MB,
        memory__stat=f"total_active_file {100 * MB}\ntotal_inactive_file {44 * MB}",
    )
    container.write("cpu", cpu__cfs_quota_us=50_000, cpu__cfs_period_us=100_000)
    container.write("cpuacct", cpuacct__usage=10 * 10**9)
    sampler = container.sampler()
    container.write("cpuacct", cpuacct__usage=10 * 10**9 + 250_000_000)
    container.now += 2
    sample = sampler.sample()
    assert (sample.cpus, sample.cpu_percent) == (0.5, 25.0)
    assert (sample.memory_used, sample.memory_total) == (256 * MB, 512 * MB)


def test_cgroup_v1_without_limits_is_the_machine(tmp_path: Path) -> None:
    container = LegacyContainer(tmp_path)
    container.write("memory", memory__limit_in_bytes=2**63 - 4096, memory__usage_in_bytes=MB)
    container.write("cpu", cpu__cfs_quota_us=-1, cpu__cfs_period_us=100_000)
    sample = container.sampler().sample()
    assert sample.cpus == len(os.sched_getaffinity(0))
    assert sample.memory_total == psutil.virtual_memory().total


def mountinfo(root: Path, *lines: str) -> None:
    """What the kernel says of mounts: top and place, kind and options."""
    rows = []
    for number, line in enumerate(lines):
        top, place, kind, options = line.split()
        rows.append(
            f"{number} 1 0:{number} {top} {place} ro shared:1 - {kind} cgroup rw,{options}\n"
        )
    (root / "proc/self").mkdir(parents=True, exist_ok=True)
    (root / "proc/self/mountinfo").write_text(
        "".join(["1 0 8:1 / / rw - ext4 /dev/sda rw\n", *rows])
    )


def test_a_hierarchy_of_two_controllers_that_has_no_links(tmp_path: Path) -> None:
    """As where no runtime has made `cpu` a link to it."""
    for own in ("/", "/a b/unit"):
        root = tmp_path / str(len(own))
        mountinfo(root, "/ /sys/fs/cgroup/cpu,cpuacct cgroup cpu,cpuacct")
        (root / "proc/self/cgroup").write_text(f"\n4:cpuacct,cpu:{own}\n1:name=systemd:/x\n0::/\n")
        group = root / "sys/fs/cgroup/cpu,cpuacct" / own.lstrip("/")
        group.mkdir(parents=True)
        (group / "cpu.cfs_quota_us").write_text("150000\n")
        (group / "cpu.cfs_period_us").write_text("100000\n")
        (group / "cpuacct.usage").write_text("7000000000\n")
        assert cgroups.cpu_quota(root) == 1.5
        assert cgroups.cpu_groups(root)[0].used() == 7.0
        assert worker_count(root, 8) == (2, "a quota of 1.5 cores")


def test_a_group_below_that_of_the_container(tmp_path: Path) -> None:
    """The mount shows the container's group; the path of a group below is that of the host."""
    mountinfo(tmp_path, "/docker/01 /sys/fs/cgroup/memory cgroup memory")
    (tmp_path / "proc/self/cgroup").write_text("3:memory:/docker/01/inner\n")
    mount = tmp_path / "sys/fs/cgroup/memory"
    (mount / "inner").mkdir(parents=True)
    (mount / "memory.limit_in_bytes").write_text(str(500 * MB))
    (mount / "inner/memory.limit_in_bytes").write_text(str(200 * MB))
    assert cgroups.memory_limit(tmp_path) == 200 * MB
    # Another one, whose name begins alike.
    (tmp_path / "proc/self/cgroup").write_text("3:memory:/docker/012\n")
    assert cgroups.memory_limit(tmp_path) == 500 * MB


def test_cgroup_v2_beside_v1_has_some_of_the_controllers(tmp_path: Path) -> None:
    mountinfo(
        tmp_path,
        "/ /sys/fs/cgroup/cpu cgroup cpu",
        "/ /sys/fs/cgroup/unified cgroup2 nsdelegate",
        r"/ /sys/fs/cgroup/name\040d cgroup name=d",
    )
    (tmp_path / "proc/self/cgroup").write_text("2:cpu:/s\n1:name=d:/\n0::/s\n")
    legacy, unified = (tmp_path / "sys/fs/cgroup" / name for name in ("cpu/s", "unified/s"))
    for group in (legacy, unified):
        group.mkdir(parents=True)
    (unified.parent / "cgroup.controllers").write_text("memory pids\n")
    (unified / "memory.max").write_text("max\n")
    (unified / "memory.high").write_text(f"{300 * MB}\n")
    (legacy / "cpu.cfs_quota_us").write_text("25000")
    (legacy / "cpu.cfs_period_us").write_text("50000")
    assert cgroups.memory_limit(tmp_path) == 300 * MB
    assert cgroups.cpu_quota(tmp_path) == 0.5


def test_what_slows_a_group_down_counts_as_its_limit(container: Container) -> None:
    container.hold(100 * MB, str(400 * MB))
    for high, limit in (("max", 400), (str(200 * MB), 200), (str(500 * MB), 400)):
        (container.group / "memory.high").write_text(high)
        assert container.sampler().sample().memory_total == limit * MB


def test_names_of_files_that_the_kernel_keeps_are_not_in_use(container: Container) -> None:
    container.hold(300 * MB, str(512 * MB))
    stat = f"anon 1\nactive_file {20 * MB}\nslab_reclaimable {180 * MB}\nslab_unreclaimable 5\n"
    (container.group / "memory.stat").write_text(stat)
    assert container.sampler().sample().memory_used == 100 * MB


@pytest.mark.parametrize("text", ["", "\n", "nonsense\n", "0::\n", "0::/gone (deleted)\n", "a:b\n"])
def test_groups_that_are_not_understood_are_the_machine(tmp_path: Path, text: str) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(text)
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cgroup.controllers").write_text("")
    assert worker_count(tmp_path, 8) == (8, "8 cores")
    assert HostSampler(tmp_path, tmp_path).sample().cpus == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("cores", "quota", "memory", "count", "reason"),
    [
        (8, None, None, 8, "8 cores"),
        (1, None, None, 2, "1 cores, and at least 2"),
        (64, "100000 100000", None, 2, "a quota of 1 cores, and at least 2"),
        (64, "250000 100000", None, 3, "a quota of 2.5 cores"),
        (64, "max 100000", 512 * MB, 5, "a memory limit of 512 MB"),
        (64, "400000 100000", 512 * MB, 4, "a quota of 4 cores"),
        (128, None, None, 64, "128 cores"),
    ],
)
def test_workers_for_a_machine(
    container: Container, cores: int, quota: str | None, memory: int | None, count: int, reason: str
) -> None:
    if quota is not None:
        container.limit_cpu(quota)
    if memory is not None:
        container.hold(0, str(memory))
    assert worker_count(container.root, cores) == (count, reason)


def test_headroom_looks_once_a_second(container: Container) -> None:
    container.hold(94 * MB, str(100 * MB))
    headroom = Headroom(container.sampler(), clock=lambda: container.now)
    assert headroom()
    container.hold(95 * MB, str(100 * MB))
    container.now += 0.9
    assert headroom()
    container.now += 0.1
    assert not headroom()
    container.hold(50 * MB, str(100 * MB))
    container.now += 1
    assert headroom()
