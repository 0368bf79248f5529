"""`yujian-realtime` without a service: addresses, endings, positions, publishing, text."""

from __future__ import annotations

import asyncio
import io
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import jwt
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from yujian_realtime import (
    ConnectionClosed,
    Draft,
    Gap,
    Message,
    Publisher,
    PublishError,
    Realtime,
    RealtimeError,
    Stored,
)
from yujian_realtime.addresses import base_url, socket_url
from yujian_realtime.closing import Backoff, Ending
from yujian_realtime.command import text
from yujian_realtime.command.calls import read_drafts
from yujian_realtime.command.exits import MEANINGS, Exit, Failure, failure_of
from yujian_realtime.command.load import percentile
from yujian_realtime.command.main import parser, run
from yujian_realtime.command.settings import Connection, read_dotenv, seconds
from yujian_realtime.command.watch import Table
from yujian_realtime.ledger import Ledger

SECRET = "0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize(
    ("given", "base", "socket"),
    [
        ("http://lab:3001", "http://lab:3001/", "ws://lab:3001/ws/realtime"),
        ("lab:3001", "http://lab:3001/", "ws://lab:3001/ws/realtime"),
        ("wss://lab.example/ws/realtime", "https://lab.example/", "wss://lab.example/ws/realtime"),
        ("https://lab/deep/", "https://lab/deep", "wss://lab/deep/ws/realtime"),
        ("wss://lab/deep/ws/realtime/", "https://lab/deep", "wss://lab/deep/ws/realtime"),
        ("http://lab/?types=a#b", "http://lab/", "ws://lab/ws/realtime"),
        ("http://[::1]:3001/", "http://[::1]:3001/", "ws://[::1]:3001/ws/realtime"),
    ],
)
def test_addresses(given: str, base: str, socket: str) -> None:
    assert (str(base_url(given)), str(socket_url(given))) == (base, socket)


@pytest.mark.parametrize("given", ["", "ftp://lab", "http://", "http://lab:port"])
def test_what_is_no_address(given: str) -> None:
    with pytest.raises(ValueError, match="no address"):
        socket_url(given)


@pytest.mark.parametrize(
    ("ending", "meaning"),
    [
        (Ending(1001), ("restart", True)),
        (Ending(1006), ("network", True)),
        (Ending(1008), ("user-limit", False)),
        (Ending(1008, error="INVALID_TYPE"), ("protocol", False)),
        (Ending(1012), ("restart", True)),
        (Ending(1013), ("full", True)),
        (Ending(1013, error="SERVICE_UNAVAILABLE"), ("restart", True)),
        (Ending(4401), ("token", False)),
        (Ending(4403), ("operator", False)),
        (Ending(4408), ("silent", True)),
        (Ending(4409), ("replaced", False)),
        (Ending(4413), ("slow", True)),
        (Ending(4429), ("flood", True)),
        (Ending(4999), ("network", True)),
        (Ending(status=400), ("protocol", False)),
        (Ending(status=403), ("origin", False)),
        (Ending(status=502), ("network", True)),
        (Ending(status=503), ("full", True)),
    ],
)
def test_what_an_ending_means(ending: Ending, meaning: tuple[str, bool]) -> None:
    assert ending.meaning == meaning


@pytest.mark.parametrize(
    ("ending", "hint"),
    [
        (Ending(1012, '{"retryAfter": 4321}'), 4.321),
        (Ending(1012, '{"retryAfter": 9e9}'), 60.0),
        (Ending(1012, '{"retryAfter": -1}'), None),
        (Ending(1012, '{"retryAfter": true}'), None),
        (Ending(1012, '{"retryAfter": NaN}'), None),
        (Ending(1012, "[]"), None),
        (Ending(1012, "bye"), None),
        (Ending(status=503, retry_after="7"), 7.0),
        (Ending(status=503, retry_after="Wed"), None),
        (Ending(status=503), None),
    ],
)
def test_when_the_service_asks_to_come_back(ending: Ending, hint: float | None) -> None:
    assert ending.hint == hint


