"""Deploying, failing, going back and restoring in containers, by a real engine.

The tests build on one another in their order: each leaves a service that runs.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import aiohttp
import pytest

from tests.containers.project import Crowd, Project
from tests.support.publishers import Aiohttp, HttpClient, Publisher, Requests
from tests.support.service import TOKEN
from tests.support.waiting import until, until_now

pytestmark = pytest.mark.timeout(400)

CLIENTS = 200


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """Everything in operation after a first deployment."""
    made = Project(tmp_path_factory.mktemp("containers"))
    try:
        made.version("1.0.0")
        done = made.deploy()
        assert done.code == 0, done
        assert "started for the first time" in done.json["how"]
        yield made
    finally:
        made.destroy()


async def publish(project: Project, data: object, **more: object) -> dict[str, int]:
    head = {"Authorization": f"Bearer {TOKEN}"}
    body = {"type": "status", "event": "tick", "data": data, **more}
    url = f"http://{project.address}/ws/broadcast"
    async with aiohttp.ClientSession(headers=head) as http, http.post(url, json=body) as answer:
        assert answer.status == 200, await answer.text()
        result: dict[str, int] = await answer.json()
        return result


async def history(project: Project) -> list[object]:
    url = f"http://{project.address}/history?type=status&limit=100"
    async with aiohttp.ClientSession() as http, http.get(url) as answer:
        return [one["data"] for one in (await answer.json())["messages"]]


async def test_a_deployment_and_the_way_back_close_nobody(project: Project) -> None:
    project.version("2.0.0")
    url = f"http://{project.address}/ws/broadcast"
    async with Crowd(project.address, CLIENTS) as crowd:
        publishers: list[Publisher] = [kind(url, 10) for kind in (Requests, HttpClient, Aiohttp)]
        for publisher in publishers:
            publisher.start()
        try:
            done = await asyncio.to_thread(project.deploy)
            assert done.code == 0, done
            assert (done.json["handed_over"], done.json["noticed"]) == (CLIENTS, 0), done
            assert project.runs() == "2.0.0"
            assert list(project.backends().values()) == ["running"]
            # Back, by the backup that this deployment made of what ran before.
            back = await asyncio.to_thread(
                project.run, "rollback.sh", "--release-only", done.json["backup"]
            )
            assert back.code == 0, back
            assert project.runs() == "1.0.0"
        finally:
            for publisher in publishers:
                publisher.enough.set()
            await asyncio.to_thread(lambda: [publisher.join(30) for publisher in publishers])
        assert {one.name: one.errors for one in publishers} == {one.name: [] for one in publishers}
        last = await publish(project, {"n": "last"})
        await crowd.all_at(last["seq"])
        crowd.check()
    dangling = "label=org.opencontainers.image.title=Yujian Presence"
    left = project.docker("images", "--quiet", "--filter", "dangling=true", "--filter", dangling)
    assert left == ""


async def test_a_version_that_does_not_serve_changes_nothing(project: Project) -> None:
    before, dotenv = project.backends(), (project.root / ".env").read_text()
    project.change("workers/runtime.py", "async def create(", "async def create(nothing,")
    project.write_settings(LOG_LEVEL="debug")
    async with Crowd(project.address, 20) as crowd:
        done = await asyncio.to_thread(project.deploy, "--timeout", "20")
        assert done.code == 15, done
        assert done.json["rolled_back"] is True
        assert "create() missing" in done.json["how"], "the cause is in the report"
        assert project.backends() == before
        assert "async def create(nothing," not in (project.root / "workers/runtime.py").read_text()
        assert (project.root / ".env").read_text() == dotenv
        last = await publish(project, {"n": "after a bad version"})
        await crowd.all_at(last["seq"])
        crowd.check()
    del project.settings["LOG_LEVEL"]


async def test_an_interrupted_deployment_changes_nothing_and_the_next_one_is_good(
    project: Project,
) -> None:
    before = project.backends()
    project.version("3.0.0")
    async with Crowd(project.address, 20) as crowd:
        done = await asyncio.to_thread(
            project.interrupt_deploy, lambda: len(project.backends()) > 1
        )
        assert done.code == 15, done
        assert "interrupted" in done.err
        assert project.backends() == before
        assert project.runs() == "1.0.0"
        # What a killed deployment leaves: an exited container of the old version.
        project.compose(
            "up", "--detach", "--no-deps", "--no-recreate", "--scale", "backend=2", "backend"
        )
        (second,) = project.backends().keys() - before.keys()
        until_now(lambda: project.state(second) == "healthy.", "the second serves", 60)
        project.docker("stop", *before)
        assert sorted(project.backends().values()) == ["exited", "running"]
        project.version("3.0.0")
        done = await asyncio.to_thread(project.deploy)
        assert done.code == 0, done
        assert project.runs() == "3.0.0"
        assert second not in project.backends()
        assert list(project.backends().values()) == ["running"]
        last = await publish(project, {"n": "after an interrupt"})
        await crowd.all_at(last["seq"])
        crowd.check()


async def test_a_backup_brings_the_messages_back(project: Project) -> None:
    await publish(project, {"n": "kept"})
    done = await asyncio.to_thread(project.deploy)
    assert done.code == 0, done
    kept = await history(project)
    await publish(project, {"n": "gone"})
    async with Crowd(project.address, 20) as crowd:
        back = await asyncio.to_thread(
            project.run, "rollback.sh", "--data-only", done.json["backup"]
        )
        assert back.code == 0, back

        async def is_back() -> bool:
            return [one for one in await history(project) if one != {}] == kept

        await until(is_back, "the messages of the backup", 30)
        await publish(project, {"n": "after"})
        await until(lambda: crowd.gaps == 20, "every client learns of the gap", 30)
        assert crowd.closes == []


def test_what_surrounds_the_backend_is_renewed(project: Project) -> None:
    project.write_settings(CADDY_MEMORY="1100M")
    done = project.deploy()
    assert done.code == 0, done
    assert "renewed: caddy (0 clients closed)" in done.json["how"]
    caddy = json.loads(project.docker("inspect", project.compose("ps", "--quiet", "caddy")))[0]
    assert caddy["HostConfig"]["Memory"] == 1100 * 2**20
    # The Caddyfile is seen anew when it is replaced, as git does it.
    path = project.root / "caddy/Caddyfile"
    fresh = path.with_name("new")
    fresh.write_text(path.read_text().replace("nosniff", '"nosniff; new"'))
    fresh.rename(path)
    assert "new" in project.compose("exec", "-T", "caddy", "cat", "/etc/caddy/Caddyfile")


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


def test_a_backend_that_has_stopped_is_noticed(project: Project) -> None:
    project.compose("stop", "backend")
    try:
        done = project.run("verify-deployment.sh", "--only", "containers", "--json")
        assert done.code == 14, done
        assert "backend: exited" in done.out
    finally:
        project.compose("start", "backend")
        until_now(lambda: "healthy" in project.compose("ps", "backend"), "healthy again", 60)
