"""monitoring/health-check.sh against a real service, and against answers that it rarely gives."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support.monitoring import MONITORING
from tests.support.plain import PlainClient
from tests.support.ports import free_port
from tests.support.program import run
from tests.support.receiver import Receiver
from tests.support.service import TOKEN, Service
from tests.support.waiting import until

SCRIPT = MONITORING / "health-check.sh"
WELL = {
    "/status": (200, '{"status":"ok","workers":[{"state":"ready"}]}'),
    "/ws/stats": (200, '{"totalConnections":7,"uniqueUsers":3}'),
    "/ws/queue": (200, '{"length":0,"maxSize":10000}'),
}


class Check:
    """The script with a state of its own."""

    def __init__(self, directory: Path) -> None:
        self.state = directory / "state" / "health"
        self.environ: dict[str, str] = {}

    def __call__(self, *arguments: str, code: int) -> str:
        result = run(SCRIPT, "--state", self.state, *arguments, **self.environ)
        assert result.returncode == code, result.stdout + result.stderr
        return result.stdout + result.stderr

    def json(self, *arguments: str, code: int) -> Any:
        return json.loads(self("--json", *arguments, code=code))

    def statuses(self, *arguments: str, code: int) -> dict[str, str]:
        checks = self.json(*arguments, code=code)["checks"]
        return {check["name"]: check["status"] for check in checks}


@pytest.fixture
def check(tmp_path: Path) -> Check:
    return Check(tmp_path)


@pytest.fixture
def stub(receiver: Receiver) -> Receiver:
    """Something that answers as a service does, but accepts no WebSocket."""
    receiver.pages = dict(WELL)
    return receiver


def down() -> str:
    return f"http://127.0.0.1:{free_port()}"


def got(receiver: Receiver) -> list[list[tuple[str, str]]]:
    """Of each post the alerts' names and statuses."""
    return [
        [(alert["labels"]["alertname"], alert["status"]) for alert in post["alerts"]]
        for post in receiver.posts
    ]


# Checks


def test_all_is_well(service: Service, check: Check, receiver: Receiver) -> None:
    # The WebSocket of the check is not kept to the timeout: that is longer than `run` waits.
    options = ("--timeout", "100", "--webhook", receiver.url)
    result = check.json(*options, service.base + "/", code=0)
    assert (result["healthy"], result["exitCode"], result["posted"]) == (True, 0, False)
    assert result["baseUrl"] == service.base
    assert {item["name"]: (item["status"], item["value"]) for item in result["checks"]} == {
        "http": ("ok", None),
        "websocket": ("ok", None),
        "connections": ("ok", 0),
        "queue": ("ok", 0),
        "containers": ("skipped", None),
    }
    assert receiver.posts == []


def test_lines_for_people_and_silence_for_cron(service: Service, check: Check) -> None:
    lines = check(service.base, code=0).splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["ok", "http"],
        ["ok", "websocket"],
        ["ok", "connections"],
        ["ok", "queue"],
        ["skipped", "containers"],
    ]
    assert check("--quiet", service.base, code=0) == ""
    assert "fail" in check("--quiet", down(), code=11)
    assert "ok" in check("--quiet", service.base, code=0)  # it has changed
    assert check("--quiet", service.base, code=0) == ""


def test_a_service_that_is_down_is_reported_once_and_so_is_its_return(
    service: Service, check: Check, receiver: Receiver
) -> None:
    check.environ = {"ALERT_WEBHOOK_URL": f"{receiver.url}/secret?a=b&c"}
    base = down()
    assert check.json(base, code=11)["posted"] is True
    assert check.json(base, code=11)["posted"] is False
    check(base, code=11)
    both = [("HealthCheckHttp", "firing"), ("HealthCheckWebsocket", "firing")]
    assert got(receiver) == [both]
    assert check.json(service.base, code=0)["posted"] is True
    check(service.base, code=0)
    over = [(name, "resolved") for name, _ in both]
    assert got(receiver) == [both, over]
    firing, resolved = (post["alerts"][0] for post in receiver.posts)
    assert firing["startsAt"] == resolved["startsAt"]
    assert resolved["endsAt"] >= resolved["startsAt"]
    assert firing["labels"]["severity"] == "critical"
    assert "does not answer" in firing["annotations"]["summary"]
    assert "FAILS: http" in receiver.posts[0]["text"]
    assert [post["status"] for post in receiver.posts] == ["firing", "resolved"]


