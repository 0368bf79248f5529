"""What a publisher's messages become, alone and among others of one call."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import pytest

from app.config import Settings
from app.errors import ClientError
from app.http.publishing import DraftMaker, make_draft
from app.types import Draft, Priority

SETTINGS = Settings()
NOW = 1_700_000_000.25
DATA = {"a": [1, "é", None]}

GOOD: list[dict[str, Any]] = [
    {"type": "status", "event": "one", "data": DATA},
    {"type": "status", "event": "two", "data": DATA},
    {"type": "status", "event": "one", "data": DATA, "priority": "high"},
    {"type": "status", "event": "one", "data": DATA, "priority": "low", "id": 'é"'},
    {"type": "system", "event": "one", "data": None},
]
BAD: list[Any] = [
    7,
    ["type"],
    {"type": "status", "event": "one", "data": 1, "more": 1},
    {"type": "status", "event": "one", "data": 1, "id": ""},
    {"type": "status", "event": "one", "data": 1, "id": [1]},
    {"type": "none", "event": "one", "data": 1},
    {"type": ["status"], "event": "one", "data": 1},
    {"type": {"status": 1}, "event": "one", "data": 1},
    {"event": "one", "data": 1},
    {"type": "status", "event": ["one"], "data": 1},
    {"type": "status", "event": "1", "data": 1},
    {"type": "status", "event": "gap", "data": 1},
    {"type": "status", "data": 1},
    {"type": "status", "event": "one"},
    {"type": "status", "event": "one", "priority": "wrong"},
    {"type": "status", "event": "one", "data": 1, "priority": "wrong"},
    {"type": "status", "event": "one", "data": 1, "priority": None},
    {"type": "status", "event": "one", "data": 1, "priority": ["high"]},
    {"type": "status", "event": "one", "data": 1, "priority": 1},
    {"type": "status", "event": "one", "data": "x" * SETTINGS.max_message_size},
]


def made(maker: DraftMaker, message: Any) -> object:
    """The draft without an id of its own, or the error."""
    try:
        draft = maker.make(message)
    except ClientError as error:
        return error.code, error.message
    body = draft.body if draft.once else re.sub(rb'"id":"[^"]*"', b'"id":""', draft.body, count=1)
    return draft.type, draft.event, draft.once and draft.id, draft.priority, draft.once, body


@pytest.mark.parametrize("decoded", [True, False])
def test_a_message_is_treated_alike_alone_and_after_any_other(decoded: bool) -> None:
    for before, message in itertools.product(GOOD + BAD, GOOD + BAD):
        maker = DraftMaker(SETTINGS, NOW, decoded=decoded)
        made(maker, before)
        alone = made(DraftMaker(SETTINGS, NOW, decoded=decoded), message)
        assert made(maker, message) == alone, (before, message)


def test_each_bad_message_is_refused() -> None:
    maker = DraftMaker(SETTINGS, NOW)
    for message in GOOD:
        maker.make(message)
    for message in BAD:
        with pytest.raises(ClientError):
            maker.make(message)


def test_the_envelope_is_complete() -> None:
    maker = DraftMaker(SETTINGS, NOW, decoded=True)
    drafts = [maker.make(message) for message in GOOD]
    for draft, message in zip(drafts, GOOD, strict=True):
        assert json.loads(draft.body + b"}") == {
            "id": draft.id,
            "type": message["type"],
            "timestamp": 1_700_000_000_250,
            "direction": "server-to-client",
            "event": message["event"],
            "data": message["data"],
        }
    assert [draft.priority for draft in drafts] == [
        Priority.NORMAL,
        Priority.NORMAL,
        Priority.HIGH,
        Priority.LOW,
        Priority.NORMAL,
    ]
    assert len({draft.id for draft in drafts}) == len(drafts)
    assert [draft.once for draft in drafts] == [False, False, False, True, False]
    assert all(isinstance(draft, Draft) and draft.accepted == NOW for draft in drafts)


def test_the_size_is_measured_only_where_it_is_not_known() -> None:
    large = {"type": "status", "event": "one", "data": "x" * SETTINGS.max_message_size}
    limit = SETTINGS.max_message_size
    for size in (None, limit + 1):
        with pytest.raises(ClientError, match="too large"):
            DraftMaker(SETTINGS, NOW, size).make(large)
    assert DraftMaker(SETTINGS, NOW, limit).make(large).body
    with pytest.raises(ClientError, match="too large"):
        make_draft(large, SETTINGS, NOW)
