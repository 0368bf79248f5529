"""`POST /hooks/alertmanager`: what Prometheus' Alertmanager notices, told to the clients.

It takes the webhook of Alertmanager, version 4
(https://prometheus.io/docs/alerting/latest/configuration/#webhook_config). Each alert becomes a
message of the type `health`: `health_alert` while it fires, `health_recovery` once it is resolved.

Alertmanager sends a whole group again when one alert of it changes, and after every answer of
5xx. The id of a message is made of the alert's fingerprint, its start and its status, so that
within five minutes it is stored once, and later a client knows it again.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from aiohttp import web

from app.errors import ClientError, ErrorCode
from app.http.context import HttpContext
from app.http.errors import json_response
from app.http.publishing import MAX_MESSAGES, make_draft, publish, read_json, require_publisher

MAX_BODY = 4 * 1024 * 1024
"""Bytes of one call. An alert takes about 1 KB."""

_VERSION = "4"
_EVENTS = {"firing": "health_alert", "resolved": "health_recovery"}
_MAX_FINGERPRINT = 64


async def post_alerts(request: web.Request, context: HttpContext) -> web.Response:
    """Put each alert of a notification into the stream of `health`.

    Nothing is stored of a notification that is wrong anywhere. Of one that is right every message
    is tried; when one cannot be stored, the answer is 503 and Alertmanager sends all of it again.
    """
    settings = context.settings
    require_publisher(request, settings)
    value, _ = await read_json(request, MAX_BODY)
    now = context.now()
    drafts = [make_draft(message, settings, now) for message in read_notification(value)]
    answers = await asyncio.gather(
        *(publish(draft, context) for draft in drafts), return_exceptions=True
    )
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return json_response({"messages": answers})


def read_notification(value: Any) -> list[dict[str, Any]]:
    """Make messages, as `make_draft` takes them, of a notification.

    Args:
        value: the body of the webhook.

    Raises:
        ClientError: INVALID_PAYLOAD, and where it is wrong.
    """
    if not isinstance(value, Mapping) or not isinstance(value.get("alerts"), list):
        raise _invalid("This is no notification of Alertmanager: it has no list of 'alerts'.")
    if value.get("version") != _VERSION:
        raise _invalid(f"'version' of the notification must be \"{_VERSION}\".")
    alerts = value["alerts"]
    if len(alerts) > MAX_MESSAGES:
        raise _invalid(
            f"A notification may hold at most {MAX_MESSAGES} alerts: set 'max_alerts' there."
        )
    return [_message(alert, f"alerts[{number}]") for number, alert in enumerate(alerts)]


def _message(alert: Any, place: str) -> dict[str, Any]:
    if not isinstance(alert, Mapping):
        raise _invalid(f"{place} must be an object.")
    labels, annotations = _texts(alert, "labels", place), _texts(alert, "annotations", place)
    status, fingerprint = alert.get("status"), alert.get("fingerprint")
    if not isinstance(status, str) or status not in _EVENTS:
        raise _invalid(f"{place}.status must be 'firing' or 'resolved'.")
    if (
        not (isinstance(fingerprint, str) and fingerprint.isalnum() and fingerprint.isascii())
        or len(fingerprint) > _MAX_FINGERPRINT
    ):
        raise _invalid(f"{place}.fingerprint must be letters and digits.")
    name = labels.get("alertname")
    if not name:
        raise _invalid(f"{place}.labels.alertname is missing.")
    since = _milliseconds(alert.get("startsAt"), f"{place}.startsAt")
    severity = labels.get("severity", "warning")
    fires = status == "firing"
    data = {
        "metric": name,
        "level": severity if fires else "info",
        "message": _text(name, annotations, fires),
        "since": since,
        "labels": labels,
        "source": "alertmanager",
    }
    number = _number(annotations.get("value"))
    if number is not None:
        data["value"] = number
    return {
        "type": "health",
        "event": _EVENTS[status],
        "data": data,
        "id": f"alertmanager-{fingerprint}-{since}-{status}",
        "priority": "high" if severity == "critical" else "normal",
    }


def _texts(alert: Mapping[str, Any], field: str, place: str) -> dict[str, str]:
    value = alert.get(field, {})
    if not isinstance(value, Mapping) or not all(isinstance(text, str) for text in value.values()):
        raise _invalid(f"{place}.{field} must be an object of texts.")
    return dict(value)


def _text(name: str, annotations: Mapping[str, str], fires: bool) -> str:
    text = annotations.get("summary") or annotations.get("description") or name
    return text if fires else f"Over: {text}"


def _milliseconds(value: Any, place: str) -> int:
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        moment = None
    if moment is None or moment.tzinfo is None:
        raise _invalid(f"{place} must be a time such as 2026-02-03T10:00:00.5Z.")
    return round(moment.timestamp() * 1000)


def _number(text: str | None) -> float | None:
    """What the annotation `value` says, when it is a number that JSON knows."""
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _invalid(message: str) -> ClientError:
    return ClientError(ErrorCode.INVALID_PAYLOAD, message)