def test_pauses_grow_at_random_up_to_the_longest_and_begin_anew() -> None:
    backoff = Backoff(0.1, 0.8, lambda: 0.5)
    assert [round(backoff.pause(Ending()), 3) for _ in range(5)] == [0.1, 0.2, 0.4, 0.8, 0.8]
    assert backoff.pause(Ending(1012, '{"retryAfter": 2000}')) == 2.0
    backoff.succeeded()
    assert backoff.pause(Ending(4429)) == 0.8
    for random, factor in ((0.0, 0.5), (0.999, 1.499)):
        pause = Backoff(1.0, 8.0, lambda value=random: value).pause(Ending())  # type: ignore[misc]
        assert pause == pytest.approx(factor)


def envelope(seq: int, type: str = "status", epoch: str = "e1") -> dict[str, Any]:
    return {"type": type, "event": "tick", "data": seq, "seq": seq, "epoch": epoch}


BUILT_IN = ("status", "health")


def places(**seqs: int) -> dict[str, dict[str, Any]]:
    return {type: {"epoch": "e1", "seq": seq, "from": seq + 1} for type, seq in seqs.items()}


def test_the_largest_history_is_asked_for_and_nothing_twice() -> None:
    ledger = Ledger()
    assert ledger.missing({"a": 1, "b": 1, "c": 0, "d": 9}, "abcd") == [
        {"types": ["a", "b"], "history": 1},
        {"types": ["c"]},
        {"types": ["d"], "history": 9},
    ]
    assert ledger.missing({"a": 1}, "a") == []


def test_what_the_service_may_refuse_is_asked_for_alone() -> None:
    ledger = Ledger()
    ledger.missing({"a": 1, "gone": 1}, ["a", "gone"])
    ledger.subscribed(places(a=4, gone=8))
    ledger.connected()
    known = {"types": ["a"], "recover": {"a": {"epoch": "e1", "seq": 4}}}
    wanted = {"a": 1, "gone": 1, "b": 1, "other": 0}
    assert ledger.missing(wanted, ["a", "b"]) == [
        known,
        {"types": ["gone"], "history": 1},
        {"types": ["b"], "history": 1},
        {"types": ["other"]},
    ]
    assert ledger.missing(wanted, ["a", "b"]) == []
    assert ledger.unwanted([], ["a", "b"]) == ["a", "b"], "the service would refuse the list"


def test_a_new_connection_recovers_and_each_message_comes_once() -> None:
    ledger = Ledger()
    ledger.missing({"status": 1, "health": 1}, BUILT_IN)
    ledger.subscribed(places(status=4, health=8))
    assert [one.origin for one in ledger.past("status", [envelope(4)])] == ["history"]
    taken = [ledger.live(envelope(seq)) for seq in (5, 5, 6)]
    assert [one and (one.seq, one.origin) for one in taken] == [(5, "live"), None, (6, "live")]
    ledger.counts.reconnects += 1
    ledger.connected()
    assert ledger.missing({"status": 1, "health": 1}, BUILT_IN) == [
        {
            "types": ["status", "health"],
            "recover": {
                "status": {"epoch": "e1", "seq": 6},
                "health": {"epoch": "e1", "seq": 8},
            },
        }
    ]
    ledger.subscribed({"status": {"epoch": "e1", "seq": 8, "from": 7}})
    origins = [message.origin for seq in (7, 8, 9) if (message := ledger.live(envelope(seq)))]
    assert origins == ["recovered", "recovered", "live"]
    assert (ledger.counts.received, ledger.counts.recovered) == (5, 2)


def test_a_gap_is_counted_and_stepped_over() -> None:
    ledger = Ledger()
    ledger.missing({"status": 0}, BUILT_IN)
    ledger.subscribed(places(status=0))
    data = {"first": 1, "last": 10, "epoch": "e1", "reason": "history"}
    assert ledger.gap("status", data) == Gap("status", 1, 10, "e1", "history")
    assert ledger.live(envelope(10)) is None
    ledger.gap("status", data | {"first": 11, "last": 12, "reason": "latest"})
    ledger.gap("status", {"first": 1, "last": 2, "epoch": "e2", "reason": "epoch"})
    assert ledger.live(envelope(3, epoch="e2")) is not None
    assert (ledger.counts.gaps, ledger.counts.missed) == (2, 10)


