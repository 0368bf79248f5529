"""Publish tokens with labels, clients' tokens that may publish, budgets, and the audit lines."""

from __future__ import annotations

import hmac
import logging
from typing import Any

import jwt
import pytest
from aiohttp.test_utils import make_mocked_request

from app.config import load
from app.errors import SettingsError
from app.http.audit import STRANGERS, Audit
from app.http.errors import HttpError
from app.http.writers import CLIENTS_LABEL, MAX_CLIENTS, Writer, Writers
from app.sessions.auth import TokenVerifier
from tests.support.http_side import HttpSide, http_side, worker_row

SECRET = "s" * 40
MESSAGE = {"type": "status", "event": "deployed", "data": 1}
TOKENS = "ci:first-token,ci:second-token,alerts:third:with:colons"


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def client_token(**claims: Any) -> str:
    return jwt.encode({"sub": "ann"} | claims, SECRET, "HS256")


async def post(side: HttpSide, token: str | None, value: Any = None) -> tuple[int, Any]:
    headers = bearer(token) if token else {}
    answer = await side.client.post("/ws/broadcast", json=value or MESSAGE, headers=headers)
    return answer.status, await answer.json()


def test_the_form_of_labelled_tokens() -> None:
    assert load({"PUBLISH_TOKENS": f" {TOKENS} "}).publish_tokens == (
        ("ci", "first-token"),
        ("ci", "second-token"),
        ("alerts", "third:with:colons"),
    )
    assert load({}).publish_tokens == ()


@pytest.mark.parametrize(
    "text",
    ["hunter2", "ci:", ":hunter2", "CI:hunter2", "c i:hunter2", "ci:hunter2,x:hunter2",
     "default:hunter2", "clients:hunter2", "none:hunter2", "ci:hunter2 x", "ci:hünter2",
     ",".join(f"l:hunter2{n}" for n in range(33))],
)  # fmt: skip
def test_a_wrong_list_is_refused_without_its_secrets(text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load({"PUBLISH_TOKENS": text})
    assert "PUBLISH_TOKENS" in str(caught.value)
    assert "nter2" not in str(caught.value)


async def test_each_of_the_tokens_writes() -> None:
    async with http_side(PUBLISH_TOKENS=TOKENS, PUBLISH_TOKEN="alone") as side:
        for token in ("first-token", "second-token", "third:with:colons", "alone"):
            assert (await post(side, token))[0] == 200, token
        for token in ("first", "ci", "ci:first-token", "firsttoken,", TOKENS, None):  # type: ignore[assignment]
            status, answer = await post(side, token)
            assert (status, answer["code"]) == (401, "UNAUTHORIZED"), token


async def test_the_tokens_are_compared_once_for_each_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared = []
    compare = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append(b) or compare(a, b))
    settings = load({"PUBLISH_TOKENS": "ci:first-token,alerts:third-token"})
    writers = Writers(settings, TokenVerifier(settings))
    request = make_mocked_request("POST", "/ws/broadcast", headers=bearer("third-token"))
    # The limits ask first, then the handler.
    assert writers.is_publisher(request)
    assert (await writers.require(request)).label == "alerts"
    assert compared == [b"first-token", b"third-token"]


async def test_without_any_token_publishing_is_disabled() -> None:
    async with http_side() as side:
        status, answer = await post(side, "x")
        assert (status, answer["code"]) == (403, "FORBIDDEN")
        assert "PUBLISH_TOKEN" in answer["error"]


@pytest.mark.parametrize("publish_token", ["", "t"])
async def test_a_client_publishes_with_its_own_token(publish_token: str) -> None:
    async with http_side(AUTH_SECRET=SECRET, PUBLISH_TOKEN=publish_token) as side:
        assert (await post(side, client_token(publish=True)))[0] == 200
        assert (await post(side, client_token(publish=["status"])))[0] == 200
        assert (await post(side, client_token(publish=True, types=["status"])))[0] == 200
        for claims in ({}, {"publish": False}, {"publish": []}, {"types": ["status"]}):
            status, answer = await post(side, client_token(**claims))
            assert (status, answer["code"]) == (403, "FORBIDDEN"), claims
        for claims in ({"publish": ["config"]}, {"publish": True, "types": ["stats"]}):  # type: ignore[assignment]
            status, answer = await post(side, client_token(**claims))
            assert (status, answer["code"]) == (403, "FORBIDDEN"), claims
            assert "'status'" in answer["error"]
        wrong = jwt.encode({"sub": "ann", "publish": True}, "x" * 40, "HS256")
        assert (await post(side, wrong))[0] == 401


