"""Deploying, failing and going back in containers, by a real engine.

The tests build on one another in their order: each leaves a service that runs.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.containers.project import API, NAME, Crowd, Project, alone, restart_engine
from tests.support.copies import Done
from tests.support.publishers import Requests, at_work, check_stored, of_all_kinds
from tests.support.waiting import until_now

pytestmark = pytest.mark.timeout(400)


CLIENTS = 200


async def test_deployments_and_a_rollback_are_noticed_by_no_client_and_no_publisher(
    project: Project,
) -> None:
    project.fetch_certificate()
    direct = f"http://{project.address}/ws/broadcast"
    caddy = f"https://{API}:{project.port}/ws/broadcast"
    publishers = of_all_kinds(direct, caddy, project.certificate)
    for one in publishers:
        one.type = "config"  # the many clients get those of one alone
    to_all = Requests(direct, 10)
    async with (
        Crowd(project.address, CLIENTS) as crowd,
        Crowd(project.address, 1, "config") as reader,
    ):
        async with at_work([*publishers, to_all]):
            for version in ("2.0.0", "2.1.0", "2.2.0"):
                project.version(version)
                done = await asyncio.to_thread(project.deploy)
                assert done.code == 0, done
                counts = done.json["handed_over"], done.json["noticed"]
                assert counts == (CLIENTS + 1, 0), done
                assert project.runs() == version
                assert list(project.backends().values()) == ["running"]
                if version == "2.0.0":
                    first = done.json["backup"]
            # Back, by the backup that the first one made of what ran before.
            back = await asyncio.to_thread(project.run, "rollback.sh", "--release-only", first)
            assert back.code == 0, back
            assert project.runs() == "1.0.0"
        last = await project.publish({"n": "last"})
        await crowd.all_at(last["seq"])
        crowd.check()
        last = await project.publish({"by": "test"}, type="config")
        await reader.all_at(last["seq"])
        reader.check()
        check_stored(publishers, reader.data)
    assert project.images("dangling=true") == ""


async def test_a_version_that_does_not_serve_changes_nothing(project: Project) -> None:
    before, dotenv = project.backends(), (project.root / ".env").read_text()
    project.change("workers/runtime.py", "async def create(", "async def create(nothing,")
    project.write_settings(LOG_LEVEL="debug")
    project.change("caddy/Caddyfile", "nosniff", '"nosniff; bad"')
    (project.root / "app/page/bad.txt").write_text("of the bad version")
    async with Crowd(project.address, 20) as crowd:
        done = await asyncio.to_thread(project.deploy, "--timeout", "20")
        assert done.code == 15, done
        assert done.json["rolled_back"] is True
        assert "create() missing" in done.json["how"], "the cause is in the report"
        assert project.backends() == before
        assert "async def create(nothing," not in (project.root / "workers/runtime.py").read_text()
        assert (project.root / ".env").read_text() == dotenv
        # What is mounted is what was put back.
        assert "bad" not in project.compose("exec", "-T", "frontend", "ls", "/srv/frontend")
        caddyfile = project.compose("exec", "-T", "caddy", "cat", "/etc/caddy/Caddyfile")
        assert caddyfile == (project.root / "caddy/Caddyfile").read_text().strip()
        assert "bad" not in caddyfile
        last = await project.publish({"n": "after a bad version"})
        await crowd.all_at(last["seq"])
        crowd.check()
    del project.settings["LOG_LEVEL"]


def test_a_first_deployment_whose_build_fails_says_why_and_that_nothing_ran(
    project: Project, tmp_path: Path
) -> None:
    first = Project(tmp_path)
    name = f"{NAME}-first"
    text = first.read("Dockerfile")
    begin = "AS build\n"
    assert begin in text
    command = "RUN echo no wheel for this; echo more >&2; exit 3\n"
    (first.root / "Dockerfile").write_text(text.replace(begin, begin + command, 1))
    done = first.deploy(COMPOSE_PROJECT_NAME=name, TAG=name)
    assert done.code == 13, done
    steps = {row["step"]: row for row in done.json["steps"]}
    assert "no wheel for this" in steps["build"]["detail"]
    assert "exit code: 3" in steps["build"]["detail"]
    assert done.json["rolled_back"] is False
    assert (steps["rollback"]["state"], steps["rollback"]["detail"]) == (
        "skipped",
        "nothing ran before",
    )
    # In the other project it did.
    done = project.deploy("--no-backup", PATH=without_build(project, tmp_path))
    assert (done.code, done.json["rolled_back"]) == (13, True), done


def without_build(project: Project, tmp_path: Path) -> str:
    """A PATH with a `docker` whose builds fail, as without a network."""
    real = shutil.which("docker", path=project.environ["PATH"])
    program = tmp_path / "docker"
    program.write_text(
        f'#!/bin/sh\n[ "$1" != build ] || {{ echo "no network" >&2; exit 1; }}\nexec {real} "$@"\n'
    )
    program.chmod(0o755)
    return f"{tmp_path}:{project.environ['PATH']}"


async def test_an_interrupted_deployment_changes_nothing_and_the_next_one_is_good(
    project: Project, tmp_path: Path
) -> None:
    before = project.backends()
    project.version("3.0.0")
    other = Project(tmp_path)
    turned_away: list[Done] = []

    def is_beside(_: str) -> bool:
        if len(project.backends()) == 1:
            return False
        # Another checkout of the same Compose project has no turn now.
        scripts = ("deploy-websocket.sh", "scripts/start-containers.sh")
        turned_away.extend(other.run(script) for script in scripts)
        return True

    async with Crowd(project.address, 20) as crowd:
        done = await asyncio.to_thread(project.interrupt_deploy, is_beside)
        assert done.code == 15, done
        assert [one.code for one in turned_away] == [75, 0], turned_away
        assert "a deployment of another directory is under way" in turned_away[0].err
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
        last = await project.publish({"n": "after an interrupt"})
        await crowd.all_at(last["seq"])
        crowd.check()


LAST_STEPS = ("health", "websocket")


async def test_an_interrupt_in_any_step_leaves_what_ran_before(project: Project) -> None:
    version = project.runs()
    # The first thing that is written.
    lock = project.root / "backups/.lock"
    moments: dict[str, Callable[[str], bool]] = {
        "environment": lambda _: lock.exists(),
        "preflight": lambda said: "environment  ok" in said,
        "backup": lambda _: any((project.root / "backups").glob(".2*")),
        "build": lambda said: "backup       ok" in said,
        "deploy": lambda _: hands_over(project),
        "health": lambda said: "deploy       ok" in said,
        "websocket": lambda said: "health       ok" in said,
    }
    async with Crowd(project.address, 50) as crowd:
        for step, moment in moments.items():
            lock.unlink(missing_ok=True)
            project.version("4.0.0")
            done = await asyncio.to_thread(project.interrupt_deploy, moment)
            if done.code == 0:
                assert step in LAST_STEPS, "it was over before"
                continue
            assert done.code == 15, (step, done)
            # Some steps take milliseconds: the next one may have begun, or this one not yet.
            begun = re.search(r"interrupted in the step (\w+)", done.err)
            assert begun is not None, done.err
            steps = list(moments)
            at = steps.index(step)
            assert begun[1] in steps[max(at - 1, 0) : at + 3], done.err
            assert list(project.backends().values()) == ["running"], step
            assert project.runs() == version, step
            left = {path.name for path in (project.root / "backups").glob(".*")}
            assert left <= {".lock"}, f"{step} leaves {left}"
            last = await project.publish({"n": f"after {step}"})
            await crowd.all_at(last["seq"])
            crowd.check()


def hands_over(project: Project) -> bool:
    """The old container got TERM; all others are gone with their logs."""
    return "Handling signal: term" in project.compose("logs", "backend", check=False)


async def test_a_terminal_that_is_closed_is_an_interrupt(project: Project) -> None:
    """Nothing can be printed any more, and yet what ran before is put back."""
    version = project.runs()
    async with Crowd(project.address, 20) as crowd:
        project.version("4.1.0")
        code = await asyncio.to_thread(project.close_the_terminal, lambda _: hands_over(project))
        assert code == 15
        steps = project.steps()
        assert "interrupted in the step deploy" in steps["deploy"]["detail"]
        assert steps["rollback"]["state"] == "ok", steps
        assert list(project.backends().values()) == ["running"]
        assert project.runs() == version
        last = await project.publish({"n": "after a closed terminal"})
        await crowd.all_at(last["seq"])
        crowd.check()


def are_beside(project: Project) -> bool:
    """The new container has started, and the old one knows nothing of it yet."""
    return len(project.backends()) == 2


@pytest.mark.parametrize("moment", [are_beside, hands_over])
async def test_a_deployment_that_is_killed_is_cleared_away_by_the_next(
    project: Project, moment: Callable[[Project], bool]
) -> None:
    async with Crowd(project.address, 20) as crowd:
        project.version("4.2.0")
        killed = await asyncio.to_thread(
            project.interrupt_deploy, lambda _: moment(project), by=signal.SIGKILL
        )
        assert killed.code == -signal.SIGKILL
        done = await asyncio.to_thread(project.deploy)
        assert done.code == 0, done
        assert project.runs() == "4.2.0"
        assert list(project.backends().values()) == ["running"]
        last = await project.publish({"n": "after a kill"})
        await crowd.all_at(last["seq"])
        crowd.check()


def test_what_the_engine_cannot_start_is_started(project: Project) -> None:
    """It tries to start a backend once, whether `net` runs or not."""
    (backend,) = project.backends()
    net = project.compose("ps", "--quiet", "net")
    # Processes of the backend end with the first one of their namespace.
    project.docker("stop", net)
    error = ("inspect", "--format", "{{.State.Error}}", backend)
    until_now(lambda: "cannot join" in project.docker(*error), "the engine has given up", 60)
    project.docker("start", net)
    seen = project.run("scripts/start-containers.sh", "--dry-run")
    assert seen.code == 0, seen
    assert f"would start {backend}" in seen.err
    assert project.backends() == {backend: "exited"}
    started = project.run("scripts/start-containers.sh")
    assert started.code == 0, started
    assert f"started {backend}" in started.err
    until_now(lambda: project.state(backend) == "healthy.", "it serves", 60)
    # Not what was stopped by hand.
    project.compose("stop", "backend")
    again = project.run("scripts/start-containers.sh")
    assert (again.code, again.err) == (0, ""), again
    assert project.backends() == {backend: "exited"}
    project.compose("start", "backend")
    until_now(lambda: project.state(backend) == "healthy.", "it serves", 60)
    gone = project.run("scripts/start-containers.sh", DOCKER_HOST="unix:///nonexistent")
    assert gone.code == 1, gone
    assert "the engine does not answer" in gone.err


async def test_a_way_back_that_fails_leaves_what_serves(project: Project) -> None:
    """The operator sees which part failed, and what serves now; no client notices."""
    good = project.root / "backups/last-good.tar.gz"
    archive, runs = good.read_bytes(), project.runs()
    tag = f"yujian-presence-backend:good-{NAME}"
    image = project.docker("image", "inspect", "--format", "{{.Id}}", tag)
    nowhere = ("--base-url", f"https://nowhere.localhost:{project.port}", "--timeout", "10")
    code = (project.root / "workers/runtime.py").read_text()
    async with Crowd(project.address, 20) as crowd:
        # 1. The files of before cannot be put in place; their image serves on.
        good.write_bytes(archive[:1000])
        project.version("5.0.0")
        project.change("workers/runtime.py", "async def create(", "async def create(nothing,")
        done = await asyncio.to_thread(project.deploy, "--timeout", "20", "--no-backup")
        assert done.code == 20, done
        assert done.json["rolled_back"] is False
        assert "the previous files cannot be restored" in done.err
        assert (
            f"the running service is healthy (version {runs}, 2 workers" in done.json["serves"]
        ), done
        assert project.runs() == runs
        good.write_bytes(archive)
        (project.root / "workers/runtime.py").write_text(code)

        # 2. The image of before does not start: the new one serves on.
        project.docker("tag", "busybox:1.37.0-musl", tag)
        project.version("5.1.0")
        done = await asyncio.to_thread(project.deploy, *nowhere)
        assert done.code == 20, done
        assert "the new container is not healthy" in done.err or "does not start" in done.err, done
        assert "the running service is not healthy" in done.json["serves"], (
            "it is asked at a wrong address"
        )
        assert project.runs() == "5.1.0"
        assert list(project.backends().values()) == ["running"]
        project.docker("tag", image, tag)
        last = await project.publish({"n": "after ways back that failed"})
        await crowd.all_at(last["seq"])
        crowd.check()
    project.version("5.2.0")
    done = await asyncio.to_thread(project.deploy)
    assert done.code == 0, done
    assert project.runs() == "5.2.0"


async def test_a_rollback_to_what_does_not_serve(project: Project) -> None:
    """`rollback.sh` itself fails: what ran serves on, and the message says what that is."""
    code = (project.root / "workers/runtime.py").read_text()
    project.change("workers/runtime.py", "async def create(", "async def create(nothing,")
    bad = project.root / "backups/20200101_000000"
    command = [sys.executable, "-m", "scripts.backup", "create", str(bad)]
    environ = project.environ | {"BACKPLANE_URL": "redis://nowhere"}
    made = await asyncio.to_thread(
        subprocess.run, command, cwd=project.root, env=environ, capture_output=True, text=True
    )
    assert made.returncode == 0, made
    (project.root / "workers/runtime.py").write_text(code)
    runs = project.runs()
    async with Crowd(project.address, 20) as crowd:
        back = await asyncio.to_thread(
            project.run, "rollback.sh", "--json", "--release-only", bad.name
        )
        assert back.code == 5, back
        assert "deploy-websocket.sh ended with 15" in back.json["message"]
        assert f"the running service is healthy (version {runs}" in back.json["message"]
        assert f"are in {bad}/failed" in back.json["message"]
        assert list(project.backends().values()) == ["running"]
        last = await project.publish({"n": "after a rollback that failed"})
        await crowd.all_at(last["seq"])
        crowd.check()
    (project.root / "workers/runtime.py").write_text(code)
    shutil.rmtree(bad)


async def test_an_interrupted_rollback_leaves_one_version(project: Project) -> None:
    """It is not put back by the version that it leads away from; but no two serve."""
    before, runs = project.backends(), project.runs()
    code = (project.root / "app/__init__.py").read_text()
    project.version("5.9.0")
    back_to = project.root / "backups/20200101_000000"
    command = [sys.executable, "-m", "scripts.backup", "create", str(back_to)]
    environ = project.environ | {"BACKPLANE_URL": "redis://nowhere"}
    await asyncio.to_thread(subprocess.run, command, cwd=project.root, env=environ, check=True)
    latest = ("image", "inspect", "--format", "{{.Id}}", f"yujian-presence-backend:{NAME}")
    image = project.docker(*latest)
    async with Crowd(project.address, 20) as crowd:
        back = await asyncio.to_thread(
            project.interrupt,
            *("rollback.sh", "--json", "--release-only", back_to.name),
            when=lambda _: len(project.backends()) > 1,
        )
        assert back.code == 5, back
        assert f"the running service is healthy (version {runs}" in back.json["message"]
        assert project.backends() == before
        assert project.docker(*latest) == image
        last = await project.publish({"n": "after a rollback that was interrupted"})
        await crowd.all_at(last["seq"])
        crowd.check()
    (project.root / "app/__init__.py").write_text(code)
    shutil.rmtree(back_to)


@pytest.mark.timeout(900)
async def test_an_engine_that_is_restarted_in_a_deployment(project: Project) -> None:
    """What ran before serves again, whatever the engine itself starts of it."""
    # The last of the file: the other files use the engine too.
    async with alone():
        await an_engine_is_restarted(project)


async def an_engine_is_restarted(project: Project) -> None:
    version = project.runs()
    restarted: list[bool] = []

    def restart(_: str) -> bool:
        if not restarted and len(project.backends()) == 2:
            restarted.append(True)
            restart_engine()
        return False  # it goes to its end

    project.version("4.3.0")
    done = await asyncio.to_thread(project.interrupt_deploy, restart)
    assert restarted
    assert done.code == 15, done
    assert done.json["rolled_back"] is True, done
    assert project.runs() == version
    assert list(project.backends().values()) == ["running"]
    latest = project.docker("inspect", "--format", "{{.Id}}", f"yujian-presence-backend:{NAME}")
    (backend,) = project.backends()
    assert project.docker("inspect", "--format", "{{.Image}}", backend) == latest
    async with Crowd(project.address, 5) as crowd:
        last = await project.publish({"n": "after the engine's restart"})
        await crowd.all_at(last["seq"])