def test_what_is_not_wanted_any_more_is_forgotten() -> None:
    ledger = Ledger()
    ledger.missing({"a": 1, "b": 1}, "ab")
    ledger.live(envelope(1, "a"))
    assert ledger.unwanted(["b"], "ab") == ["a"]
    assert ledger.newest() == []
    assert ledger.missing({"a": 1}, "a") == [{"types": ["a"], "history": 1}]


async def test_a_subscription_that_is_not_read_drops_the_oldest_and_says_so() -> None:
    lab = Realtime()
    subscription = lab.subscribe("status", limit=2)
    gaps: list[Gap] = []
    lab.on("gap", gaps.append)
    for seq in (1, 2, 3):
        lab._deliver(Message.of(envelope(seq), "live"))
    assert gaps == [Gap("status", 1, 1, "e1", "slow")]
    assert lab.counts.missed == 1
    assert [(await anext(subscription)).seq for _ in range(2)] == [2, 3]
    subscription.close()
    with pytest.raises(StopAsyncIteration):
        await anext(subscription)


async def test_a_history_that_comes_with_the_answer_is_for_the_listeners() -> None:
    lab = Realtime()
    subscription = lab.subscribe("status")
    lab._ledger.missing({"status": 1}, BUILT_IN)
    asked: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
    lab._pending["p1"] = asked
    answer = {"event": "subscribed", "type": "config", "replyTo": "p1", "data": {}}
    past = {"event": "history_data", "type": "status", "replyTo": "p1"}
    # Both in one read: the caller has not run yet.
    await lab._receive(answer | {"data": {"types": places(status=4)}})
    await lab._receive(past | {"data": {"messages": [envelope(4)], "more": True}})
    assert (await asked).event == "subscribed"
    assert (await anext(subscription)).seq == 4
    # An answer to another request is for its caller only.
    lab._pending["p2"] = asyncio.get_running_loop().create_future()
    await lab._receive(past | {"replyTo": "p2", "data": {"messages": [envelope(3)], "more": True}})
    assert not subscription._messages


async def test_what_was_never_begun_says_so() -> None:
    lab = Realtime()
    with pytest.raises(RuntimeError, match="async with"):
        await lab.ping()
    with pytest.raises(RuntimeError, match="async with"):
        await anext(lab.subscribe("status"))
    with pytest.raises(ValueError, match="Name a type"):
        lab.subscribe()


async def test_a_handler_that_fails_affects_no_other(caplog: pytest.LogCaptureFixture) -> None:
    lab = Realtime()
    lab.on("message", lambda message: 1 / 0)
    seen: list[Message] = []
    stop = lab.on("message", seen.append)
    lab._deliver(Message.of(envelope(1), "live"))
    stop()
    lab._deliver(Message.of(envelope(2), "live"))
    assert [message.seq for message in seen] == [1]
    assert "ZeroDivisionError" in caplog.text


# Publishing

Handler = Callable[[Any], tuple[int, object] | tuple[int, object, Mapping[str, str]]]


class FakeService:
    """Answers as prepared, and keeps the requests."""

    def __init__(self, *answers: tuple[Any, ...]) -> None:
        self.answers = list(answers)
        self.bodies: list[Any] = []
        self.waits: list[float] = []

    async def __aenter__(self) -> Self:
        async def call(request: web.Request) -> web.Response:
            body = await request.json()
            self.bodies.append(body)
            status, answer, *headers = self.answers.pop(0)
            if status == 0:
                assert request.transport is not None
                request.transport.abort()
            if callable(answer):
                answer = answer(body)
            return web.json_response(answer, status=status or 200, headers=dict(*headers))

        app = web.Application()
        app.router.add_post("/ws/broadcast", call)
        self._server = TestServer(app)
        await self._server.start_server()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.close()

    def publisher(self, **options: Any) -> Publisher:
        async def sleep(seconds: float) -> None:
            self.waits.append(seconds)

        url = str(self._server.make_url("/"))
        return Publisher(url, "t", sleep=sleep, random=lambda: 0.5, **options)


def stored(body: dict[str, Any]) -> dict[str, Any]:
    return {"id": body["id"], "type": body["type"], "seq": 1, "epoch": "e"}