async def test_of_an_array_each_message_is_checked() -> None:
    async with http_side(AUTH_SECRET=SECRET) as side:
        value = [MESSAGE, MESSAGE | {"type": "config"}, MESSAGE | {"type": "nope"}]
        status, answers = await post(side, client_token(publish=["status"]), value)
        assert status == 207
        assert [answer.get("code") for answer in answers] == [None, "FORBIDDEN", "INVALID_TYPE"]
        assert len(side.streams.drafts) == 1


@pytest.mark.parametrize(
    ("path", "body"), [("/status", {"state": "idle"}), ("/hooks/alertmanager", {})]
)
async def test_other_calls_take_publish_tokens_only(path: str, body: Any) -> None:
    async with http_side(AUTH_SECRET=SECRET, PUBLISH_TOKEN="t") as side:
        token = client_token(publish=True)
        answer = await side.client.post(path, json=body, headers=bearer(token))
        assert answer.status == 401


async def test_what_a_token_does_not_allow_cannot_be_read_over_http() -> None:
    async with http_side(AUTH_SECRET=SECRET, PUBLISH_TOKEN="t") as side:
        for token, path, status in (
            (client_token(types=["status"]), "/history?type=status", 200),
            (client_token(types=["status"]), "/history?type=config", 403),
            (client_token(types=["status"]), "/history?type=nope", 400),
            (client_token(types=["status"]), "/stats", 403),
            (client_token(types=["status"]), "/stats/series", 403),
            (client_token(types=[]), "/history?type=status", 403),
            (client_token(), "/history?type=config", 200),
            ("t", "/history?type=config", 200),
        ):
            answer = await side.client.get(path, headers=bearer(token))
            assert answer.status == status, path
            if status == 403:
                assert (await answer.json())["code"] == "FORBIDDEN"


# Budgets


async def test_a_label_has_a_budget_of_its_own() -> None:
    async with http_side(PUBLISH_TOKENS=TOKENS, PUBLISH_RATE_LIMIT="2") as side:
        now = 100.0
        side.context.writers._clock = lambda: now
        for _ in range(10):  # both tokens of the label
            assert (await post(side, "first-token"))[0] == 200
            assert (await post(side, "second-token"))[0] == 200
        answer = await side.client.post(
            "/ws/broadcast", json=MESSAGE, headers=bearer("first-token")
        )
        assert answer.status == 429
        assert (await answer.json())["code"] == "RATE_LIMITED"
        assert answer.headers["Retry-After"] == "1"
        assert (await post(side, "third:with:colons"))[0] == 200
        now += 1.0
        assert (await post(side, "second-token"))[0] == 200
        # An array counts each of its messages.
        assert (await post(side, "third:with:colons", [MESSAGE] * 100))[0] == 200
        answer = await side.client.post(
            "/ws/broadcast", json=MESSAGE, headers=bearer("third:with:colons")
        )
        assert (answer.status, answer.headers["Retry-After"]) == (429, "41")


async def test_each_client_has_a_budget_of_its_own() -> None:
    async with http_side(AUTH_SECRET=SECRET, PUBLISH_RATE_LIMIT="1") as side:
        side.context.writers._clock = lambda: 5.0
        for _ in range(10):
            assert (await post(side, client_token(publish=True)))[0] == 200
        assert (await post(side, client_token(publish=True)))[0] == 429
        assert (await post(side, client_token(publish=True, sub="bob")))[0] == 200


def test_a_writer_that_goes_on_is_not_forgotten_for_others() -> None:
    settings = load({"PUBLISH_TOKENS": TOKENS, "PUBLISH_RATE_LIMIT": "1"})
    writers = Writers(settings, TokenVerifier(settings), clock=lambda: 5.0)
    busy = Writer("ci")
    for number in range(MAX_CLIENTS + 1):
        if number % 1000 == 0:
            writers.charge(busy, 5)
        writers.charge(Writer(CLIENTS_LABEL, f"user{number}"), 1)
    with pytest.raises(HttpError) as refused:
        writers.check_budget(busy)
    assert refused.value.status == 429


# Audit


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    found = [vars(one) for one in caplog.records if one.name == "realtime.audit"]
    caplog.clear()
    return found


