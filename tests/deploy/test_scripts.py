"""deploy-websocket.sh, rollback.sh and verify-deployment.sh, for real and in their failures."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest

from scripts import backup, release
from scripts.healthy import NO_WORKER
from tests.support import REPO
from tests.support.caddy import Caddy, address
from tests.support.copies import SCRIPTED, Copy, Done, Installed
from tests.support.plain import PlainClient
from tests.support.ports import free_port
from tests.support.service import TOKEN
from tests.support.waiting import until, until_now
from workers.shared import paths
from workers.shared.slots import LEAVING, PID, READY, STARTING, SlotTable

pytestmark = pytest.mark.timeout(180)

SCRIPTS = ("deploy-websocket.sh", "rollback.sh", "verify-deployment.sh")


@pytest.fixture(scope="module")
def installed() -> Iterator[Installed]:
    """A running service that its scripts leave intact, failures included."""
    service = Installed(allow_traceback=True)
    service.start()
    yield service
    service.stop()


@pytest.fixture
def deployed(installed: Installed) -> None:
    """That service has been deployed, for this test or one before."""
    if not (installed.backups / "last-good.tar.gz").exists():
        done = installed.run("deploy-websocket.sh")
        assert done.code == 0, done


# What all of them have


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_names_every_exit_code_and_wrong_usage_is_one(script: str) -> None:
    helped = subprocess.run([REPO / script, "--help"], capture_output=True, text=True)
    assert helped.returncode == 0
    for word in ("usage:", "--dry-run", "--json", "exit codes:", "64"):
        assert word in helped.stdout
    wrong = subprocess.run([REPO / script, "--no-such-option"], capture_output=True, text=True)
    assert wrong.returncode == 64


@pytest.mark.parametrize(
    ("script", "options"),
    [
        ("deploy-websocket.sh", ["--docker", "--host"]),
        ("deploy-websocket.sh", ["--timeout", "08"]),
        ("deploy-websocket.sh", ["--min-free", "99999999999999999999"]),
        ("deploy-websocket.sh", ["--keep", "0"]),
        ("rollback.sh", ["--data-only", "--release-only", "x"]),
        ("verify-deployment.sh", ["--days", "09"]),
        ("scripts/logs.sh", ["--lines", "010"]),
    ],
)
def test_numbers_and_options_that_cannot_be_meant(script: str, options: list[str]) -> None:
    dry = [] if script == "scripts/logs.sh" else ["--dry-run"]
    done = subprocess.run([REPO / script, *dry, *options], capture_output=True, text=True)
    assert done.returncode == 64, done


def test_scripts_take_the_settings_that_systemd_gave_the_service(tmp_path: Path) -> None:
    """Settings alone, and none that the operator has set."""
    given = tmp_path / "environ"
    given.write_bytes(b"DATA_DIR=/var/lib/x\0BIND=127.0.0.1:9\0PATH=/nowhere\0LOG_FORMAT=json\0")
    command = (
        'name=test; source scripts/common.sh; find_python; adopt_environment "$0";'
        'echo "$DATA_DIR $BIND $LOG_FORMAT"; [[ $PATH != /nowhere ]]'
    )
    done = subprocess.run(
        ["bash", "-c", command, str(given)],
        cwd=REPO,
        env={"PATH": os.environ["PATH"], "PYTHON": sys.executable, "BIND": "127.0.0.1:1"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "/var/lib/x 127.0.0.1:1 json\n"), done


# scripts/logs.sh


def logs(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [REPO / "scripts/logs.sh", "--no-follow", *arguments],
        env=dict(os.environ) | {"PYTHON": sys.executable} | environ,
        capture_output=True,
        text=True,
    )


def test_the_log_of_a_host(tmp_path: Path) -> None:
    assert logs(DATA_DIR=str(tmp_path)).returncode == 66
    (tmp_path / "service.log").write_text("one\ntwo\nthree\n")
    done = logs("--lines", "2", DATA_DIR=str(tmp_path))
    assert (done.returncode, done.stdout) == (0, "two\nthree\n")


def test_wrong_usage_of_logs() -> None:
    helped = subprocess.run([REPO / "scripts/logs.sh", "--help"], capture_output=True, text=True)
    assert "exit codes:" in helped.stdout
    assert logs("--lines", "some").returncode == 64
    assert logs("--no-such-option").returncode == 64


# verify-deployment.sh


def test_verify_passes_a_good_service(installed: Installed) -> None:
    done = installed.run("verify-deployment.sh", installed.base, "--json")
    assert done.code == 0, done
    states = {row["check"]: row["state"] for row in done.json["checks"]}
    assert states == {
        "http": "ok",
        "endpoints": "ok",
        "handshake": "ok",
        "containers": "ok",
        "caddy": "ok",
        "ports": "ok",
        "certificate": "skipped",
    }
    strict = installed.run("verify-deployment.sh", installed.base, "--no-skips")
    assert strict.code == 17


def test_a_process_that_is_stopped_is_named(installed: Installed) -> None:
    """The others go on answering, but without the master no worker is replaced or renewed."""
    master = int(paths.pid_files(installed.data_dir).first.read_text())
    worker = psutil.Process(master).children()[0].pid
    for pid in (worker, master):
        os.kill(pid, signal.SIGSTOP)
        try:
            done = installed.run("verify-deployment.sh", installed.base, "--only", "containers")
            assert done.code == 14, done
            assert f"kill -CONT continues: {pid}" in done.out
        finally:
            os.kill(pid, signal.SIGCONT)


def test_verify_passes_all_seven_over_wss(installed: Installed) -> None:
    with Caddy(address(installed)) as caddy:
        options = (caddy.api, "--connect", "127.0.0.1", "--ca", str(caddy.root_certificate))
        done = installed.run("verify-deployment.sh", *options, "--days", "0", "--json")
        assert done.code == 0, done
        assert {row["state"] for row in done.json["checks"]} == {"ok"}
        # Caddy's own authority signs for twelve hours.
        late = installed.run("verify-deployment.sh", *options, "--only", "certificate")
        assert late.code == 17, late
        unknown = installed.run(
            "verify-deployment.sh", caddy.api, "--connect", "127.0.0.1", "--only", "certificate"
        )
        assert unknown.code == 17, "an authority that no client trusts"


def test_verify_fails_if_the_metrics_are_public(installed: Installed, tmp_path: Path) -> None:
    text = (REPO / "Caddyfile").read_text().replace("@private path", "@private path /nothing #")
    leaky = tmp_path / "Caddyfile"
    leaky.write_text(text)
    with Caddy(address(installed)) as caddy:
        done = caddy.command(
            *("reload", "--config", str(leaky), "--adapter", "caddyfile"),
            *("--address", caddy.environ["CADDY_ADMIN"]),
        )
        assert done.returncode == 0, done.stderr
        options = (caddy.api, "--connect", "127.0.0.1", "--ca", str(caddy.root_certificate))
        got = installed.run("verify-deployment.sh", *options, "--only", "caddy")
        assert got.code == 15
        assert "public" in got.out


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--only", "http", "--connect", "127.0.0.1", f"http://x:{free_port()}"], 11),
        (["--only", "endpoints", f"http://127.0.0.1:{free_port()}"], 12),
        (["--only", "ports,http", "--ports", f"{free_port()}"], 16),
        (["--only", "handshake", "--origin", "https://evil.example"], 13),
        (["--only", "nothing"], 64),
        (["--days", "many"], 64),
        (["ftp://127.0.0.1"], 64),
    ],
)
def test_verify_fails_with_the_number_of_the_check(
    installed: Installed, options: list[str], code: int
) -> None:
    base = [] if any("://" in one and "evil" not in one for one in options) else [installed.base]
    done = installed.run("verify-deployment.sh", *base, *options)
    assert done.code == code, done


def test_verify_says_why_the_page_is_refused(installed: Installed) -> None:
    options = ("--only", "handshake", "--origin", "https://evil.example")
    done = installed.run("verify-deployment.sh", installed.base, *options)
    assert "answered 403 FORBIDDEN: This origin is not allowed; see ALLOWED_ORIGINS." in done.out


def test_verify_fails_without_a_message(installed: Installed) -> None:
    """There is no publisher here, and without a token the check publishes nothing."""
    environ = {"PUBLISH_TOKEN": "wrong"}
    done = installed.run(
        "verify-deployment.sh", installed.base, "--only", "handshake", "--wait", "1", **environ
    )
    assert done.code == 13, done
    assert "401" in done.out or "403" in done.out


async def test_a_service_that_is_full_is_well() -> None:
    """Its refusal is right; a deployment over it must not be put back."""
    service = Installed(MAX_TOTAL_CONNECTIONS=1)
    service.start()
    try:
        client = await PlainClient.open(service, types="")
        options = ("--only", "handshake", "--wait", "1")
        done = await asyncio.to_thread(
            service.run, "verify-deployment.sh", service.base, *options, PUBLISH_TOKEN=TOKEN
        )
        assert done.code == 0, done
        assert "the service is full (MAX_CONNECTIONS_EXCEEDED); message system" in done.out
        deployed = await asyncio.to_thread(service.run, "deploy-websocket.sh", "--json")
        assert deployed.code == 0, deployed
        assert (deployed.json["handed_over"], deployed.json["noticed"]) == (1, 0)
        await client.close()
    finally:
        service.stop()


def test_verify_fails_if_caddy_finds_a_fault(installed: Installed) -> None:
    good = installed.read("Caddyfile")
    (installed.root / "Caddyfile").write_text(good + "\nnonsense {\n")
    try:
        done = installed.run("verify-deployment.sh", installed.base, "--only", "caddy")
        assert done.code == 15, done
    finally:
        (installed.root / "Caddyfile").write_text(good)


def test_verify_fails_if_nothing_runs_here() -> None:
    service = Installed()
    try:
        done = service.run("verify-deployment.sh", service.base, "--json")
        assert done.code == 11
        failed = {row["check"] for row in done.json["checks"] if row["state"] == "failed"}
        assert {"http", "endpoints", "handshake", "containers", "ports"} <= failed
    finally:
        service.destroy()


# deploy-websocket.sh on a host, and rollback.sh


async def test_a_deployment_hands_clients_over(installed: Installed) -> None:
    clients = [await PlainClient.open(installed, types="status") for _ in range(10)]
    try:
        await _all_receive(installed, clients)
        done = await asyncio.to_thread(installed.run, "deploy-websocket.sh", "--json")
        assert done.code == 0, done
        report = done.json
        assert (report["handed_over"], report["noticed"]) == (10, 0)
        assert [row["step"] for row in report["steps"]] == [
            *("environment", "backup", "build", "preflight"),
            *("deploy", "health", "websocket", "report"),
        ]
        backup = installed.backups / report["backup"]
        assert json.loads((backup / "report.json").read_text()) == report
        assert (backup / "data/appendonlydir/appendonly.aof.manifest").is_file()
        assert backup.stat().st_mode & 0o077 == 0
        listed = await asyncio.to_thread(installed.run, "rollback.sh", "--list")
        assert f"{report['backup']}  complete" in listed.out
        await _all_receive(installed, clients)
    finally:
        await asyncio.gather(*(client.close() for client in clients))


@pytest.mark.parametrize(
    ("file", "old", "new", "code"),
    [
        pytest.param(
            *("app/main.py", "import asyncio", "import nothing_of_this_name", 13),
            id="it cannot be imported",
        ),
        pytest.param(
            *("workers/runtime.py", "async def create(", "async def create(nothing,", 15),
            id="no worker gets ready",
        ),
        pytest.param(
            *("app/http/routes.py", '"status": "ok" if healthy', '"status": "bad" if healthy', 16),
            id="it serves, but not well",
        ),
        pytest.param(
            "app/http/publishing.py",
            "context.writers.charge(writer, 1)",
            'raise _invalid("")',
            17,
            id="no client receives anything",
        ),
    ],
)
@pytest.mark.usefixtures("deployed")
async def test_a_bad_deployment_is_put_back(
    installed: Installed, file: str, old: str, new: str, code: int
) -> None:
    clients = [await PlainClient.open(installed, types="status") for _ in range(10)]
    try:
        good = installed.read(file)
        installed.change(file, old, new)
        done = await asyncio.to_thread(
            installed.run, "deploy-websocket.sh", "--json", "--timeout", "3"
        )
        assert done.code == code, done
        assert done.json["rolled_back"] is True
        assert installed.read(file) == good, f"{file} is not as it was"
        status = await installed.get("/status")
        assert status.body["status"] == "ok"
        await _all_receive(installed, clients)
    finally:
        await asyncio.gather(*(client.close() for client in clients))


async def _all_receive(installed: Installed, clients: list[PlainClient]) -> None:
    """None of the clients was closed, and each gets the next message."""
    sent = await installed.publish(data={"n": 1})
    await asyncio.gather(*(client.wait_seq("status", sent["seq"]) for client in clients))
    assert not any(client.socket.close_code for client in clients)


def test_the_newest_backup_stays_whatever_the_clock_says(installed: Installed) -> None:
    """Clocks are changed in autumn, or set back; and killed deployments leave parts of backups."""
    others = [installed.backups / f"29990101_00000{number}" for number in range(3)]
    part = installed.backups / ".20260101_000000.killed"
    for directory in (*others, part):
        directory.mkdir(parents=True)
    try:
        began = datetime.now(UTC).replace(microsecond=0)
        done = installed.run("deploy-websocket.sh", "--json", "--keep", "2", TZ="Etc/GMT-14")
        assert done.code == 0, done
        name = done.json["backup"]
        assert began <= datetime.strptime(f"{name}+0000", "%Y%m%d_%H%M%S%z") <= datetime.now(UTC)
        left = {path.name for path in installed.backups.iterdir() if path.is_dir()}
        assert left == {name, others[-1].name}
    finally:
        for directory in (*others, part):
            shutil.rmtree(directory, ignore_errors=True)


@pytest.mark.usefixtures("deployed")
async def test_an_interrupt_leaves_what_ran_before(installed: Installed) -> None:
    before = installed.read("app/__init__.py")
    lock, reloads = installed.backups / ".lock", 0
    moments: list[Callable[[str], bool]] = [
        lambda _: lock.exists(),
        lambda said: "backup       ok" in said,
        lambda said: "preflight    ok" in said,
        # New workers are on their way.
        lambda _: installed.log.count("Handling signal: hup") > reloads,
    ]
    clients = [await PlainClient.open(installed, types="status") for _ in range(10)]
    try:
        for moment in moments:
            lock.unlink()
            reloads = installed.log.count("Handling signal: hup")
            installed.version("9.9.9")
            done = await asyncio.to_thread(
                installed.interrupt_script,
                *("deploy-websocket.sh", "--json"),
                environ=installed.environ,
                when=moment,
            )
            assert done.code == 15, done
            assert "interrupted in the step" in done.err
            assert done.json["rolled_back"] is (installed.read("app/__init__.py") == before), done
            if done.json["rolled_back"]:
                status = await installed.get("/status")
                assert status.body["version"] != "9.9.9"
            await _all_receive(installed, clients)
    finally:
        await asyncio.gather(*(client.close() for client in clients))
        (installed.root / "app/__init__.py").write_text(before)


@pytest.mark.usefixtures("deployed")
async def test_an_end_without_a_result_leaves_what_ran_before(installed: Installed) -> None:
    """As where bash ends of itself, with a syntax error in a trap for instance."""
    before, script = installed.read("app/__init__.py"), installed.read("deploy-websocket.sh")
    installed.version("9.9.9")
    installed.change("deploy-websocket.sh", "\nstep=health\n", "\nstep=health\nexit 2\n")
    try:
        done = await asyncio.to_thread(installed.run, "deploy-websocket.sh", "--json")
        assert done.code == 15, done
        assert "ended without a result in the step health" in done.err
        assert done.json["rolled_back"] is True
        assert installed.read("app/__init__.py") == before
        status = await installed.get("/status")
        assert (status.body["status"], status.body["version"] != "9.9.9") == ("ok", True)
    finally:
        (installed.root / "deploy-websocket.sh").write_text(script)
        (installed.root / "app/__init__.py").write_text(before)


@pytest.mark.parametrize(
    ("options", "environ", "code"),
    [
        ([], {"MAX_TOTAL_CONNECTIONS": "many"}, 11),
        (["--docker"], {"PATH": "without docker"}, 11),
        ([], {"BACKUPS": "/proc/nowhere"}, 12),
        (["--no-backup", "--no-rollback", "--min-free", "999999999"], {}, 14),
        (["--keep", "few"], {}, 64),
    ],
)
def test_a_deployment_ends_where_a_step_fails(
    installed: Installed, tmp_path: Path, options: list[str], environ: dict[str, str], code: int
) -> None:
    before = installed.worker_pids()
    if "PATH" in environ:
        environ = {"PATH": str(_programs_without("docker", tmp_path))}
    done = installed.run("deploy-websocket.sh", *options, **environ)
    assert done.code == code, done
    assert installed.worker_pids() == before


def test_a_package_with_another_hash_is_not_installed(installed: Installed, tmp_path: Path) -> None:
    """What the index hands out is not what was tried: the service goes on as it is."""
    packages = tmp_path / "packages"
    packages.mkdir()
    with zipfile.ZipFile(packages / "yujian_probe-1.0-py3-none-any.whl", "w") as wheel:
        info = "yujian_probe-1.0.dist-info"
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: yujian-probe\nVersion: 1.0\n"
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    before, lock = installed.worker_pids(), installed.read("requirements.lock")
    other = hashlib.sha256(b"another file").hexdigest()
    (installed.root / "requirements.lock").write_text(
        f"yujian-probe==1.0 \\\n    --hash=sha256:{other}\n"
    )
    try:
        done = installed.run(
            "deploy-websocket.sh",
            "--no-backup",
            "--no-rollback",
            PIP_NO_INDEX="1",
            PIP_FIND_LINKS=str(packages),
        )
    finally:
        (installed.root / "requirements.lock").write_text(lock)
    assert done.code == 13, done
    assert other in done.err, "pip names the hash that it expected"
    assert installed.worker_pids() == before


def _programs_without(left_out: str, place: Path) -> Path:
    """A directory for PATH with what this machine has, except for programs with this in their name."""
    for directory in ("/usr/local/bin", "/usr/bin", "/bin"):
        for program in Path(directory).glob("*"):
            link = place / program.name
            if left_out not in program.name and not link.is_symlink():
                link.symlink_to(program)
    return place


@pytest.fixture
def of_another_user() -> Iterator[Callable[..., Done]]:
    """Runs a script of a copy whose backups another user has made."""
    with tempfile.TemporaryDirectory(prefix="yj-other-") as home:
        copy = Copy()
        copy.root = Path(home) / "yujian"
        copy.fill(SCRIPTED)
        # It is asked nothing before the backups are looked at.
        python = Path(home) / "python"
        python.write_text("#!/bin/sh\n")
        python.chmod(0o755)
        backups = copy.root / "backups"
        backups.mkdir()
        as_other: list[str] = []
        if os.geteuid():
            backups.chmod(0)
        else:
            backups.chmod(0o700)
            Path(home).chmod(0o755)
            as_other = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]

        def run(script: str, *arguments: str, owner: int | None = None, **environ: str) -> Done:
            if owner is not None and as_other:
                backups.chmod(0)
                os.chown(backups, owner, owner)
            done = subprocess.run(
                [*as_other, copy.root / script, *arguments],
                env={"PATH": os.environ["PATH"], "PYTHON": str(python), **environ},
                capture_output=True,
                text=True,
            )
            return Done(done.returncode, done.stdout, done.stderr)

        yield run
        backups.chmod(0o700)


def test_another_user_learns_whose_the_deployment_is(of_another_user: Callable[..., Done]) -> None:
    """Without the backups it is not known what is deployed: containers are not taken for a host."""
    for script, options, code in (
        ("deploy-websocket.sh", [], 11),
        ("deploy-websocket.sh", ["--dry-run"], 11),
        ("rollback.sh", ["--list"], 4),
        ("rollback.sh", ["20260101_000000"], 4),
    ):
        done = of_another_user(script, *options)
        assert done.code == code, done
        assert "belongs to" in done.err, done
        assert "Permission denied" not in done.err, done


def test_the_owner_of_backups_that_are_closed_is_not_sent_to_another_user(
    of_another_user: Callable[..., Done],
) -> None:
    done = of_another_user("rollback.sh", "--list", owner=65534)
    assert done.code == 4, done
    assert "chmod u+rwx" in done.err, done


def test_no_python_is_no_failed_deployment(of_another_user: Callable[..., Done]) -> None:
    with tempfile.TemporaryDirectory(prefix="yj-programs-") as place:
        Path(place).chmod(0o755)
        programs = str(_programs_without("python", Path(place)))
        done = of_another_user("deploy-websocket.sh", PATH=programs, PYTHON="/nonexistent/python")
    assert done.code == 69, done
    assert "failed" not in done.err


def test_a_dry_run_changes_nothing(installed: Installed) -> None:
    before, backups = installed.worker_pids(), sorted(installed.backups.glob("*"))
    done = installed.run("deploy-websocket.sh", "--dry-run")
    assert done.code == 0, done
    assert installed.worker_pids() == before
    assert sorted(installed.backups.glob("*")) == backups


def test_one_deployment_at_a_time(installed: Installed) -> None:
    installed.backups.mkdir(exist_ok=True)
    with subprocess.Popen(
        ["flock", str(installed.backups / ".lock"), "cat"], stdin=subprocess.PIPE
    ) as holder:
        try:
            until_locked = ["flock", "--nonblock", str(installed.backups / ".lock"), "true"]
            while subprocess.run(until_locked).returncode == 0:
                pass
            assert installed.run("deploy-websocket.sh").code == 75
            (backup, *_) = sorted(installed.backups.glob("2*"))
            assert installed.run("rollback.sh", backup.name).code == 75
        finally:
            holder.communicate()


async def test_the_first_deployment_starts_the_service() -> None:
    service = Installed()
    try:
        refused = await asyncio.to_thread(service.run, "deploy-websocket.sh", "--no-start")
        assert refused.code == 15, refused
        done = await asyncio.to_thread(service.run, "deploy-websocket.sh", "--json")
        assert done.code == 0, done
        assert "started for the first time" in done.json["how"]
        assert (await service.get("/status")).body["status"] == "ok"
        await asyncio.to_thread(service.end)
    finally:
        service.destroy()


async def test_a_backup_brings_the_messages_back(installed: Installed) -> None:
    await installed.publish(data={"n": "kept"})
    name = "20260101_000000"
    await asyncio.to_thread(_create, installed, name)
    kept = await installed.history("status")
    await installed.publish(data={"n": "gone"})
    client = await PlainClient.open(installed, types="status")
    try:
        # Damaged: nothing happens.
        base = installed.backups / name / "data/appendonlydir/appendonly.aof.1.base.rdb"
        content = base.read_bytes()
        base.write_bytes(content[:-20] + bytes(20))
        done = await asyncio.to_thread(installed.run, "rollback.sh", name, "--json")
        assert (done.code, done.json["ok"]) == (2, False), done
        # Sums that fit do not make it better: Valkey itself refuses it.
        sums = installed.backups / name / "SHA256SUMS"
        good_sums = sums.read_text()
        digest = hashlib.sha256(base.read_bytes()).hexdigest()
        sums.write_text(good_sums.replace(hashlib.sha256(content).hexdigest(), digest))
        done = await asyncio.to_thread(installed.run, "rollback.sh", name)
        assert done.code == 2, done
        assert "valkey-check" in done.err
        assert (await installed.history("status"))[-1]["data"] == {"n": "gone"}
        base.write_bytes(content)
        sums.write_text(good_sums)
        (installed.backups / name / "extra").touch()
        assert (await asyncio.to_thread(installed.run, "rollback.sh", name)).code == 2
        (installed.backups / name / "extra").unlink()
        assert (await asyncio.to_thread(installed.run, "rollback.sh", "no-such")).code == 3

        done = await asyncio.to_thread(installed.run, "rollback.sh", name, "--dry-run")
        assert done.code == 0, done
        assert (await installed.history("status"))[-1]["data"] == {"n": "gone"}

        done = await asyncio.to_thread(installed.run, "rollback.sh", name, "--data-only")
        assert done.code == 0, done

        async def is_back() -> bool:
            return [one["data"] for one in await installed.history("status")] == [
                one["data"] for one in kept
            ]

        await until(is_back, "the messages of the backup")
        # No client was disconnected, and all of them are informed.
        gap = await client.expect("gap")
        assert gap["data"]["reason"] == "epoch"
        sent = await installed.publish(data={"n": "after"})
        await client.wait_seq("status", sent["seq"])
        assert client.socket.close_code is None
    finally:
        await client.close()


def _create(installed: Installed, name: str, *options: str) -> None:
    target = str(installed.backups / name)
    subprocess.run(
        [sys.executable, "-m", "scripts.backup", "create", target, *options],
        cwd=installed.root,
        env=installed.environ,
        check=True,
        timeout=60,
    )


async def test_a_backup_of_a_stopped_service_brings_its_messages_back() -> None:
    service = Installed()
    await asyncio.to_thread(service.start)
    try:
        await service.publish(data={"n": 1})
        assert service.process is not None
        service.process.terminate()
        await asyncio.to_thread(service.process.wait, 30)
        await asyncio.to_thread(_create, service, "cold")
        store = service.data_dir / "valkey/appendonlydir"
        for file in store.iterdir():
            file.unlink()
        store.rmdir()
        done = await asyncio.to_thread(service.run, "rollback.sh", "cold", "--no-reload")
        assert done.code == 0, done
        await asyncio.to_thread(service.start)
        assert [one["data"] for one in await service.history("status")] == [{"n": 1}]
    finally:
        service.destroy()


async def test_messages_that_a_backup_does_not_hold_are_not_restored(installed: Installed) -> None:
    """As that of a first deployment, before which there were none."""
    name = "20250101_000007"
    _create(installed, name)
    directory = installed.backups / name
    shutil.rmtree(directory / "data")
    sums = directory / "SHA256SUMS"
    lines = sums.read_text().splitlines(keepends=True)
    sums.write_text("".join(line for line in lines if "  data/" not in line))
    done = await asyncio.to_thread(installed.run, "rollback.sh", name, "--data-only")
    assert done.code == 3, done
    assert "it holds no messages" in done.err
    assert "Restored" not in done.out + done.err


# What a backup needs to be good


def test_a_snapshot_with_the_mark_of_a_replication_can_be_restored(
    installed: Installed, tmp_path: Path
) -> None:
    """As `valkey-cli --rdb -` writes it: the checker takes it, and no server loads it."""
    _create(installed, "20250101_000000")
    base = next((installed.backups / "20250101_000000").rglob("*.base.rdb")).read_bytes()
    marked = tmp_path / "marked.rdb"
    marked.write_bytes(base + b"0123456789abcdef" * 2 + b"01234567")
    _create(installed, "20250101_000001", "--rdb", str(marked))
    made = next((installed.backups / "20250101_000001").rglob("*.base.rdb"))
    assert made.read_bytes() == base


def test_a_snapshot_that_no_valkey_loads_is_no_backup(installed: Installed, tmp_path: Path) -> None:
    _create(installed, "20250101_000002")
    base = next((installed.backups / "20250101_000002").rglob("*.base.rdb")).read_bytes()
    odd = tmp_path / "odd.rdb"
    odd.write_bytes(base + b"something behind it")
    target = str(installed.backups / "20250101_000003")
    done = subprocess.run(
        [sys.executable, "-m", "scripts.backup", "create", target, "--rdb", str(odd)],
        cwd=installed.root,
        env=installed.environ,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3, done
    assert "does not start from it" in done.stderr
    assert not (installed.backups / "20250101_000003").exists()


@pytest.mark.parametrize("by", [signal.SIGHUP, signal.SIGTERM, signal.SIGKILL])
def test_a_backup_that_is_ended_leaves_no_server(installed: Installed, by: signal.Signals) -> None:
    """Of the one that has to load it; as where the terminal is closed, or the kernel kills for memory."""
    scratch = installed.home / "scratch"
    scratch.mkdir(exist_ok=True)
    slow = (
        "import redis, runpy, sys, time; redis.Redis.ping = lambda _: time.sleep(60);"
        "sys.argv[1:] = ['create', 'backups/20250101_000005'];"
        "runpy.run_module('scripts.backup', run_name='__main__')"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", slow],
        cwd=installed.root,
        env=installed.environ | {"TMPDIR": str(scratch)},
    )

    def loads() -> bool:
        words = [" ".join(one.info["cmdline"] or ()) for one in psutil.process_iter(["cmdline"])]
        return any(str(scratch) in line for line in words)

    try:
        until_now(loads, "a server loads the backup", 30)
        process.send_signal(by)
        process.wait(10)
        until_now(lambda: not loads(), "it has ended")
        if by != signal.SIGKILL:
            assert not any(scratch.iterdir())
            assert not any(installed.backups.glob(".2*"))
    finally:
        process.kill()
        process.wait()
        for path in (scratch, *installed.backups.glob(".2*")):
            shutil.rmtree(path)


@pytest.mark.parametrize("line", ["", "file", "no manifest", "file ../../etc/passwd seq 1 type b"])
def test_a_manifest_that_is_none_is_a_damage(tmp_path: Path, line: str) -> None:
    store = tmp_path / "data/appendonlydir"
    store.mkdir(parents=True)
    (store / "appendonly.aof.manifest").write_text(f"{line}\n")
    with pytest.raises(backup.Damaged, match="is not understood"):
        backup._check_data(tmp_path)


def test_an_archive_of_something_else_is_not_restored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes").write_text("no code")
    archive = tmp_path / "release.tar.gz"
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(tmp_path / "notes", "notes")
    monkeypatch.setattr(release, "ROOT", tmp_path)
    with pytest.raises(tarfile.TarError, match="holds nothing of a release"):
        release.restore_release(archive, tmp_path / "failed")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes", "release.tar.gz"]


def test_a_backup_of_another_machine_may_be_the_first_here(installed: Installed) -> None:
    _create(installed, "20250101_000006")
    other = Installed()
    try:
        there = str(installed.backups / "20250101_000006")
        done = other.run("rollback.sh", there, "--data-only", "--no-reload")
        assert done.code == 0, done
        assert (other.data_dir / "valkey/appendonlydir/appendonly.aof.manifest").is_file()
    finally:
        other.destroy()


def test_a_restore_without_room_changes_nothing(installed: Installed, tmp_path: Path) -> None:
    _create(installed, "20250101_000004")
    data_dir = tmp_path / "data"
    store = data_dir / "valkey/appendonlydir"
    data_dir.mkdir(mode=0o700)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k,mode=0700", "small", data_dir], check=True
    )
    try:
        store.mkdir(parents=True)
        (store / "kept").write_text("as before")
        with (data_dir / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "scripts.backup",
                "restore",
                "backups/20250101_000004",
                "--data",
            ],
            cwd=installed.root,
            env=installed.environ | {"DATA_DIR": str(data_dir)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1, done
        assert "appendonlydir.new: [Errno 28] No space left on device" in done.stderr
        assert sorted(path.name for path in store.parent.iterdir()) == ["appendonlydir"]
        assert (store / "kept").read_text() == "as before"
    finally:
        subprocess.run(["umount", data_dir], check=True)


# What the containers use


async def test_the_cap_holds_over_two_containers() -> None:
    service = Installed(MAX_TOTAL_CONNECTIONS=5)
    await asyncio.to_thread(service.start)
    clients: list[PlainClient] = []
    try:
        holder = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "scripts.hold_connections"),
            cwd=service.root,
            env=service.environ,
            stdin=asyncio.subprocess.PIPE,
        )
        assert holder.stdin is not None
        holder.stdin.write(b"3\n")
        await service.wait_connections(3)
        clients += [await PlainClient.open(service) for _ in range(2)]
        with pytest.raises(Exception, match="503"):
            await PlainClient.open(service)
        holder.stdin.write(b"2\n")
        await service.wait_connections(4)
        clients.append(await PlainClient.open(service))
        holder.stdin.close()
        assert await holder.wait() == 0
        await service.wait_connections(3)
        clients += [await PlainClient.open(service) for _ in range(2)]
    finally:
        await asyncio.gather(*(client.close() for client in clients))
        await asyncio.to_thread(service.stop)


def test_whether_a_worker_serves(tmp_path: Path) -> None:
    """What a deployment asks before it ends a service that cannot start."""

    def asked() -> int:
        return subprocess.run(
            [sys.executable, "-m", "scripts.healthy", "--worker"],
            cwd=REPO,
            env=dict(os.environ) | {"DATA_DIR": str(tmp_path)},
        ).returncode

    assert asked() == 0, "without the table it is not known"
    file = paths.slots_file(tmp_path)
    try:
        table = SlotTable(file, 10)
        assert asked() == NO_WORKER
        row = table.claim_row(os.getpid())
        table.set_state(row, STARTING)
        assert asked() == NO_WORKER
        for state in (READY, LEAVING):
            table.set_state(row, state)
            assert asked() == 0
        with subprocess.Popen(["sleep", "60"]) as dead:
            table.columns[PID][row] = dead.pid
            assert asked() == 0
            dead.kill()
        assert asked() == NO_WORKER, "its process has ended"
    finally:
        file.unlink()


def test_the_health_check_of_the_image(installed: Installed) -> None:
    for port, code in ((installed.port, 0), (free_port(), 1)):
        done = subprocess.run(
            [sys.executable, "-m", "scripts.healthy"],
            cwd=installed.root,
            env=os.environ | {"BIND": f"0.0.0.0:{port}"},
            stderr=subprocess.DEVNULL,
        )
        assert done.returncode == code
