"""Restoring, what surrounds the backend, and what a machine lacks, by a real engine.

The tests build on one another in their order: each leaves a service that runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.containers.project import API, NAME, SITE, Crowd, Project
from tests.support.service import TOKEN
from tests.support.waiting import until, until_now

pytestmark = pytest.mark.timeout(400)


async def test_a_backup_brings_the_messages_back(project: Project) -> None:
    await project.publish({"n": "kept"})
    done = await asyncio.to_thread(project.deploy)
    assert done.code == 0, done
    kept = await project.history()
    await project.publish({"n": "gone"})
    async with Crowd(project.address, 20) as crowd:
        back = await asyncio.to_thread(
            project.run, "rollback.sh", "--data-only", done.json["backup"]
        )
        assert back.code == 0, back

        async def is_back() -> bool:
            return [one for one in await project.history() if one != {}] == kept

        await until(is_back, "the messages of the backup", 30)
        await project.publish({"n": "after"})
        await until(lambda: crowd.gaps == 20, "every client learns of the gap", 30)
        assert crowd.closes == []


async def newest_backup(project: Project) -> str:
    """One that has messages; it is made where the tests before were not run."""
    made = [path.parent.name for path in (project.root / "backups").glob("2*/data")]
    if not made:
        done = await asyncio.to_thread(project.deploy)
        assert done.code == 0, done
        made = [done.json["backup"]]
    return max(made)


async def test_an_interrupted_restore_puts_the_messages_back(project: Project) -> None:
    backup = await newest_backup(project)
    await project.publish({"n": "before an interrupt"})
    kept = await project.history()

    def is_stopping(said: str) -> bool:
        # What compose says of it: to ask the engine may take longer than the restore.
        return re.search(r"valkey-1 +Stopp", said) is not None

    async with Crowd(project.address, 20) as crowd:
        back = await asyncio.to_thread(
            project.interrupt, "rollback.sh", "--data-only", backup, when=is_stopping
        )
        assert back.code == 4, back
        assert "what Valkey had before is put back" in back.err
        assert await project.history() == kept
        last = await project.publish({"n": "after an interrupt"})
        await crowd.all_at(last["seq"])
        crowd.check()


async def test_a_restore_that_fails_puts_back_what_was_there(project: Project) -> None:
    backup = await newest_backup(project)
    await project.publish({"n": "after the backup"})
    kept = await project.history()
    good = (project.root / "rollback.sh").read_text()
    # A Valkey that does not start from what it is given.
    project.change(
        "rollback.sh",
        "rmdir .fresh' &&",
        "rmdir .fresh; echo nonsense > appendonlydir/appendonly.aof.manifest' &&",
    )
    async with Crowd(project.address, 20) as crowd:
        back = await asyncio.to_thread(project.run, "rollback.sh", "--data-only", backup)
        assert back.code == 4, back
        assert "what it had before is put back" in back.err
        assert await project.history() == kept
        last = await project.publish({"n": "after a restore that failed"})
        await crowd.all_at(last["seq"])
        crowd.check()
    (project.root / "rollback.sh").write_text(good)


async def test_the_monitoring_starts_without_files_of_secrets(project: Project) -> None:
    project.write_settings(SITES="http://backend:3001/status")
    project.compose("--profile", "monitoring", "up", "--detach")
    services = ("prometheus", "alertmanager", "blackbox", "grafana")
    prometheus = f"http://{project.settings['PROMETHEUS_PUBLISH']}"
    alertmanager = f"http://{project.settings['ALERTMANAGER_PUBLISH']}"

    async def get(http: aiohttp.ClientSession, url: str) -> Any:
        async with http.get(url) as answer:
            return (await answer.json())["data"]

    async with aiohttp.ClientSession() as http:

        async def all_up() -> bool:
            with contextlib.suppress(aiohttp.ClientError):
                targets = (await get(http, f"{prometheus}/api/v1/targets"))["activeTargets"]
                healths = {(one["labels"]["job"], one["health"]) for one in targets}
                jobs = ("backend", "caddy", "prometheus", "sites")
                return healths == {(job, "up") for job in jobs}
            return False

        await until(all_up, "every target is scraped", 60)
        rules = await get(http, f"{prometheus}/api/v1/rules")
        links = {
            rule["annotations"]["runbook_url"]
            for group in rules["groups"]
            for rule in group["rules"]
        }
        page = f"https://{project.settings['SITE_DOMAIN']}:{project.port}/runbook.html"
        assert {link.partition("#")[0] for link in links} == {page}
        async with project.session() as site, site.get(page) as answer:
            assert answer.status == 200
            text = await answer.text()
            assert all(f'id="{link.partition("#")[2]}"' in text for link in links)

        # Without a file it has the token of .env, so that clients see alerts.
        labels = {"alertname": "BackendDown", "severity": "critical"}
        async with http.post(f"{alertmanager}/api/v2/alerts", json=[{"labels": labels}]) as answer:
            assert answer.status == 200, await answer.text()
        url = f"http://{project.address}/history?type=health&limit=100"

        async def is_informed() -> bool:
            async with http.get(url) as answer:
                found = (await answer.json())["messages"]
            return any(one["data"].get("metric") == "BackendDown" for one in found)

        await until(is_informed, "the clients are informed", 60)
    password = project.compose("exec", "grafana", "cat", "/var/lib/grafana/first-password")
    assert f"password of admin: {password}" in project.compose("logs", "grafana")
    for service in services:
        container = project.compose("ps", "--quiet", service)
        assert project.docker("inspect", "--format", "{{.RestartCount}}", container) == "0"
    check = await asyncio.to_thread(project.run, "monitoring/health-check.sh", "--dry-run")
    assert check.code == 0, check
    assert "9 containers are healthy" in check.out
    project.compose("stop", "grafana")
    check = await asyncio.to_thread(project.run, "monitoring/health-check.sh", "--dry-run")
    assert check.code == 15, check
    assert "grafana has ended with code" in check.out
    project.compose("rm", "--force", "--stop", *services)
    del project.settings["SITES"]
    project.write_settings()


def test_what_surrounds_the_backend_is_renewed(project: Project) -> None:
    # One that ends again and again, as by a wrong setting, is no container to take over from.
    project.write_settings(WORKERS="none")
    project.compose("up", "--detach", "--no-deps", "backend")
    (backend,) = project.backends()
    until_now(lambda: project.backends()[backend] == "restarting", "it ends again and again", 30)
    project.write_settings(WORKERS="2", CADDY_MEMORY="1100M")
    done = project.deploy()
    assert done.code == 0, done
    assert done.json["how"].startswith("no container ran: a new one was started"), done
    assert "renewed: caddy (0 clients closed)" in done.json["how"]
    caddy = json.loads(project.docker("inspect", project.compose("ps", "--quiet", "caddy")))[0]
    assert caddy["HostConfig"]["Memory"] == 1100 * 2**20
    # The Caddyfile is seen anew when it is replaced, as git does it.
    path = project.root / "caddy/Caddyfile"
    fresh = path.with_name("new")
    fresh.write_text(path.read_text().replace("nosniff", '"nosniff; new"'))
    fresh.rename(path)
    assert "new" in project.compose("exec", "-T", "caddy", "cat", "/etc/caddy/Caddyfile")


async def test_valkey_is_renewed_and_no_client_notices(project: Project) -> None:
    await project.publish({"n": "before another Valkey"})
    kept = await project.history()
    project.write_settings(BACKPLANE_MEMORY="321MB")
    async with Crowd(project.address, 20) as crowd:
        # What was handed over within the container does not count.
        backend = project.compose("ps", "--quiet", "backend")
        reload = ("exec", backend, "python", "-m", "workers.reload")
        await asyncio.to_thread(project.docker, *reload)
        done = await asyncio.to_thread(project.deploy)
        assert done.code == 0, done
        assert 0 < done.json["pause_ms"] < 10_000
        assert "renewed: valkey (publishing paused)" in done.json["how"]
        assert (done.json["handed_over"], done.json["noticed"]) == (20, 0)
        valkey = project.compose("exec", "-T", "valkey", "valkey-cli", "config", "get", "maxmemory")
        assert str(321 * 2**20) in valkey
        assert await project.history() == kept
        last = await project.publish({"n": "in another Valkey"})
        await crowd.all_at(last["seq"])
        crowd.check()


async def test_another_net_closes_the_clients_and_the_report_counts_them(project: Project) -> None:
    project.docker("tag", "busybox:1.37.0-musl", "busybox:of-a-test")
    project.write_settings(NET_IMAGE="busybox:of-a-test")
    kept = await project.history()
    async with Crowd(project.address, 20) as crowd:
        done = await asyncio.to_thread(project.deploy)
        assert done.code == 0, done
        assert "renewed: net (20 clients closed)" in done.json["how"]
        assert done.json["noticed"] == 20
        await until(lambda: len(crowd.closes) == 20, "all were closed", 10)
        assert set(crowd.closes) == {1012}
    assert await project.history() == kept
    assert list(project.backends().values()) == ["running"]
    async with Crowd(project.address, 5) as crowd:
        last = await project.publish({"n": "in another network"})
        await crowd.all_at(last["seq"])


async def test_compose_up_by_hand_closes_every_client(project: Project) -> None:
    """What docs/operations/DEPLOYMENT.md says of it."""
    project.write_settings(LOG_LEVEL="debug")
    async with Crowd(project.address, 20) as crowd:
        await asyncio.to_thread(project.compose, "up", "--detach", "--wait")
        await until(lambda: len(crowd.closes) == 20, "all were closed", 10)
        assert set(crowd.closes) == {1012}
    async with Crowd(project.address, 5) as crowd:
        last = await project.publish({"n": "after compose up"})
        await crowd.all_at(last["seq"])
    del project.settings["LOG_LEVEL"]
    project.write_settings()


async def test_a_full_disk_under_the_messages(project: Project) -> None:
    """A restore that has no room puts back what was there, and a backup leaves nothing behind."""
    await project.publish({"n": os.urandom(20_000).hex()})  # more than will be free
    done = await asyncio.to_thread(project.deploy)
    assert done.code == 0, done
    backup = done.json["backup"]
    before = sorted((project.root / "backups").glob("2*"))
    with small_volume(project) as volume:
        await project.publish({"n": "before a full disk"})
        kept = await project.history()
        filler = volume / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        os.truncate(filler, filler.stat().st_size - 8192)
        async with Crowd(project.address, 20) as crowd:
            back = await asyncio.to_thread(project.run, "rollback.sh", "--data-only", backup)
            assert back.code == 4, back
            assert "No space left" in back.err
            assert "cannot be unpacked into the volume: what it had before is put back" in back.err
            assert not list(volume.glob(".fresh"))
            assert not list(volume.glob("*.before"))
            assert await project.history() == kept
            done = await asyncio.to_thread(project.deploy, "--min-free", "0")
            assert done.code == 12, done
            assert sorted((project.root / "backups").glob("2*")) == before
            assert not list(volume.glob(".backup*"))
            filler.unlink()
            last = await project.publish({"n": "after a full disk"})
            await crowd.all_at(last["seq"])
            crowd.check()


@contextlib.contextmanager
def small_volume(project: Project) -> Iterator[Path]:
    """Let Valkey's volume be a file system of 64 MB; its directory."""
    name = ("volume", "inspect", "--format", "{{.Mountpoint}}", f"{NAME}_valkey-data")
    volume = Path(project.docker(*name))
    aside = volume.with_name("aside")

    def move(source: Path, target: Path) -> None:
        for entry in source.iterdir():
            if entry.name != "filler":
                subprocess.run(["cp", "--archive", entry, target], check=True)

    owner = volume.stat()
    aside.mkdir()
    project.compose("stop", "valkey")
    # Compose may still take it for one that runs, and not start it.
    running = ("ps", "--quiet", "--status", "running", "valkey")
    until_now(lambda: project.compose(*running) == "", "Valkey has ended", 60)
    move(volume, aside)
    options = f"size=64m,uid={owner.st_uid},gid={owner.st_gid},mode=0755"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "small", volume], check=True)
    try:
        move(aside, volume)
        project.compose("up", "--detach", "--no-deps", "--wait", "valkey")
        yield volume
    finally:
        project.compose("stop", "valkey", check=False)
        shutil.rmtree(aside)
        aside.mkdir()
        move(volume, aside)
        subprocess.run(["umount", volume], check=True)
        for entry in volume.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        move(aside, volume)
        shutil.rmtree(aside)
        project.compose("up", "--detach", "--no-deps", "--wait", "valkey")