async def test_too_many_connections(service: Service, check: Check, receiver: Receiver) -> None:
    arguments = ("--webhook", receiver.url, "--max-connections", "1", service.base)
    async with await PlainClient.open(service):
        await service.wait_connections(1)
        await asyncio.to_thread(check, *arguments, code=0)
        async with await PlainClient.open(service):
            await service.wait_connections(2)
            result = await asyncio.to_thread(check.json, *arguments, code=13)
            assert result["checks"][2]["value"] == 2
            assert "more than 1" in result["checks"][2]["message"]
    await service.wait_connections(0)
    await asyncio.to_thread(check, *arguments, code=0)
    name = "HealthCheckConnections"
    assert got(receiver) == [[(name, "firing")], [(name, "resolved")]]
    assert receiver.posts[0]["alerts"][0]["annotations"]["value"] == "2"


async def test_a_long_queue(service: Service, check: Check) -> None:
    valkey = service.valkey_pid()
    os.kill(valkey, signal.SIGSTOP)
    try:
        calls = [asyncio.create_task(service.post("/ws/broadcast", [message()] * 3))]

        async def waiting() -> bool:
            return bool((await service.get("/ws/queue")).body["length"] == 3)

        await until(waiting, "three messages in the queue")
        statuses = await asyncio.to_thread(
            check.statuses, "--max-queue", "2", service.base, code=14
        )
        assert statuses["queue"] == "fail"
    finally:
        os.kill(valkey, signal.SIGCONT)
    for answer in await asyncio.gather(*calls):
        assert answer.status == 200
    await asyncio.to_thread(check, "--max-queue", "2", service.base, code=0)


def message() -> dict[str, Any]:
    return {"type": "status", "event": "tick", "data": {}}


@pytest.mark.parametrize(
    ("path", "answer", "code", "failing"),
    [
        ("/status", (200, '{"status":"degraded","workers":[]}'), 11, {"http"}),
        ("/status", (503, '{"status":"unavailable"}'), 11, {"http"}),
        ("/status", (200, "<html>Welcome</html>"), 11, {"http"}),
        ("/ws/stats", (500, ""), 12, set()),
        ("/ws/stats", (200, '{"totalConnections":8000}'), 12, set()),
        ("/ws/stats", (200, '{"totalConnections":8001}'), 12, {"connections"}),
        ("/ws/queue", (200, '{"length":5000}'), 12, set()),
        ("/ws/queue", (200, '{"length": 5001}'), 12, {"queue"}),
        ("/ws/queue", (502, "bad gateway"), 12, {"queue"}),
    ],
)
def test_what_other_answers_mean(
    stub: Receiver,
    check: Check,
    path: str,
    answer: tuple[int, str],
    code: int,
    failing: set[str],
) -> None:
    stub.pages[path] = answer
    statuses = check.statuses(stub.url, code=code)
    # The stub answers 404 to an upgrade.
    assert {name for name, status in statuses.items() if status == "fail"} == {
        "websocket",
        *failing,
    }


# Containers


def docker(tmp_path: Path, lines: str, code: int = 0) -> dict[str, str]:
    """Puts a `docker` in front that answers `compose ps` with these lines."""
    program = tmp_path / "docker"
    program.write_text(f'#!/bin/sh\ncat << "END"\n{lines}\nEND\nexit {code}\n')
    program.chmod(0o755)
    return {"PATH": f"{tmp_path}:{os.environ['PATH']}"}


@pytest.mark.parametrize(
    ("lines", "arguments", "status", "named"),
    [
        ("backend running healthy 0\ncaddy running  0", [], "ok", "2 containers"),
        ("backend running starting 0\ncaddy running  0", [], "ok", "2 containers"),
        ("backend running healthy 0\ncaddy exited  0", [], "fail", "caddy has ended with code 0"),
        ("backend exited healthy 0\ncaddy running  0", [], "fail", "backend has ended with code 0"),
        ("backend running unhealthy 0\ncaddy running  0", [], "fail", "backend is unhealthy"),
        ("backend running healthy 0\ncaddy restarting  1", [], "fail", "restarting, after code 1"),
        ("backend running healthy 0\ncaddy exited  137", [], "fail", "with code 137"),
        ("backend created  0\ncaddy paused  0", [], "fail", "backend is created, caddy is paused"),
        ("", [], "skipped", "no container"),
        ("", ["--docker"], "fail", "no container"),
        ("backend exited  1", ["--no-docker"], "skipped", "not asked"),
    ],
)
def test_containers(
    service: Service,
    check: Check,
    tmp_path: Path,
    lines: str,
    arguments: list[str],
    status: str,
    named: str,
) -> None:
    check.environ = docker(tmp_path, lines)
    code = 15 if status == "fail" else 0
    result = check.json(*arguments, service.base, code=code)["checks"][4]
    assert result["status"] == status
    assert named in result["message"]


def test_a_docker_that_does_not_answer(service: Service, check: Check, tmp_path: Path) -> None:
    check.environ = docker(tmp_path, "Cannot connect to the Docker daemon", code=1)
    assert check.statuses(service.base, code=0)["containers"] == "skipped"
    assert check.statuses("--docker", service.base, code=15)["containers"] == "fail"