async def test_a_call_that_fails_for_now_is_repeated_with_the_same_id() -> None:
    busy = {"error": "Full.", "code": "QUEUE_OVERFLOW"}
    answers = [(503, busy), (0, {}), (503, busy, {"Retry-After": "3"}), (200, stored)]
    async with FakeService(*answers) as service, service.publisher() as publisher:
        place = await publisher.publish("status", "tick", {"a": 1})
    assert place.seq == 1
    assert len({body["id"] for body in service.bodies}) == 1
    assert len(service.bodies) == 4
    assert service.waits == [0.2, 0.4, 3.0]


@pytest.mark.parametrize(
    ("status", "code"), [(400, "INVALID_TYPE"), (401, "UNAUTHORIZED"), (409, "CONFLICT")]
)
async def test_a_call_that_is_refused_is_not_repeated(status: int, code: str) -> None:
    answer = (status, {"error": "No.", "code": code})
    async with FakeService(answer) as service, service.publisher() as publisher:
        with pytest.raises(PublishError) as caught:
            await publisher.publish("status", "tick", id="mine")
    assert (caught.value.code, caught.value.status, caught.value.id) == (code, status, "mine")
    assert not caught.value.retryable
    assert len(service.bodies) == 1


async def test_attempts_and_patience_end() -> None:
    busy = (503, {"error": "Later.", "code": "BACKPLANE_UNAVAILABLE"}, {"Retry-After": "50"})
    async with FakeService(busy, busy, busy) as service:
        async with service.publisher() as publisher:
            with pytest.raises(PublishError) as caught:
                await publisher.publish("status", "tick")
        assert caught.value.retryable
        assert service.waits == [50.0]
        service.answers[:] = [(0, {}), (0, {})]
        async with service.publisher(attempts=2) as publisher:
            with pytest.raises(PublishError) as caught:
                await publisher.publish("status", "tick")
        assert (caught.value.code, caught.value.status) == ("UNREACHABLE", 0)


@pytest.mark.parametrize(
    ("status", "answer", "code"),
    [
        (200, "<html>Log in</html>", "INVALID_ANSWER"),
        (200, {"welcome": "to another service"}, "INVALID_ANSWER"),
        (200, [{"id": 7}], "INVALID_ANSWER"),
        (200, [], "INVALID_ANSWER"),
        (200, [7], "INVALID_ANSWER"),
        (207, [{"error": "No."}], "INVALID_ANSWER"),
        (301, {}, "HTTP_301"),
        (308, "<html>", "HTTP_308"),
    ],
)
async def test_what_is_no_answer_of_the_service_is_an_error(
    status: int, answer: object, code: str
) -> None:
    answers = [(status, answer, {"Location": "/elsewhere"})] * 3
    async with FakeService(*answers) as service, service.publisher() as publisher:
        with pytest.raises(PublishError) as caught:
            await publisher.publish("status", "tick", id="mine")
        assert (caught.value.code, caught.value.status, caught.value.id) == (code, status, "mine")
        with pytest.raises(PublishError) as caught:
            await publisher.publish_many([Draft("status", "tick")])
        assert (caught.value.code, caught.value.status) == (code, status)
    assert len(service.bodies) == 2


async def test_an_attempt_that_is_waited_for_counts_for_the_patience() -> None:
    now = [0.0]

    def slow(_body: object) -> dict[str, str]:
        now[0] += 25.0
        return {"error": "Later.", "code": "SERVICE_UNAVAILABLE"}

    service = FakeService(*[(503, slow)] * 5)
    async with service, service.publisher(clock=lambda: now[0]) as publisher:
        with pytest.raises(PublishError):
            await publisher.publish("status", "tick")
    assert len(service.bodies) == 3


@pytest.mark.parametrize(
    ("header", "pause"),
    [("nan", 0.2), ("-5", 0.2), ("Fri, 27 Nov 2026 23:00:00 GMT", 0.2), ("59", 59.0), ("2", 2.0)],
)
async def test_what_retry_after_says(header: str, pause: float) -> None:
    busy = (429, {"error": "Later.", "code": "RATE_LIMITED"}, {"Retry-After": header})
    async with FakeService(busy, (200, stored)) as service, service.publisher() as publisher:
        await publisher.publish("status", "tick")
    assert service.waits == [pause]


