"""The real checks take what the tables of the protocol say, and nothing else; every answer is as they say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.sync.client import ClientConnection, connect

from app.errors import ErrorCode
from app.protocol.envelope import RESERVED_EVENTS
from app.protocol.schema import actions, asyncapi, calls, events
from app.protocol.schema.json_schema import Schemas
from app.protocol.schema.kinds import AnyJson, structs
from app.protocol.schema.limits import MAX_REQUEST_SIZE
from app.setting_values import BUILT_IN_TYPES
from tests.support import REPO
from tests.support.service import TOKEN, Service
from tests.support.values import perhaps_wrong

pytestmark = pytest.mark.timeout(300)

TYPES = list(BUILT_IN_TYPES)
DOCUMENT = asyncapi.json_schemas(TYPES)
REFUSALS = {
    ErrorCode.INVALID_PAYLOAD,
    ErrorCode.INVALID_TYPE,
    ErrorCode.INVALID_ACTION,
    ErrorCode.SUBSCRIPTION_INVALID,
}
"""Codes that say that a request is not what the tables say."""


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    running = Service(
        TRUSTED_PROXIES="127.0.0.1",  # each call comes from an address of its own
        HTTP_RATE_LIMIT=0,
        HTTP_RATE_TIME=0,
        RATE_LIMIT_TIME=0,
        AUDIT_RATE=0,
    ).start()
    yield running
    running.stop()


def validator(name: str) -> Any:
    """Of one definition of the JSON schemas."""
    return jsonschema_rs.validator_for(
        {"$schema": DOCUMENT["$schema"], "$defs": DOCUMENT["$defs"], "$ref": f"#/$defs/{name}"}
    )


REQUESTS = {name: validator(f"request:{name}") for name in actions.ACTIONS}
EVENTS = {
    event.name: validator(f"event:{event.name}") for event in events.TABLE if not event.is_bare
}
STREAM_MESSAGE = validator("StreamMessage")


class Peer:
    """A client that looks at each envelope that comes."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.count = 0

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request; the one to a `ping` behind it where there is none."""
        self.count += 1
        name, ping = f"r{self.count}", f"p{self.count}"
        self.socket.send(json.dumps({"id": name} | request))
        self.socket.send(json.dumps({"action": "ping", "id": ping}))
        answer = None
        while True:
            envelope = self.read()
            if envelope.get("replyTo") == ping:
                return envelope if answer is None else answer
            if envelope.get("replyTo") == name and answer is None:
                answer = envelope

    def read(self) -> dict[str, Any]:
        """The next envelope, which is as the tables say."""
        envelope: dict[str, Any] = json.loads(self.socket.recv(60))
        event = envelope["event"]
        known = EVENTS.get(event) or STREAM_MESSAGE
        known.validate(envelope)
        return envelope


EXAMPLES = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def peer(service: Service) -> Iterator[Peer]:
    url = f"ws://127.0.0.1:{service.port}/ws/realtime?types="
    # Its pings take random numbers in a thread, which Hypothesis notices.
    with connect(url, max_size=None, ping_interval=None) as socket:
        peer = Peer(socket)
        assert peer.read()["event"] == "connected"
        yield peer


def obeys_what_schemas_cannot_say(request: dict[str, Any]) -> bool:
    payload = request.get("payload")
    if request["action"] == "subscribe" and isinstance(payload, dict):
        named = payload.get("types") or []
        return "all" in named or set(payload.get("recover") or {}) <= set(named)
    return True


@pytest.mark.parametrize("name", actions.ACTIONS)
def test_actions_are_taken_as_the_tables_say(peer: Peer, name: str) -> None:
    action = actions.ACTIONS[name]
    seen = {True: 0, False: 0}

    @EXAMPLES
    @given(perhaps_wrong(action.payload, TYPES))
    def check(payload: Any) -> None:
        request = {"action": name, "payload": payload}
        expected = REQUESTS[name].is_valid(request) and obeys_what_schemas_cannot_say(request)
        answer = peer.ask(request)
        code = answer["data"]["code"] if answer["event"] == "error" else None
        assert (code not in REFUSALS) == expected, (request, answer)
        if code == ErrorCode.MESSAGE_TOO_LARGE:
            assert len(json.dumps(request)) > MAX_REQUEST_SIZE - 20
        elif code is not None:
            assert code in {ErrorCode.INVALID_PAYLOAD, *action.errors}, (request, answer)
        elif action.reply is not None:
            assert answer["event"] == action.reply
        else:
            assert answer["event"] == "pong"
        seen[expected] += 1

    check()
    assert seen[True] > 5, "the values are good enough to be taken"
    assert seen[False] > 5 or isinstance(action.payload, AnyJson)


@settings(EXAMPLES, max_examples=30)
@given(name=st.text(max_size=12))
def test_no_other_action_is_taken(peer: Peer, name: str) -> None:
    if name not in actions.ACTIONS:
        answer = peer.ask({"action": name})
        assert answer["data"]["code"] == ErrorCode.INVALID_ACTION


def test_every_event_that_comes_by_itself_is_as_the_tables_say(service: Service) -> None:
    url = f"ws://127.0.0.1:{service.port}/ws/realtime?types=all&batch=1&history=3"
    with connect(url, max_size=None, ping_interval=None) as socket:
        peer = Peer(socket)
        seen = {peer.read()["event"]}
        session = requests.Session()
        session.headers["Authorization"] = f"Bearer {TOKEN}"
        assert session.post(f"{service.base}/status", json={"state": "idle"}).status_code == 200
        messages: Any = [{"type": "config", "event": "many", "data": n} for n in range(20)]
        assert session.post(f"{service.base}/ws/broadcast", json=messages).status_code == 200
        while not {"connected", "history_data", "batch_update"} <= seen:
            seen.add(peer.read()["event"])


# HTTP.

BODIES = [call for call in calls.TABLE if call.body is not None]
SCHEMAS = Schemas(TYPES, "#/$defs/")


def body_validator(call: calls.Call) -> Any:

    definitions = {struct.name: SCHEMAS.struct(struct) for struct in structs(call.body)}
    assert call.body is not None
    return jsonschema_rs.validator_for(
        {"$schema": DOCUMENT["$schema"], "$defs": definitions} | SCHEMAS.of(call.body)
    )


def is_clear(call: calls.Call, body: Any) -> bool:
    """Whether the schema says all that there is to say about a body."""
    if call.id == "publish" and isinstance(body, dict):
        id = body.get("id")
        event = body.get("event")
        reserved = isinstance(event, str) and event in RESERVED_EVENTS
        return not reserved and (not isinstance(id, str) or id.isprintable())
    if call.id == "postAlerts" and isinstance(body, dict):
        alerts = body.get("alerts")
        # What is no alert is skipped, and a fingerprint may not be unique.
        return not isinstance(alerts, list) or all(isinstance(alert, dict) for alert in alerts)
    return not (call.id == "setPresence" and isinstance(body, dict) and body.get("task") == "")


@pytest.mark.parametrize("call", BODIES, ids=lambda call: call.id)
def test_bodies_are_taken_as_the_tables_say(service: Service, call: calls.Call) -> None:
    valid = body_validator(call).is_valid
    session = requests.Session()
    session.headers["Authorization"] = f"Bearer {TOKEN}"
    seen = {True: 0, False: 0}
    assert call.body is not None

    @EXAMPLES
    @given(perhaps_wrong(call.body, TYPES))
    def check(body: Any) -> None:
        if not is_clear(call, body):
            return
        answer = session.request(
            call.method,
            service.base + call.path,
            data=json.dumps(body),
            headers={"Content-Type": "application/json"},
        )
        expected = valid(body)
        # The same id with other data is no matter of the body's form.
        accepted = answer.status_code in {200, 207, 409}
        assert accepted == expected, (body, answer.status_code, answer.text)
        if not accepted:
            assert answer.status_code == 400
        seen[expected] += 1

    check()
    assert min(seen.values()) > 5, seen


# Documents.


def test_asyncapi_is_valid(service: Service, node: Path) -> None:
    """By the schema of its authors."""
    schema = json.loads(
        (node / "node_modules/@asyncapi/specs/schemas/3.0.0-without-$id.json").read_text()
    )
    document = requests.get(f"{service.base}/asyncapi.json").json()
    jsonschema_rs.validator_for(schema).validate(document)
    document["channels"]["realtime"]["messages"]["x"] = 5
    assert not jsonschema_rs.validator_for(schema).is_valid(document), "the schema can refuse"


def test_schemathesis_finds_nothing(service: Service, tmp_path: Path) -> None:
    """What OpenAPI says holds: statuses, content types, schemas, methods, tokens, wrong values."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{service.base}/openapi.json"),
            *("--header", f"Authorization: Bearer {TOKEN}", "--checks", "all"),
            *("--phases", "examples,coverage,fuzzing", "--max-examples", "15", "--seed", "1"),
            # A WebSocket handshake, which it cannot make, and a stream that does not end.
            *("--exclude-path", "/ws/realtime", "--exclude-path", "/events"),
            *("--continue-on-failure", "--no-color", "--warnings", "off"),
        ],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(REPO),
            "SCHEMATHESIS_HOOKS": "tests.support.schemathesis_hooks",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "No issues found" in done.stdout