@pytest.mark.parametrize(
    ("dotenv", "environ", "lines", "address"),
    [
        ("", {}, "", "http://127.0.0.1:3001"),
        ("", {}, "backend running healthy 0", "https://api.yujian.team"),
        ("API_DOMAIN=a.test\n", {}, "backend exited  0", "https://a.test"),
        ("API_DOMAIN=a.test\nHTTPS_PUBLISH=8443\n", {}, "b running  0", "https://a.test:8443"),
        (
            "HTTPS_PUBLISH=10.0.0.1:443\n",
            {"API_DOMAIN": "b.test"},
            "b running  0",
            "https://b.test",
        ),
        (
            "API_DOMAIN=a.test\nHTTPS_PUBLISH=[::1]:8443\n",
            {},
            "b running  0",
            "https://a.test:8443",
        ),
        (
            "API_DOMAIN='a.test'\r\nHTTPS_PUBLISH=:08443\r\n",
            {},
            "b running  0",
            "https://a.test:8443",
        ),
        # Set and empty is the default, as Compose has it.
        ("API_DOMAIN=a.test\n", {"API_DOMAIN": ""}, "b running  0", "https://api.yujian.team"),
    ],
)
def test_the_default_address_is_one_that_is_published(
    check: Check,
    tmp_path: Path,
    dotenv: str,
    environ: dict[str, str],
    lines: str,
    address: str,
) -> None:
    (tmp_path / ".env").write_text(dotenv)
    check.environ = docker(tmp_path, lines) | environ
    result = run(
        SCRIPT, "--dry-run", "--json", "--timeout", "1", "--project", tmp_path, **check.environ
    )
    assert json.loads(result.stdout)["baseUrl"] == address


def test_containers_are_asked_where_caddy_is_published(
    service: Service, check: Check, tmp_path: Path
) -> None:
    """By the name of the certificate, at the port of this machine."""
    port = service.base.rpartition(":")[2]
    seen = tmp_path / "seen"
    curl = tmp_path / "curl"
    curl.write_text(f'#!/bin/sh\necho "$@" >> {seen}\nexec /usr/bin/curl "$@"\n')
    curl.chmod(0o755)
    (tmp_path / ".env").write_text(f"API_DOMAIN=a.test\nHTTPS_PUBLISH=127.0.0.1:{port}\n")
    check.environ = docker(tmp_path, "backend running healthy 0")
    # It speaks no TLS.
    result = check.json("--project", str(tmp_path), code=11)
    assert "--connect-to ::127.0.0.1: --stderr - " in seen.read_text()
    assert "curl" not in result["checks"][0]["message"]
    assert re.search(r"does not answer: .*(SSL|TLS)", result["checks"][0]["message"])


@pytest.mark.parametrize(
    ("publish", "to"),
    [
        ("8443", "::127.0.0.1:"),
        ("0.0.0.0:8443", "::127.0.0.1:"),
        ("10.0.0.1:8443", "::10.0.0.1:"),
        ("[::]:8443", "::[::1]:"),
        ("::1:8443", "::[::1]:"),
        ("[fd00:1::2]:8443", "::[fd00:1::2]:"),
    ],
)
def test_where_caddy_is_published_on_this_machine(
    check: Check, tmp_path: Path, publish: str, to: str
) -> None:
    seen = tmp_path / "seen"
    check.environ = docker(tmp_path, "backend running healthy 0")
    curl = tmp_path / "curl"
    curl.write_text(f'#!/bin/sh\necho "$@" >> {seen}\necho "curl: (7) no"\nexit 7\n')
    curl.chmod(0o755)
    (tmp_path / ".env").write_text(f"HTTPS_PUBLISH={publish}\n")
    check("--project", str(tmp_path), code=11)
    assert f"--connect-to {to} " in seen.read_text()


@pytest.mark.parametrize("publish", ["8443-8445", "127.0.0.1:", "0"])
def test_a_port_that_only_the_engine_knows(check: Check, tmp_path: Path, publish: str) -> None:
    check.environ = docker(tmp_path, "backend running healthy 0")
    (tmp_path / ".env").write_text(f"HTTPS_PUBLISH={publish}\n")
    assert "must be [address:]port" in check("--project", str(tmp_path), code=64)


def test_a_name_may_stand_for_another_address(service: Service, check: Check) -> None:
    port = service.base.rpartition(":")[2]
    for connect in ("127.0.0.1", f"127.0.0.1:{port}"):
        check("--connect", connect, f"http://localhost:{port}", code=0)
    check("--connect", f"127.0.0.1:{port}", "http://localhost:9", code=0)