async def test_of_a_batch_only_what_failed_for_now_is_repeated() -> None:
    def first(body: list[dict[str, Any]]) -> list[dict[str, Any]]:
        a, b, c = body
        full = {"id": b["id"], "error": "Full.", "code": "QUEUE_OVERFLOW"}
        bad = {"id": c["id"], "error": "No.", "code": "INVALID_TYPE"}
        return [stored(a), full, bad]

    answers = [(207, first), (200, lambda body: [stored(one) for one in body])]
    drafts = [Draft("status", name) for name in "abc"]
    async with FakeService(*answers) as service, service.publisher() as publisher:
        results = await publisher.publish_many(drafts)
    assert [type(result) for result in results] == [Stored, Stored, PublishError]
    assert [[one["event"] for one in body] for body in service.bodies] == [["a", "b", "c"], ["b"]]
    assert service.bodies[1][0]["id"] == drafts[1].id


async def test_a_large_batch_is_several_calls() -> None:
    def answer(body: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [stored(one) for one in body]

    drafts = [Draft("status", "tick", n) for n in range(1100)]
    drafts += [Draft("status", "big", "x" * 400_000) for _ in range(2)]
    async with FakeService(*[(200, answer)] * 5) as service, service.publisher() as publisher:
        results = await publisher.publish_many(iter(drafts))
    assert len(results) == 1102
    assert [len(body) for body in service.bodies] == [500, 500, 101, 1]


async def test_what_json_cannot_say_is_an_error_here() -> None:
    async with FakeService() as service, service.publisher() as publisher:
        with pytest.raises(ValueError, match="not JSON compliant"):
            await publisher.publish("status", "tick", float("nan"))


# The command


def test_every_exit_code_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(MEANINGS) == set(Exit)
    for arguments in (["--help"], ["watch", "--help"], ["token", "--help"]):
        with pytest.raises(SystemExit) as ended:
            parser().parse_args(arguments)
        assert ended.value.code == 0
        shown = capsys.readouterr().out
        for code in Exit:
            assert f"  {int(code)}  {MEANINGS[code]}" in shown


def connection(tmp_path: Path, dotenv: str = "", **environ: str) -> Connection:
    (tmp_path / ".env").write_text(dotenv)
    return Connection.of(None, None, None, environ, tmp_path)


@pytest.mark.parametrize(
    ("dotenv", "environ", "url"),
    [
        ("", {}, "http://127.0.0.1:3001"),
        ("BIND=127.0.0.1:4000\n", {}, "http://127.0.0.1:4000"),
        ("# c\n\nBIND=0.0.0.0:4000\n", {}, "http://127.0.0.1:4000"),
        ("BIND=[::]:4000\n", {}, "http://[::1]:4000"),
        ("BIND=h:1\nYUJIAN_URL=https://lab\n", {}, "https://lab"),
        ("BIND=h:1\n", {"BIND": "h:2"}, "http://h:2"),
        ("BIND=h:1\n", {"BIND": ""}, "http://h:1"),
    ],
)
def test_where_the_address_comes_from(
    tmp_path: Path, dotenv: str, environ: dict[str, str], url: str
) -> None:
    assert connection(tmp_path, dotenv, **environ).url == url
    assert Connection.of("http://x", None, None, environ, tmp_path).url == "http://x"


@pytest.mark.parametrize("dotenv", ["BIND=unix:/run/x\n", "BIND\n", "export A=b\n", "A = b\n"])
def test_a_dotenv_that_cannot_be_used_is_reported(tmp_path: Path, dotenv: str) -> None:
    with pytest.raises(Failure) as caught:
        connection(tmp_path, dotenv)
    assert caught.value.code == Exit.USAGE


def test_values_are_taken_as_they_stand(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text("A=b=c#d\nB=\n")
    assert read_dotenv(path) == {"A": "b=c#d", "B": ""}
    assert read_dotenv(tmp_path / "none") == {}


def test_where_tokens_come_from(tmp_path: Path) -> None:
    assert connection(tmp_path).reader_token() is None
    with pytest.raises(Failure) as caught:
        connection(tmp_path).require_publish_token()
    assert caught.value.code == Exit.TOKEN
    assert connection(tmp_path, "PUBLISH_TOKEN=p\n").require_publish_token() == "p"
    assert connection(tmp_path, "PUBLISH_TOKENS=ci:one,ops:two\n").publish_token == "one"
    assert connection(tmp_path, "YUJIAN_TOKEN=t\n", AUTH_SECRET=SECRET).reader_token() == "t"
    signed = connection(tmp_path, f"AUTH_SECRET={SECRET}\nAUTH_AUDIENCE=lab,x\nAUTH_ISSUER=me\n")
    claims = jwt.decode(signed.bearer(), SECRET, ["HS256"], audience="lab", issuer="me")
    assert claims["sub"] == "yujian"
    assert claims["exp"] - claims["iat"] == 600


@pytest.mark.parametrize(
    ("arguments", "expected", "lasts"),
    [
        ([], {}, 3600),
        (["--ttl", "5m", "--types", "status, health"], {"types": ["status", "health"]}, 300),
        (["--forever", "--publish"], {"publish": True}, None),
        (["--publish", "config"], {"publish": ["config"]}, 3600),
    ],
)
def test_token(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    expected: dict[str, object],
    lasts: int | None,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(".env").write_text(f"AUTH_SECRET={SECRET}\n")
    assert run(["token", "--user", "ann", *arguments]) == Exit.OK
    claims = jwt.decode(capsys.readouterr().out.strip(), SECRET, ["HS256"])
    issued = claims.pop("iat")
    assert (claims.pop("exp") - issued if lasts else claims.get("exp")) == lasts
    assert claims == {"sub": "ann"} | expected
    Path(".env").unlink()
    assert run(["token", "--user", "ann"]) == Exit.USAGE
    assert "AUTH_SECRET is not set" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConnectionClosed("network", 1006, "x"), Exit.UNREACHABLE),
        (ConnectionClosed("token", 4401, "x"), Exit.TOKEN),
        (ConnectionClosed("replaced", 4409, "x"), Exit.REFUSED),
        (PublishError("UNREACHABLE", "x"), Exit.UNREACHABLE),
        (PublishError("FORBIDDEN", "x", 403), Exit.TOKEN),
        (RealtimeError("INVALID_TYPE", "x"), Exit.REFUSED),
    ],
)
def test_how_errors_end_the_command(error: RealtimeError, code: Exit) -> None:
    assert failure_of(error, "http://lab").code == code


