"""`POST /hooks/alertmanager`: publishes the alerts of Prometheus' Alertmanager to clients.

It takes the webhook of Alertmanager, version 4
(https://prometheus.io/docs/alerting/latest/configuration/#webhook_config). Each alert becomes a
message of the type `health`: `health_alert` while it fires, `health_recovery` once it is resolved.

Alertmanager sends all alerts of a group again when one of them changes, and after every answer of
5xx. The id of a message is made of the alert's fingerprint, its start and its status, so that
within five minutes it is stored once, and later a client knows it again.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from aiohttp import web

from app.errors import ClientError, ErrorCode
from app.http.audit import Write
from app.http.context import HttpContext
from app.http.errors import json_response
from app.http.json_body import read_json
from app.http.publishing import Conflict, make_draft, publish
from app.protocol.envelope import decode_json, encode_json
from app.protocol.schema.limits import MAX_MESSAGES
from app.types import Draft

MAX_BODY = 4 * 1024 * 1024
"""Bytes of one call. An alert takes about 1 KB."""

_VERSION = "4"
_EVENTS = {"firing": "health_alert", "resolved": "health_recovery"}
_FINGERPRINT = re.compile(r"[A-Za-z0-9]{1,64}", re.ASCII)
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_NAMELESS = "alert"
"""Name of an alert that has none."""


async def post_alerts(request: web.Request, write: Write, context: HttpContext) -> web.Response:
    """Put each alert of a notification into the stream of `health`.

    One that lacks something is stored with what it has; one that is no alert at all is skipped and
    named in the answer. When one cannot be stored now, the answer is 503 and Alertmanager sends
    all of it again.
    """
    settings = context.settings
    writer = write.writer = await context.writers.require(request)
    value, _ = await read_json(request, MAX_BODY, context.received)
    now = context.now()
    drafts: list[Draft] = []
    skipped: list[dict[str, object]] = []
    for number, alert in enumerate(check_notification(value)):
        try:
            drafts.append(make_draft(read_alert(alert, value), settings, now))
        except ClientError as error:
            skipped.append({"alert": number, "error": error.message, "code": error.code})
    if skipped and not drafts:
        raise _invalid(f"None of the alerts can be stored: {skipped[0]['error']}")
    context.writers.charge(writer, len(drafts))
    write.messages, write.failed, write.types = len(drafts), len(skipped), {"health"}
    answers = await asyncio.gather(
        *(_publish(draft, context) for draft in drafts), return_exceptions=True
    )
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return json_response({"messages": answers} | ({"skipped": skipped} if skipped else {}))


async def _publish(draft: Draft, context: HttpContext) -> dict[str, object]:
    """Store an alert; one that was stored a moment ago with another text is stored again."""
    try:
        return await publish(draft, context)
    except Conflict:
        message = decode_json(draft.body + b"}")
        id = f"{draft.id}-{_digest(message['data'])}"
        again = {"type": draft.type, "event": draft.event, "data": message["data"], "id": id}
        return await publish(
            make_draft(
                again | {"priority": draft.priority.name.lower()}, context.settings, context.now()
            ),
            context,
        )


def check_notification(value: Any) -> list[Any]:
    """The alerts of a notification.

    Args:
        value: the body of the webhook.

    Raises:
        ClientError: INVALID_PAYLOAD, it is none.
    """
    if not isinstance(value, Mapping) or not isinstance(value.get("alerts"), list):
        raise _invalid("The body is not a notification of Alertmanager: 'alerts' must be a list.")
    if value.get("version") != _VERSION:
        raise _invalid(f"'version' of the notification must be \"{_VERSION}\".")
    alerts: list[Any] = value["alerts"]
    if len(alerts) > MAX_MESSAGES:
        raise _invalid(
            f"A notification may hold at most {MAX_MESSAGES} alerts: set 'max_alerts' in Alertmanager."
        )
    return alerts


def read_alert(alert: Any, notification: Mapping[str, Any]) -> dict[str, Any]:
    """Make a message, as `make_draft` takes it, of an alert, with whatever that has.

    Args:
        alert: one of the notification's.
        notification: what all of its alerts have in common stands in for what this one lacks.

    Raises:
        ClientError: INVALID_PAYLOAD, it is no object.
    """
    if not isinstance(alert, Mapping):
        raise _invalid("An alert must be an object.")
    labels, annotations = _texts(alert.get("labels")), _texts(alert.get("annotations"))
    common = _texts(notification.get("commonLabels"))
    status = next(
        (
            found
            for found in (alert.get("status"), notification.get("status"))
            if isinstance(found, str) and found in _EVENTS
        ),
        "firing",
    )
    name = labels.get("alertname") or common.get("alertname") or _NAMELESS
    fingerprint = alert.get("fingerprint")
    if not (isinstance(fingerprint, str) and _FINGERPRINT.fullmatch(fingerprint)):
        fingerprint = _digest(labels)
    since = _milliseconds(alert.get("startsAt"))
    severity = labels.get("severity", "warning")
    fires = status == "firing"
    data: dict[str, Any] = {
        "metric": name,
        "level": severity if fires else "info",
        "message": _text(name, annotations, fires),
        "labels": labels,
        "source": "alertmanager",
    }
    if since is not None:
        data["since"] = since
    number = _number(annotations.get("value"))
    if number is not None:
        data["value"] = number
    return {
        "type": "health",
        "event": _EVENTS[status],
        "data": data,
        "id": f"alertmanager-{fingerprint}-{since or 0}-{status}",
        "priority": "high" if severity == "critical" else "normal",
    }


def _texts(value: Any) -> dict[str, str]:
    """An object of texts, whatever it holds."""
    if not isinstance(value, Mapping):
        return {}
    return {name: text if isinstance(text, str) else str(text) for name, text in value.items()}


def _digest(value: Any) -> str:
    return hashlib.blake2b(encode_json(value), digest_size=8).hexdigest()


def _text(name: str, annotations: Mapping[str, str], fires: bool) -> str:
    text = annotations.get("summary") or annotations.get("description") or name
    return text if fires else f"Over: {text}"


def _milliseconds(value: Any) -> int | None:
    """A time such as 2026-02-03T10:00:00.5Z in Unix milliseconds; None for anything else."""
    try:
        moment = datetime.fromisoformat(value)
        return None if moment.tzinfo is None else round(moment.timestamp() * 1000)
    except (TypeError, ValueError, OverflowError):
        return None


def _number(text: str | None) -> float | None:
    """What the annotation `value` says, when it is a number that JSON knows, as Prometheus writes it."""
    if text is None or not _NUMBER.fullmatch(text):
        return None
    number = float(text)
    return number if math.isfinite(number) else None


def _invalid(message: str) -> ClientError:
    return ClientError(ErrorCode.INVALID_PAYLOAD, message)