def test_no_room_on_the_disk_is_noticed_before_anything_is_written(project: Project) -> None:
    before = project.backends(), sorted((project.root / "backups").glob("2*"))
    done = project.deploy("--min-free", "999999999")
    assert done.code == 14, done
    assert "999999999 are wanted" in done.err
    assert [row["step"] for row in done.json["steps"]] == ["environment", "preflight"]
    assert (project.backends(), sorted((project.root / "backups").glob("2*"))) == before


def test_a_full_disk_under_the_backups(project: Project, tmp_path: Path) -> None:
    before = project.backends()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "full", tmp_path], check=True)
    try:
        done = project.deploy("--min-free", "0", BACKUPS=str(tmp_path))
        assert done.code == 12, done
        assert "no space left on device" in done.err.lower()
        assert {path.name for path in tmp_path.iterdir()} == {".lock"}
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    assert project.backends() == before


def test_an_engine_that_is_too_old(project: Project, tmp_path: Path) -> None:
    """It is noticed before anything is written."""
    before = sorted((project.root / "backups").glob("2*"))
    # The one thing that is not the engine's own here: what it says of its age.
    docker = tmp_path / "docker"
    real = shutil.which("docker", path=project.environ["PATH"])
    docker.write_text(
        f'#!/bin/sh\n[ "$1" != version ] || {{ echo 24.0.9+dfsg1; exit; }}\nexec {real} "$@"\n'
    )
    docker.chmod(0o755)
    path = f"{tmp_path}:{project.environ['PATH']}"
    for options in ([], ["--dry-run"]):
        done = project.deploy(*options, PATH=path)
        assert done.code == 14, done
        assert "Docker engine 24.0.9+dfsg1 is too old" in done.err
    assert sorted((project.root / "backups").glob("2*")) == before


