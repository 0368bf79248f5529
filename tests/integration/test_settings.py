"""A wrong value stops the start with one line that names the setting."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from tests.support import REPO
from tests.support.service import Service

WRONG = [
    ("BIND", "nowhere"),
    ("WORKERS", "0"),
    ("WORKERS", "many"),
    ("HEARTBEAT_INTERVAL", "soon"),
    ("HEARTBEAT_TIMEOUT", "-5s"),
    ("MAX_CONNECTIONS_PER_USER", "-1"),
    ("MAX_TOTAL_CONNECTIONS", "ten"),
    ("BROADCAST_BATCH_SIZE", "0"),
    ("BROADCAST_FLUSH_INTERVAL", "50 parsecs"),
    ("DEFAULT_HISTORY_LIMIT", "101"),
    ("HISTORY_SIZE", "1.5"),
    ("RECOVERY_WINDOW", "x"),
    ("HISTORY_BYTES", "16 bananas"),
    ("MAX_QUEUE_SIZE", "-1"),
    ("MAX_MESSAGE_SIZE", ""),
    ("MESSAGE_TYPES", "error"),
    ("MESSAGE_TYPES", "a b"),
    ("LATEST_ONLY_TYPES", "weather"),
    ("DEFAULT_SUBSCRIPTIONS", "weather"),
    ("BACKPLANE_URL", "ftp://x"),
    ("BACKPLANE_FSYNC", "sometimes"),
    ("DRAIN_SECONDS", "1000s"),
    ("AUTH_SECRET", "short"),
    ("AUTH_JWKS_FILE", "/nowhere/at/all.json"),
    ("ALLOWED_ORIGINS", "lab.yujian.team"),
    ("TRUSTED_PROXIES", "300.1.1.1"),
    ("RATE_LIMIT", "-1"),
    ("COLLECTOR", "perhaps"),
]


@pytest.mark.parametrize(("name", "value"), [row for row in WRONG if row[1]])
def test_one_line_that_names_the_setting(name: str, value: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "app.config"],
        cwd=REPO,
        env=dict(os.environ) | {name: value},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode != 0, done.stdout
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert name in lines[0]


@pytest.mark.parametrize(
    ("name", "value"),
    [("HEARTBEAT_INTERVAL", "soon"), ("HANDLERS", "no.such.module"), ("DRAIN_SECONDS", "1000s")],
)
def test_the_service_does_not_start(name: str, value: str) -> None:
    settings: dict[str, Any] = {name: value}
    service = Service(**settings)
    process = service.spawn()
    try:
        assert process.wait(30) != 0
        service.assert_nothing_left()
        said = service.log
        assert "Traceback" not in said, said
        naming = [line for line in said.splitlines() if name in line]
        assert len(naming) == 1, said
        assert len(said.strip().splitlines()) == 1, said
    finally:
        service.destroy()


def test_heartbeats_are_checked_against_each_other() -> None:
    environ = dict(os.environ) | {"HEARTBEAT_INTERVAL": "30s", "HEARTBEAT_TIMEOUT": "20s"}
    done = subprocess.run(
        [sys.executable, "-m", "app.config"],
        cwd=REPO,
        env=environ,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode != 0
    assert "HEARTBEAT_" in done.stderr


async def test_settings_reach_the_wire() -> None:
    from tests.support.plain import PlainClient

    async with Service(
        WORKERS=1,
        HEARTBEAT_INTERVAL="5s",
        HEARTBEAT_TIMEOUT="15s",
        DEFAULT_SUBSCRIPTIONS="orders,config",
        MESSAGE_TYPES="orders,tickets",
        MAX_MESSAGE_SIZE="2KB",
        DEFAULT_HISTORY_LIMIT=7,
        RECOVERY_WINDOW="30s",
        MAX_QUEUE_SIZE=123,
    ) as service:
        client = await PlainClient.open(service)
        data = (await client.expect("connected"))["data"]
        assert (data["heartbeatInterval"], data["heartbeatTimeout"]) == (5000, 15_000)
        assert set(data["subscriptions"]) == {"orders", "config"}
        assert {"orders", "tickets", "status"} <= set(data["supportedTypes"])
        assert data["maxMessageSize"] == 2048
        assert data["recoveryWindow"] == 30_000
        await service.publish_all({"type": "tickets", "event": "t", "data": n} for n in range(9))
        got = await client.request("get_history", {"type": "tickets"})
        assert [one["data"] for one in got["data"]["messages"]] == list(range(2, 9))
        await client.send("ping", "x" * 2048)
        error = await client.expect("error")
        assert error["data"]["code"] == "MESSAGE_TOO_LARGE"
        assert (await service.get("/ws/queue")).body["maxSize"] == 123
        await client.close()