@pytest.mark.parametrize(
    ("code", "said", "shown"),
    [
        (503, '["no worker serves"]', "answers 503: no worker serves"),
        (200, '["a \\"b\\"","c, d"]', 'it is degraded: a "b"; c, d'),
        (200, "[]", "it is degraded"),
    ],
)
def test_the_causes_are_shown(
    stub: Receiver, check: Check, code: int, said: str, shown: str
) -> None:
    stub.pages["/status"] = (code, f'{{"status":"degraded","causes":{said},"workers":[]}}')
    message = check.json(stub.url, code=11)["checks"][0]["message"]
    assert message.endswith(shown)


# Telling


def test_what_could_not_be_posted_is_tried_again(
    service: Service, check: Check, receiver: Receiver
) -> None:
    webhook = ("--webhook", receiver.url)
    receiver.status = 500
    base = down()
    assert "tried again" in check(*webhook, base, code=11)
    receiver.status = 200
    check(*webhook, base, code=11)
    assert len(receiver.posts) == 1
    receiver.status = 500
    assert "tried again" in check(*webhook, service.base, code=74)
    receiver.status = 200
    check(*webhook, service.base, code=0)
    check(*webhook, service.base, code=0)
    assert [post["status"] for post in receiver.posts] == ["firing", "resolved"]


async def test_the_service_itself_may_be_the_webhook(
    service: Service, check: Check, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text(f"{TOKEN}\n")
    hook = f"{service.base}/hooks/alertmanager"
    base = down()
    options = ("--webhook", hook, "--webhook-token", str(token), base)
    await asyncio.to_thread(check, *options, code=11)
    alerts = [
        message
        for message in await service.history("health")
        if message["data"].get("labels", {}).get("instance") == base
    ]
    assert [(m["event"], m["data"]["metric"], m["data"]["level"]) for m in alerts] == [
        ("health_alert", "HealthCheckHttp", "critical"),
        ("health_alert", "HealthCheckWebsocket", "critical"),
    ]


def test_a_dry_run_changes_nothing(check: Check, receiver: Receiver) -> None:
    options = ("--dry-run", "--webhook", receiver.url)
    base = down()
    assert "would post: {" in check(*options, base, code=11)
    result = check.json(*options, base, code=11)
    assert (result["dryRun"], result["posted"], result["changed"]) == (
        True,
        False,
        ["http", "websocket"],
    )
    assert receiver.posts == []
    assert not check.state.parent.exists()


def test_secrets_are_not_among_the_arguments_of_curl(
    check: Check, receiver: Receiver, tmp_path: Path
) -> None:
    seen, token = tmp_path / "seen", tmp_path / "token"
    token.write_text("a-token")
    curl = tmp_path / "curl"
    curl.write_text(f'#!/bin/sh\necho "$@" >> {seen}\nexec /usr/bin/curl "$@"\n')
    curl.chmod(0o755)
    check.environ = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "ALERT_WEBHOOK_URL": f"{receiver.url}/a-secret",
    }
    check("--webhook-token", str(token), down(), code=11)
    assert receiver.headers[0]["Authorization"] == "Bearer a-token"
    assert "status" in seen.read_text()
    assert "a-secret" not in seen.read_text()
    assert "a-token" not in seen.read_text()


# Usage


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--no-such"], "--no-such"),
        (["--timeout"], "--timeout"),
        (["--timeout", "0"], "--timeout"),
        (["--max-queue", "many"], "--max-queue"),
        (["--max-connections", "-1"], "--max-connections"),
        (["--webhook", "ftp://x"], "webhook"),
        (["--webhook-token", "/no/such"], "/no/such"),
        (["localhost:3001"], "base URL"),
        (["http://a", "http://b"], "two base URLs: http://a and http://b"),
    ],
)
def test_wrong_usage(check: Check, arguments: list[str], named: str) -> None:
    assert named in check(*arguments, code=64)


def test_help_names_every_option_and_exit_code(check: Check) -> None:
    text = check("--help", code=0)
    source = SCRIPT.read_text()
    options = {line.split(")")[0].strip() for line in source.splitlines() if " shift ;;" in line}
    assert len(options) == 9
    for name in [*options, "--json", "--dry-run", "--quiet", "--docker", "--insecure"]:
        assert re.search(rf"^  (-\w, )?{name}\b", text, re.MULTILINE), name
    codes = re.findall(r"\b(\d+) +[a-z]", text.partition("exit codes:")[2])
    assert codes == ["0", "11", "12", "13", "14", "15", "64", "69", "73", "74", "75"]


def test_a_run_that_overlaps_and_a_state_that_cannot_be_written(
    check: Check, tmp_path: Path
) -> None:
    check.state.parent.mkdir()
    with check.state.with_name("health.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        check(down(), code=75)
    check.state = tmp_path / "file" / "health"
    (tmp_path / "file").write_text("")
    check(down(), code=73)