def test_a_docker_without_compose(project: Project) -> None:
    """What is in containers is not taken for a host, and the message names what is missing."""
    backup = max((project.root / "backups").glob("2*")).name
    (project.root / "backups/mode").rename(project.root / "backups/mode.away")
    try:
        for script, code in (
            (["deploy-websocket.sh"], 11),
            (["rollback.sh", backup], 4),
            (["verify-deployment.sh", "--only", "containers"], 14),
            (["scripts/start-containers.sh"], 1),
        ):
            # Plugins are found by this.
            done = project.run(*script, DOCKER_CONFIG="/nonexistent", HOME="/nonexistent")
            assert done.code == code, (script, done)
            assert "docker has no plugin compose" in done.out + done.err, (script, done)
    finally:
        (project.root / "backups/mode.away").rename(project.root / "backups/mode")


def test_an_engine_that_does_not_answer_is_not_taken_for_a_host(project: Project) -> None:
    """Nothing is started beside the containers that cannot be seen."""
    gone = {"DOCKER_HOST": "unix:///nonexistent/docker.sock"}
    done = project.run("deploy-websocket.sh", "--json", **gone)
    assert done.code != 0, done
    assert done.json["mode"] == "docker"
    assert "Cannot connect to the Docker daemon" in done.err
    got = project.run("verify-deployment.sh", "--only", "containers", **gone)
    assert got.code == 14, got
    assert "Cannot connect" in got.out


