"""One deployment at a time of one service, from whatever directory; and only of what runs from here."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import REPO
from tests.support.copies import Installed

pytestmark = pytest.mark.timeout(120)


def common(command: str, **environ: str) -> str:
    """What a command prints that uses scripts/common.sh."""
    done = subprocess.run(
        ["bash", "-c", f"name=test; source scripts/common.sh; find_python; {command}"],
        cwd=REPO,
        env=dict(os.environ) | {"PYTHON": sys.executable} | environ,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done
    return done.stdout


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[Installed, Installed]]:
    """Two checkouts with one DATA_DIR; the service runs from the first."""
    first = Installed()
    first.start()
    second = Installed()
    (second.root / ".env").write_text((first.root / ".env").read_text())
    second.settings["DATA_DIR"] = first.settings["DATA_DIR"]
    yield first, second
    first.stop()
    second.destroy()


@contextmanager
def locked(data_dir: Path) -> Iterator[Path]:
    """Another deployment has the lock."""
    file = Path(common("lock_of host", DATA_DIR=str(data_dir)))
    file.touch()
    with file.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield file


def test_another_directory_of_the_same_service_waits_for_its_turn(
    both: tuple[Installed, Installed],
) -> None:
    first, _ = both
    first.run("deploy-websocket.sh", "--dry-run")
    with locked(first.data_dir) as file:
        done = first.run("deploy-websocket.sh")
        assert done.code == 75, done
        assert f"of another directory is under way: it holds the lock {file}" in done.err
        assert not list(first.backups.glob("2*")), "nothing was done"
        backup = first.backups / "20200101_000000"
        made = [sys.executable, "-m", "scripts.backup", "create", str(backup)]
        subprocess.run(made, cwd=first.root, env=first.environ, check=True)
        done = first.run("rollback.sh", backup.name)
        assert done.code == 75, done
        assert str(file) in done.err
    done = first.run("rollback.sh", "--release-only", backup.name)
    assert done.code == 0, done


def test_a_service_of_another_directory_is_not_reloaded(both: tuple[Installed, Installed]) -> None:
    """HUP would renew the code of the other one, and the deployment would report success."""
    first, second = both
    before = first.worker_pids()
    done = second.run("deploy-websocket.sh", DATA_DIR=str(first.data_dir))
    assert done.code == 11, done
    assert f"serves from {first.root}; 'python -m workers.start --replace' puts {second.root}" in (
        done.err
    )
    reload = subprocess.run(
        [sys.executable, "-m", "workers.reload"],
        cwd=second.root,
        env=second.environ | {"DATA_DIR": str(first.data_dir)},
        capture_output=True,
        text=True,
    )
    assert reload.returncode == 1, reload
    assert f"runs from {first.root}" in reload.stderr
    assert first.worker_pids() == before


@pytest.mark.parametrize(
    ("settings", "other"),
    [
        ({"COMPOSE_PROJECT_NAME": "one"}, {"COMPOSE_PROJECT_NAME": "two"}),
        ({"COMPOSE_PROJECT_NAME": ""}, {"COMPOSE_PROJECT_NAME": "yujian"}),
    ],
)
def test_other_projects_do_not_wait(settings: dict[str, str], other: dict[str, str]) -> None:
    assert common("lock_of docker", **settings) == common("lock_of docker", **settings)
    assert common("lock_of docker", **settings) != common("lock_of docker", **other)


def test_a_data_dir_by_several_names(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to("data")
    names = (tmp_path / "data", tmp_path / "link", f"{tmp_path}/./data/", f"{tmp_path}/x/../data")
    assert len({common("lock_of host", DATA_DIR=str(name)) for name in names}) == 1
    assert common("lock_of host", DATA_DIR=str(tmp_path / "other")) != common(
        "lock_of host", DATA_DIR=str(tmp_path / "data")
    )


@pytest.mark.parametrize(
    ("bind", "base", "address"),
    [
        ("127.0.0.1:3001", "http://127.0.0.1:3001", "127.0.0.1"),
        ("0.0.0.0:80", "http://127.0.0.1:80", "127.0.0.1"),
        ("[::]:3001", "http://127.0.0.1:3001", "::1"),
        ("[fd00:1::2]:3001", "http://127.0.0.1:3001", "fd00:1::2"),
        ("10.0.0.11:3001", "http://127.0.0.1:3001", "10.0.0.11"),
        ("lab.internal:3001", "http://127.0.0.1:3001", "lab.internal"),
    ],
)
def test_the_service_is_asked_by_a_name_that_it_accepts(bind: str, base: str, address: str) -> None:
    """Whatever ALLOWED_HOSTS says."""
    assert common("local_base; echo; local_address", BIND=bind) == f"{base}\n{address}"


@pytest.mark.parametrize(
    ("publish", "base", "address"),
    [
        ("", "https://a.test", "127.0.0.1"),
        ("443", "https://a.test", "127.0.0.1"),
        ("8443", "https://a.test:8443", "127.0.0.1"),
        ("08443", "https://a.test:8443", "127.0.0.1"),
        (":8443", "https://a.test:8443", "127.0.0.1"),
        ("0.0.0.0:8443", "https://a.test:8443", "127.0.0.1"),
        ("127.0.0.2:443", "https://a.test", "127.0.0.2"),
        ("[::]:8443", "https://a.test:8443", "::1"),
        ("[::1]:8443", "https://a.test:8443", "::1"),
        ("::1:8443", "https://a.test:8443", "::1"),
        ("[fd00:1::2]:8443", "https://a.test:8443", "fd00:1::2"),
    ],
)
def test_where_caddy_is_published(publish: str, base: str, address: str) -> None:
    environ = {"API_DOMAIN": "a.test", "HTTPS_PUBLISH": publish}
    assert common("public_base; echo; published_address", **environ) == f"{base}\n{address}"


@pytest.mark.parametrize("publish", ["8443-8445", "127.0.0.1:", "0", "https", "a.test"])
def test_a_port_that_the_engine_would_choose(publish: str) -> None:
    for ask in ("public_base", "published_address"):
        said = common(f"({ask}) 2>&1 || echo $?", HTTPS_PUBLISH=publish)
        wanted = f"HTTPS_PUBLISH={publish} must be [address:]port, with one port"
        assert said == f"test: {wanted}\n64\n"