async def test_a_line_for_each_write(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "realtime.audit")
    async with http_side(PUBLISH_TOKENS=TOKENS, AUTH_SECRET=SECRET) as side:
        side.context.audit._clock = lambda: 1e9
        await post(side, "first-token", MESSAGE | {"id": "deploy-17"})
        (line,) = lines(caplog)
        assert line["who"] == "ci"
        assert (line["address"], line["call"], line["status"]) == (
            "127.0.0.1",
            "POST /ws/broadcast",
            200,
        )
        assert (line["types"], line["event"], line["id"]) == ("status", "deployed", "deploy-17")
        await post(side, "third:with:colons", [MESSAGE, {"type": "nope"}])
        (line,) = lines(caplog)
        assert (line["who"], line["status"], line["messages"], line["failed"]) == (
            "alerts",
            207,
            2,
            1,
        )
        await post(side, client_token(publish=True))
        assert lines(caplog)[0]["who"] == "user ann"
        await post(side, "first-token", {"type": "nope"})
        (line,) = lines(caplog)
        assert (line["who"], line["status"], line["code"]) == ("ci", 400, "INVALID_TYPE")
        await post(side, "wrong-secret")
        (line,) = lines(caplog)
        assert (line["who"], line["status"]) == ("-", 401)
        assert "secret" not in str(line).lower()


async def test_lines_are_bounded_and_what_is_left_out_is_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "realtime.audit")
    async with http_side(PUBLISH_TOKENS=TOKENS, AUDIT_RATE="3") as side:
        audit = side.context.audit
        audit._clock = lambda: 1e9
        for _ in range(5):
            await post(side, "first-token")
            await post(side, "wrong")
        found = lines(caplog)
        assert [line["who"] for line in found].count("ci") == 3
        assert [line["who"] for line in found].count("-") == STRANGERS
        audit.flush()
        (line,) = lines(caplog)
        assert (line["calls"], line["by"]) == (6, "-: 4, ci: 2")


async def test_no_lines_where_none_are_wanted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "realtime.audit")
    counted: list[tuple[str, int]] = []
    async with http_side(PUBLISH_TOKEN="t", AUDIT_RATE="0") as side:
        side.context.audit._count = lambda label, status: counted.append((label, status))
        await post(side, "t")
        await post(side, None)
    assert lines(caplog) == []
    assert counted == [("default", 200), ("none", 401)]


async def test_names_in_the_count_are_bounded() -> None:
    audit = Audit(1, clock=lambda: 0.0)
    for number in range(100):
        audit._leave_out(f"user {number}")
    assert len(audit._unwritten) <= 33
    assert audit._unwritten["others"] == 68


async def test_strangers_do_not_learn_what_the_lab_does_where_clients_need_a_token() -> None:
    async with http_side(AUTH_SECRET=SECRET, PUBLISH_TOKEN="t") as side:
        for token, shown in (
            (None, False),
            ("wrong", False),
            (client_token(types=["stats"]), False),
            (client_token(types=["status"]), True),
            (client_token(), True),
            ("t", True),
        ):
            answer = await side.client.get("/status", headers=bearer(token) if token else {})
            body = await answer.json()
            assert answer.status == 200
            assert body["status"] == "ok"
            assert ("presence" in body) == shown, token
    async with http_side(PUBLISH_TOKEN="t") as side:
        assert "presence" in await (await side.client.get("/status")).json()


async def test_strangers_learn_nothing_of_the_inside_where_clients_need_a_token() -> None:
    words = "it is a read-only replica (READONLY at 10.1.2.3)"
    for token, knows in (
        (None, False),
        ("wrong", False),
        (client_token(types=[]), True),
        ("t", True),
    ):
        async with http_side(AUTH_SECRET=SECRET, PUBLISH_TOKEN="t") as side:
            side.fault, side.writable = words, False
            side.warnings.append("no password")
            side.slots.show([worker_row(0, pid=4711, deaf=True)])
            headers = bearer(token) if token else {}
            status = await (await side.client.get("/status", headers=headers)).json()
            stats = await (await side.client.get("/ws/stats", headers=headers)).json()
            assert status["status"] == "unavailable"
            assert status["workers"] == stats["workers"]
            (worker,) = status["workers"]
            if knows:
                assert worker["pid"] == 4711
                assert status["version"] == "1.2.3"
                assert status["causes"] == [
                    "deaf: 1 of 1 workers receive no messages", f"backplane: {words}"
                ]  # fmt: skip
                assert status["backplane"]["warnings"] == ["no password"]
            else:
                assert worker == {"state": "ready", "connections": 0, "deaf": True}
                assert status["causes"] == ["deaf", "backplane"]
                assert status["backplane"] == {"status": "degraded", "writable": False}
                assert not status.keys() & {"version", "uptime", "presence"}
                assert stats.keys() >= {"totalConnections", "uniqueUsers"}


async def test_headers_of_answers() -> None:
    async with http_side() as side:
        for path in ("/status", "/nothing", "/ws/stats"):
            answer = await side.client.get(path)
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
            assert "Server" not in answer.headers