def test_files_of_secrets_that_are_not_used(project: Project) -> None:
    secrets = project.root / "secrets"
    secrets.mkdir()
    done = project.deploy("--dry-run")
    assert "secrets/" not in done.err, "it is empty"
    (secrets / "publish_token").write_text("s3cret")
    done = project.deploy("--dry-run")
    assert done.code == 0, done
    [warning] = [row for row in done.json["steps"] if row["state"] == "warning"]
    assert warning["detail"] == "secrets/ is not used: SECRETS_DIR=./secrets is missing in .env"
    done = project.deploy("--dry-run", SECRETS_DIR="./secrets")
    assert "secrets/" not in done.err
    shutil.rmtree(secrets)


def test_deployments_leave_no_images_without_a_name(project: Project) -> None:
    assert project.images("label=org.opencontainers.image.title=Yujian Presence")
    assert project.images("dangling=true") == ""


def test_what_the_service_thinks_of_its_container(project: Project) -> None:
    code = (
        "import json, os, pathlib; from app import config; from workers.leader.host import HostSampler;"
        "found = HostSampler(pathlib.Path('/data')).sample();"
        "print(json.dumps([config.load(os.environ, None).host_name, found.memory_total, found.disk_total]))"
    )
    name, memory, disk = json.loads(
        project.compose("exec", "-T", "backend", "python", "-c", code).splitlines()[-1]
    )
    assert name == project.settings["API_DOMAIN"]
    assert memory == 512 * 2**20
    # The messages are on the disk of the engine's volumes.
    place = project.docker("info", "--format", "{{.DockerRootDir}}")
    assert disk == shutil.disk_usage(place).total


