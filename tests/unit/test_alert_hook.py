"""POST /hooks/alertmanager over a real server: alerts become messages of the type `health`."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from app.protocol.schema.limits import MAX_MESSAGES
from tests.support.http_side import HttpSide, http_side

TOKEN = "publish-token-of-the-tests"
AUTH = {"Authorization": f"Bearer {TOKEN}"}

ALERT = {
    "status": "firing",
    "labels": {"alertname": "HighCPUUsage", "severity": "warning", "instance": "backend:3001"},
    "annotations": {"summary": "The CPU is at 91 %", "value": "91.5"},
    "startsAt": "2026-02-03T10:00:00.123456789Z",
    "endsAt": "0001-01-01T00:00:00Z",
    "generatorURL": "http://prometheus:9090/graph",
    "fingerprint": "9f0c1d2e3a4b5c6d",
}
SINCE = 1_770_112_800_123


def notification(*alerts: Any, **changes: Any) -> dict[str, Any]:
    """As Alertmanager 0.25 writes it."""
    return {
        "version": "4",
        "groupKey": '{}:{alertname="HighCPUUsage"}',
        "truncatedAlerts": 0,
        "status": "firing",
        "receiver": "clients",
        "groupLabels": {"alertname": "HighCPUUsage"},
        "commonLabels": {},
        "commonAnnotations": {},
        "externalURL": "http://alertmanager:9093",
        "alerts": list(alerts),
    } | changes


def alert(**changes: Any) -> dict[str, Any]:
    return copy.deepcopy(ALERT) | changes


@pytest.fixture
async def side() -> AsyncIterator[HttpSide]:
    async with http_side(PUBLISH_TOKEN=TOKEN) as side:
        yield side


async def post(side: HttpSide, body: Any) -> aiohttp.ClientResponse:
    return await side.client.post("/hooks/alertmanager", json=body, headers=AUTH)


def stored(side: HttpSide) -> list[dict[str, Any]]:
    return [json.loads(message.envelope) for message in side.streams.messages.get("health", [])]


async def test_a_firing_alert_becomes_a_health_alert(side: HttpSide) -> None:
    answer = await post(side, notification(alert()))
    id = f"alertmanager-9f0c1d2e3a4b5c6d-{SINCE}-firing"
    assert answer.status == 200
    assert await answer.json() == {
        "messages": [{"id": id, "type": "health", "seq": 1, "epoch": "e1"}]
    }
    (message,) = stored(side)
    assert (message["type"], message["event"], message["id"]) == ("health", "health_alert", id)
    assert message["data"] == {
        "metric": "HighCPUUsage",
        "level": "warning",
        "message": "The CPU is at 91 %",
        "value": 91.5,
        "since": SINCE,
        "labels": ALERT["labels"],
        "source": "alertmanager",
    }


async def test_a_resolved_alert_becomes_a_health_recovery(side: HttpSide) -> None:
    answer = await post(side, notification(alert(status="resolved"), status="resolved"))
    assert answer.status == 200
    (message,) = stored(side)
    assert message["event"] == "health_recovery"
    assert message["data"]["level"] == "info"
    assert message["data"]["labels"]["severity"] == "warning"
    assert message["data"]["since"] == SINCE
    assert message["data"]["message"] == "Over: The CPU is at 91 %"


async def test_what_comes_again_is_stored_once_and_what_is_new_is_not_lost(side: HttpSide) -> None:
    other = alert(fingerprint="0123456789abcdef")
    again = alert(startsAt="2026-02-03T11:00:00Z")
    for body in (
        notification(alert()),
        notification(alert(), other),
        notification(alert(status="resolved"), other),
        notification(again),
        notification(again),
    ):
        assert (await post(side, body)).status == 200
    assert [(m["event"], m["id"].split("-")[1], m["data"]["since"]) for m in stored(side)] == [
        ("health_alert", "9f0c1d2e3a4b5c6d", SINCE),
        ("health_alert", "0123456789abcdef", SINCE),
        ("health_recovery", "9f0c1d2e3a4b5c6d", SINCE),
        ("health_alert", "9f0c1d2e3a4b5c6d", 1_770_116_400_000),
    ]


async def test_critical_alerts_go_first(side: HttpSide) -> None:
    critical = alert(labels={"alertname": "BackendDown", "severity": "critical"})
    await post(side, notification(alert(fingerprint="1"), critical))
    assert [draft.priority.name for draft in side.streams.drafts] == ["NORMAL", "HIGH"]


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ({}, "HighCPUUsage"),
        ({"description": "long", "value": "NaN"}, "long"),
        ({"summary": "short", "description": "long", "value": "much"}, "short"),
    ],
)
async def test_what_an_alert_may_leave_out(
    side: HttpSide, annotations: dict[str, str], message: str
) -> None:
    bare = alert(labels={"alertname": "HighCPUUsage"}, annotations=annotations)
    assert (await post(side, notification(bare))).status == 200
    data = stored(side)[0]["data"]
    assert (data["message"], data["level"]) == (message, "warning")
    assert "value" not in data


@pytest.mark.parametrize(
    ("value", "number"),
    [
        ("91.5", 91.5),
        ("-1e-3", -0.001),
        ("+5", 5.0),
        ("+Inf", None),
        ("1e999", None),
        ("1_000", None),
        (" 5", None),
        ("\u0661", None),
        ("0x10", None),
        ("", None),
    ],
)
async def test_which_values_are_numbers(side: HttpSide, value: str, number: float | None) -> None:
    assert (await post(side, notification(alert(annotations={"value": value})))).status == 200
    assert stored(side)[0]["data"].get("value") == number


async def test_an_empty_notification_is_fine(side: HttpSide) -> None:
    answer = await post(side, notification())
    assert await answer.json() == {"messages": []}


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ([], "'alerts'"),
        ({"version": "4"}, "'alerts'"),
        ({"version": "4", "alerts": {}}, "'alerts'"),
        (notification(version="5"), "'version'"),
        (notification(version=4), "'version'"),
        (notification(*[alert()] * (MAX_MESSAGES + 1)), "at most"),
        (notification("down"), "object"),
        (notification(None, 7), "object"),
    ],
)
async def test_what_is_wrong_is_reported_and_nothing_of_it_stored(
    side: HttpSide, body: Any, place: str
) -> None:
    answer = await post(side, body)
    got = await answer.json()
    assert (answer.status, got["code"]) == (400, "INVALID_PAYLOAD")
    assert place in got["error"]
    assert side.streams.drafts == []


@pytest.mark.parametrize(
    ("changes", "metric", "event"),
    [
        ({"labels": {"severity": "warning"}}, "alert", "health_alert"),
        ({"labels": None}, "alert", "health_alert"),
        ({"labels": {"alertname": 5}}, "5", "health_alert"),
        ({"annotations": {"value": 5}}, "HighCPUUsage", "health_alert"),
        ({"annotations": None}, "HighCPUUsage", "health_alert"),
        ({"status": "pending"}, "HighCPUUsage", "health_alert"),
        ({"status": ["resolved"]}, "HighCPUUsage", "health_alert"),
        ({"fingerprint": 7}, "HighCPUUsage", "health_alert"),
        ({"fingerprint": "a\nb"}, "HighCPUUsage", "health_alert"),
        ({"startsAt": None}, "HighCPUUsage", "health_alert"),
        ({"startsAt": "yesterday"}, "HighCPUUsage", "health_alert"),
        ({"startsAt": "9999-12-31T23:59:59+00:00"}, "HighCPUUsage", "health_alert"),
    ],
)
async def test_an_odd_alert_is_published_with_what_it_has_and_keeps_none_out(
    side: HttpSide, changes: dict[str, Any], metric: str, event: str
) -> None:
    good = alert(fingerprint="1")
    answer = await post(side, notification(good, alert(**changes), "down", alert(fingerprint="2")))
    assert answer.status == 200
    got = await answer.json()
    assert len(got["messages"]) == 3
    assert [(one["alert"], one["code"]) for one in got["skipped"]] == [(2, "INVALID_PAYLOAD")]
    messages = stored(side)
    assert [message["data"]["metric"] for message in messages] == [
        "HighCPUUsage",
        metric,
        "HighCPUUsage",
    ]
    assert messages[1]["event"] == event
    await post(side, notification(good, alert(**changes)))
    assert len(stored(side)) == 3, "what comes again is stored once"


async def test_an_alert_whose_text_has_changed_is_published_again(side: HttpSide) -> None:
    for text in ("at 91 %", "at 91 %", "at 97 %", "at 97 %"):
        answer = await post(side, notification(alert(annotations={"summary": text})))
        assert answer.status == 200
    assert [message["data"]["message"] for message in stored(side)] == ["at 91 %", "at 97 %"]


async def test_bodies_that_are_not_json_or_too_large(side: HttpSide) -> None:
    headers = AUTH | {"Content-Type": "application/json"}
    answer = await side.client.post("/hooks/alertmanager", data=b"{", headers=headers)
    assert (answer.status, (await answer.json())["code"]) == (400, "PARSE_ERROR")
    large = io.BytesIO(b" " * (4 * 1024 * 1024 + 1))
    answer = await side.client.post("/hooks/alertmanager", data=large, headers=headers)
    assert (answer.status, (await answer.json())["code"]) == (413, "MESSAGE_TOO_LARGE")


async def test_only_callers_with_the_token_may(side: HttpSide) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        answer = await side.client.post(
            "/hooks/alertmanager", json=notification(alert()), headers=headers
        )
        assert (answer.status, (await answer.json())["code"]) == (401, "UNAUTHORIZED")
    assert side.streams.drafts == []


async def test_without_a_token_no_caller_may() -> None:
    async with http_side() as side:
        answer = await post(side, notification(alert()))
        assert (answer.status, (await answer.json())["code"]) == (403, "FORBIDDEN")


async def test_alertmanager_repeats_its_call_when_an_alert_cannot_be_stored(
    side: HttpSide,
) -> None:
    second = alert(fingerprint="2")
    side.streams.evicting.add(f"alertmanager-9f0c1d2e3a4b5c6d-{SINCE}-firing")
    answer = await post(side, notification(alert(), second))
    assert (answer.status, (await answer.json())["code"]) == (503, "QUEUE_OVERFLOW")
    assert len(stored(side)) == 1
    side.streams.evicting.clear()
    side.streams.away = True
    answer = await post(side, notification(alert(), second))
    assert (answer.status, (await answer.json())["code"]) == (503, "BACKPLANE_UNAVAILABLE")
    side.streams.away = False
    assert (await post(side, notification(alert(), second))).status == 200
    assert len(stored(side)) == 2