@pytest.mark.parametrize(
    ("given", "expected"), [("90", 90), ("90s", 90), ("5m", 300), ("1.5h", 5400), ("7d", 604_800)]
)
def test_durations(given: str, expected: float) -> None:
    assert seconds(given) == expected


@pytest.mark.parametrize("given", ["", "0", "-1", "1w", "h", "1h30m"])
def test_what_is_no_duration(given: str) -> None:
    with pytest.raises(ValueError, match="no duration"):
        seconds(given)


def test_nothing_of_a_message_controls_the_terminal() -> None:
    data = {"text": "\x1b]0;evil\x07\x9b31m\u202eabc\n"}
    shown = text.printable(text.summary("x", data))
    assert shown.isprintable()
    assert not set("\x1b\x07\x9b\u202e\n") & set(shown)
    assert text.printable("温度 ✓ é") == "温度 ✓ é"


@pytest.mark.parametrize(
    ("given", "columns", "fitted"),
    [("abcdef", 6, "abcdef"), ("abcdefg", 6, "abcde…"), ("温度温度", 6, "温度…"), ("", 0, "")],
)
def test_a_text_is_cut_to_the_columns_that_it_takes(given: str, columns: int, fitted: str) -> None:
    assert text.fit(given, columns) == fitted
    assert text.width(text.pad(given, columns + 3)) == columns + 3


def test_known_events_are_summed_up_and_others_are_json() -> None:
    status = {"presence": {"state": "idle", "task": "tea"}, "cpu": 12.4, "connections": 3}
    assert text.summary("status_update", status) == "idle  “tea”  cpu 12 %  connections 3"
    assert text.summary("health_alert", {"level": "critical", "message": "Hot"}) == "critical  Hot"
    for data in (None, [1], {}, {"a": "ü"}):
        assert text.summary("status_update", data) == text.compact(data)