async def test_full_histories_and_clients_that_read_nothing_in_512_mb(project: Project) -> None:
    """The image alone, with its private Valkey: publishing is refused before the kernel kills."""
    own = [f"t{number}" for number in range(27)]
    types = [*own, "status", "stats", "health", "config", "system"]
    settings = {"BIND": "0.0.0.0:3001", "PUBLISH_TOKEN": TOKEN, "RATE_LIMIT": "0", "WORKERS": "2"}
    settings |= {"MESSAGE_TYPES": ",".join(own), "COLLECTOR": "0"}
    options = [word for name, value in settings.items() for word in ("--env", f"{name}={value}")]
    name = project.docker(
        *("run", "--detach", "--memory", "512m", "--memory-swap", "512m", "--shm-size", "256m"),
        *(*options, f"yujian-presence-backend:{NAME}"),
    )
    try:
        host = project.docker(
            "inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", name
        )
        until_now(lambda: project.state(name) == "healthy.", "it serves", 60)
        answers = await fill(f"http://{host}:3001", host, types)
        assert answers.keys() == {(200, None), (503, "BACKPLANE_FULL")}, answers
        # What is refused leaves nothing behind.
        assert answers[503, "BACKPLANE_FULL"] > 200
        found = json.loads(project.docker("inspect", name))[0]["State"]
        assert (found["Running"], found["OOMKilled"]) == (True, False)
        log = project.docker(
            "exec", name, "sh", "-c", "cat /sys/fs/cgroup/memory/memory.oom_control"
        )
        assert "oom_kill 0" in log
    finally:
        project.docker("rm", "--force", "--volumes", name)


async def fill(base: str, host: str, types: list[str]) -> Counter[tuple[int, str | None]]:
    """Publish 17 MB to each type, eight at once, while 40 clients read nothing; the answers."""
    answers: Counter[tuple[int, str | None]] = Counter()
    deaf: list[asyncio.StreamWriter] = []

    async def stall(query: str) -> None:
        """A client that wants everything, and takes nothing."""
        # Past twice the limit it reads nothing.
        _, writer = await asyncio.open_connection(host, 3001, limit=1024)
        writer.write(
            f"GET /ws/realtime?types={','.join(types)}{query} HTTP/1.1\r\nHost: {host}\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
        )
        await writer.drain()
        deaf.append(writer)

    try:
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {TOKEN}"}) as http:

            async def post(type: str) -> None:
                body = {"type": type, "event": "bulk", "data": "x" * 1_000_000}
                async with http.post(f"{base}/ws/broadcast", json=body) as answer:
                    answers[answer.status, (await answer.json()).get("code")] += 1

            for _ in range(20):
                await stall("")
            for round in range(17):
                for first in range(0, len(types), 8):
                    await asyncio.gather(*map(post, types[first : first + 8]))
                if round in (3, 8):
                    for _ in range(10):
                        await stall("&history=100")
            async with http.get(f"{base}/metrics") as answer:
                page = await answer.text()
            assert 'realtime_workers_died_total{state="ready"} 0.0' in page
    finally:
        for writer in deaf:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
    return answers


def test_more_open_files_than_the_host_gives(project: Project) -> None:
    before = project.backends()
    done = project.deploy(NOFILE="900000000")
    assert done.code == 14, done
    assert "set NOFILE in .env" in done.err
    assert project.backends() == before


def test_verify_and_logs(project: Project) -> None:
    done = project.run("verify-deployment.sh", "--connect", "127.0.0.1", "--days", "0", "--json")
    assert done.code == 0, done
    assert {row["state"] for row in done.json["checks"]} == {"ok"}
    shown = project.run("scripts/logs.sh", "--no-follow", "-n", "5")
    assert shown.code == 0
    assert "backend" in shown.out


async def test_the_page_finds_its_service_at_the_port_that_is_published(project: Project) -> None:
    """And the service lets it in: its origin has the port, too."""
    site, api = f"https://{SITE}:{project.port}", f"https://{API}:{project.port}"
    async with project.session() as http:
        async with http.get(f"{site}/config.json") as answer:
            assert await answer.json() == {"api": api}
        async with http.get(f"{site}/") as answer:
            assert f"connect-src 'self' {api} wss" in answer.headers["Content-Security-Policy"]
        async with http.get(f"{api}/status", headers={"Origin": site}) as answer:
            assert answer.headers["Access-Control-Allow-Origin"] == site
        async with http.ws_connect(f"{api}/ws/realtime?types=", headers={"Origin": site}) as socket:
            await socket.send_json(
                {"id": "1", "action": "subscribe", "payload": {"types": ["status"]}}
            )
            assert (await socket.receive_json(timeout=10))["event"] != "error"
        other = {"Origin": f"https://elsewhere.localhost:{project.port}"}
        async with http.get(f"{api}/status", headers=other) as answer:
            assert "Access-Control-Allow-Origin" not in answer.headers


def test_a_backend_that_has_stopped_is_noticed(project: Project) -> None:
    project.compose("stop", "backend")
    try:
        done = project.run("verify-deployment.sh", "--only", "containers", "--json")
        assert done.code == 14, done
        assert "backend: exited" in done.out
    finally:
        project.compose("start", "backend")
        until_now(lambda: "healthy" in project.compose("ps", "backend"), "healthy again", 60)