def test_colour_is_for_terminals_only() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert text.has_colour(Terminal(), {"TERM": "xterm"})
    assert not text.has_colour(io.StringIO(), {"TERM": "xterm"})
    assert not text.has_colour(Terminal(), {"TERM": "xterm", "NO_COLOR": "1"})
    assert text.has_colour(Terminal(), {"TERM": "xterm", "NO_COLOR": ""})
    assert not text.has_colour(Terminal(), {"TERM": "dumb"})
    assert text.is_screen(Terminal(), {"TERM": "xterm", "NO_COLOR": "1"})


def test_the_table_fits_the_terminal_and_has_a_row_for_each_kind() -> None:
    lab = Realtime()
    for colour in (False, True):
        table = Table("http://lab:3001", colour)
        for seq in range(1, 31):
            data = {"host": f"host-{seq % 3}", "cpu": seq, "note": "温" * 50}
            one = envelope(seq) | {"timestamp": 1000 * seq, "data": data}
            table.add(Message.of(one | {"event": "health_alert"}, "live"))
            table.add(Message.of(one, "live"))
        drawn = table.draw(lab, 60, 40, now=40.0)
        assert len(drawn) == 2 + 6
        assert any("\x1b[31m" in line for line in drawn) is colour
        plain = [re.sub(r"\x1b\[\d+m", "", line) for line in drawn]
        assert max(map(text.width, plain)) <= 60
        assert [line for line in plain if "tick" in line and " 30 " in line and " 10 s " in line]
        assert len(table.draw(lab, 60, 6, now=40.0)) == 5


def test_lines_to_publish() -> None:
    good = ['{"type": "status", "event": "a", "data": 1, "id": "x"}\n', "\n"]
    assert [draft.id for draft in read_drafts(good)] == ["x"]
    for bad in ("[]", "{", '{"type": "status"}', '{"type": "a", "event": "b", "other": 1}'):
        with pytest.raises(Failure, match="Line 1"):
            list(read_drafts([bad]))


@pytest.mark.parametrize(
    "data", ["NaN", "[Infinity]", "1e999", '"\\ud800"', "[" * 100_000, "{", "9" * 5000]
)
def test_what_is_no_json_is_an_error_of_the_command_line(
    data: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for stdin in (data.encode(), f'{{"type": "a", "event": "b", "data": {data}}}'.encode()):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        lines = ["--lines"] if stdin != data.encode() else ["config", "x", "-"]
        assert run(["publish", "--publish-token", "t", *lines]) == Exit.USAGE
    assert run(["publish", "--publish-token", "t", "config", "x", data]) == Exit.USAGE
    assert "JSON" in capsys.readouterr().err


def test_a_secret_that_the_service_refuses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AUTH_SECRET", "é" * 15 + "e")
    assert run(["token", "--user", "ann"]) == Exit.USAGE
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert "32 bytes" in said.err
    monkeypatch.setenv("AUTH_SECRET", "é" * 16)
    assert run(["token", "--user", "ann"]) == Exit.OK


@pytest.mark.parametrize("lines", [["--lines"], ["config", "x", "-"]])
@pytest.mark.parametrize("stdin", [None, io.TextIOWrapper(io.BytesIO(b"\xff"), "utf-8")])
def test_what_cannot_be_read(
    lines: list[str],
    stdin: io.TextIOWrapper | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.stdin", stdin)
    if stdin is not None:
        stdin.seek(0)
    with pytest.raises(SystemExit) as ended:
        run(["publish", "--publish-token", "t", *lines])
    assert ended.value.code == Exit.USAGE
    assert "standard input is" in capsys.readouterr().err


def test_an_argument_that_is_not_in_utf_8(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["history", "\udcff"], ["publish", "config", "\udcff", "1"]):
        with pytest.raises(SystemExit) as ended:
            run(arguments)
        assert ended.value.code == Exit.USAGE
        assert "UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["status"], ["watch"], ["history", "status"]])
def test_an_output_that_is_closed(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("sys.stdout", None)
        assert run([*command, "--url", "http://127.0.0.1:9"]) == Exit.REFUSED
    assert "standard output is closed" in capsys.readouterr().err


def test_percentiles() -> None:
    assert percentile([], 0.5) is None
    assert [percentile(range(100), share) for share in (0, 0.5, 0.99, 1)] == [0, 50, 99, 99]
