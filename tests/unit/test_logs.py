"""Log lines: both formats, their fields, what never gets into them, and every library's logger."""

from __future__ import annotations

import json
import logging
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.logs import (
    _SECRETS,
    JsonFormatter,
    LineFormatter,
    TextFormatter,
    _hide,
    enter_worker,
    logconfig,
)

FORMATTERS: list[type[LineFormatter]] = [TextFormatter, JsonFormatter]


def record(message: str, *args: object, exc_info: Any = None, **extra: object) -> logging.LogRecord:
    made = logging.getLogger("app.test").makeRecord(
        "app.test", logging.WARNING, __file__, 1, message, args, exc_info, extra=extra
    )
    made.created = 1_795_478_400.0625
    made.process = 42
    return made


def test_text() -> None:
    line = TextFormatter().format(record("closed %d", 3, connection="c1", user="ann"))
    assert line == (
        "2026-11-24T00:00:00.062Z WARNING [42] app.test: closed 3 connection=c1 user=ann"
    )


def test_json() -> None:
    line = JsonFormatter().format(record("closed %d", 3, connection="c1", sizes=(1, Path("/x"))))
    assert json.loads(line) == {
        "time": "2026-11-24T00:00:00.062Z",
        "level": "warning",
        "logger": "app.test",
        "message": "closed 3",
        "pid": 42,
        "connection": "c1",
        "sizes": [1, "/x"],
    }


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_json_cannot_say(number: float) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    line = JsonFormatter().format(record("x", seconds=number, each=[number]))
    read = json.loads(line, parse_constant=refuse)
    assert read["seconds"] == str(number)
    assert read["each"] == [str(number)]


def test_no_input_can_forge_a_line() -> None:
    line = TextFormatter().format(record("user %s", "x\n2026 ERROR\x1b[2J", user="a\r\nb"))
    assert "\n" not in line
    assert "\x1b" not in line
    assert "user x\\x0a2026 ERROR\\x1b[2J user=a\\x0d\\x0ab" in line
    assert "\n" not in JsonFormatter().format(record("user %s", "x\ny"))


def test_each_control_character_is_escaped_also_when_it_is_the_only_one() -> None:
    for code in (*range(32), *range(127, 160)):
        line = TextFormatter().format(record("user %s", f"汉{chr(code)}b"))
        assert line.endswith(f"user 汉\\x{code:02x}b")


@pytest.mark.parametrize(
    ("created", "shown"),
    [
        (1_795_478_400.9996, "2026-11-24T00:00:00.999Z"),
        (1_795_478_400.0, "2026-11-24T00:00:00.000Z"),
        (1_795_478_401.5, "2026-11-24T00:00:01.500Z"),
        (0.25, "1970-01-01T00:00:00.250Z"),
    ],
)
def test_each_line_has_its_own_time(created: float, shown: str) -> None:
    made = record("said")
    made.created = created
    assert TextFormatter().format(made).startswith(f"{shown} ")


def test_no_input_can_forge_a_line_through_a_traceback() -> None:
    try:
        raise ValueError("x\n2026 ERROR\x1b[2J")
    except ValueError:
        text = TextFormatter().format(record("failed", exc_info=sys.exc_info()))
    first, *others = text.split("\n")
    assert first.endswith("failed")
    assert all(line.startswith("  ") for line in others)
    assert others[-1] == "  2026 ERROR\\x1b[2J"


def test_extra_cannot_replace_the_message() -> None:
    entry = json.loads(JsonFormatter().format(record("real", level="fake", pid=1)))
    assert (entry["message"], entry["level"], entry["pid"]) == ("real", "warning", 42)


@pytest.mark.parametrize("formatter", FORMATTERS)
def test_traceback(formatter: type[LineFormatter]) -> None:
    try:
        raise ValueError("the cause")
    except ValueError:
        line = formatter().format(record("failed", exc_info=sys.exc_info()))
    assert "Traceback" in line
    assert "ValueError: the cause" in line
    if formatter is JsonFormatter:
        assert json.loads(line)["traceback"].endswith("ValueError: the cause")


@pytest.mark.parametrize("formatter", FORMATTERS)
@pytest.mark.parametrize(
    "message",
    [
        "connecting to redis://user:hunter2@host:6379/0",
        "connecting to redis://:hunter2@host",
        "GET /ws/realtime?types=a&token=hunter2&user=b HTTP/1.1",
        "Authorization: Bearer hunter2",
        "token eyJhbGciOiJIUzI1NiJ9.hunter2.c2ln refused",
        "the token is hunter2",
    ],
)
def test_secrets_are_hidden(formatter: type[LineFormatter], message: str) -> None:
    made = formatter()
    made.hidden = ("hunter2",) if message.startswith("the") else ()
    line = made.format(record(message, header=message))
    assert "hunter2" not in line
    assert line.count("***") == 2


@pytest.mark.parametrize("formatter", FORMATTERS)
def test_secrets_in_a_traceback_are_hidden(formatter: type[LineFormatter]) -> None:
    try:
        raise ConnectionError("redis://:hunter2@host")
    except ConnectionError:
        line = formatter().format(record("failed", exc_info=sys.exc_info()))
    assert "hunter2" not in line


def test_what_is_no_secret_stays() -> None:
    line = TextFormatter().format(record("http://127.0.0.1:3001/status?types=token asked"))
    assert "http://127.0.0.1:3001/status?types=token asked" in line


def test_a_worker_names_itself_and_hides_its_secrets() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(TextFormatter())
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        enter_worker(3, ["abcdefgh", "", "abcdefghij", "e"])
    finally:
        root.removeHandler(handler)
    assert handler.format(record("got abcdefghij, abcdefgh", user="u")).endswith(
        "got ***, *** worker=3 user=u"
    )
    # A short one says nothing where it is part of a word, and is hidden where it is the token.
    line = handler.format(record("the header 'Authorization: Bearer e' was refused", user="eve"))
    assert line.endswith("the header 'Authorization: ***' was refused worker=3 user=eve")


def test_levels() -> None:
    assert logconfig("DEBUG", "text")["root"]["level"] == "DEBUG"


# Secrets in whatever a library or a client may say

SECRET = "hunter2"
PLACES = [
    "Authorization: {}",
    "authorization: bearer {}",
    "AUTHORIZATION: BEARER {}",
    "Authorization: Basic {}==",
    "proxy: basic {}=",
    "Bearer  {}",
    "Sec-WebSocket-Protocol: json, bearer.{}",
    "Cookie: a=b; sid={}",
    'Cookie: a="b"; sid={}; c=d',
    "{{'Host': 'x', 'Cookie': 'sid=\"{}\"', 'Accept': '*/*'}}",
    "(b'Cookie', b'sid={}')",
    "(b'X-Publish-Token', b'{}')",
    "x-publish-token: {}",
    "Set-Cookie: sid={}; HttpOnly",
    "GET /ws/realtime?user=a&TOKEN={}&types=b HTTP/1.1",
    "GET /ws/realtime?resume={}",
    "token%3D{}",
    '40{{"token":"{}"}}',
    '40{{"pid":"a|b|\\"{}\\".0","offset":"x"}}',
    "{{'resume': '{}', 'user': 'a'}}",
    '"{{\\"token\\": \\"{}\\"}}"',
    "auth: {{token: '{}'}}",
    "access_token={}",
    "redis://:{}@host",
]


@pytest.mark.parametrize("formatter", FORMATTERS)
@settings(max_examples=60, deadline=None)
@given(
    places=st.lists(st.sampled_from(PLACES), min_size=1, max_size=4),
    noise=st.text(alphabet="ab =\"'\\&?;,{}:\n", max_size=6),
    around=st.sampled_from(["message", "argument", "field", "nested", "exception", "repr"]),
)
def test_no_secret_in_any_line(
    formatter: type[LineFormatter], places: list[str], noise: str, around: str
) -> None:
    said = " ".join(place.format(SECRET) for place in places) + noise
    if around == "message":
        made = record(said)
    elif around == "argument":
        made = record("got %s", said)
    elif around == "repr":
        made = record("got %r", said)
    elif around == "field":
        made = record("got", detail=said)
    elif around == "nested":
        made = record("got", detail={"headers": [said]})
    else:
        try:
            raise ValueError(said)
        except ValueError:
            made = record("failed", exc_info=sys.exc_info())
    assert SECRET not in formatter().format(made)


def test_process_ids_and_settings_stay() -> None:
    text = TextFormatter().format(record("PUBLISH_TOKEN: must be printable", pid=123, worker=1))
    assert text.endswith("PUBLISH_TOKEN: must be printable pid=123 worker=1")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("bob worker=9", '"bob worker=9"'),
        ("a=b", '"a=b"'),
        ('a"b', '"a\\"b"'),
        ("it's", '"it\'s"'),
        ("a\u00a0b", '"a\u00a0b"'),
        ("", '""'),
        ("汉字", "汉字"),
        (7, "7"),
        (-7, "-7"),
        (True, "True"),
        (None, "None"),
    ],
)
def test_no_value_can_pass_for_another_field(value: object, shown: str) -> None:
    assert TextFormatter().format(record("m", user=value)).endswith(f"m user={shown}")


_PARTS = st.sampled_from(
    [
        *("Token", "=", ": ", "paſſword", "://u:p@h", "eyJhbGciOi.", "a.b", '"', "pid", " ", "x1"),
        *("0f" * 18, "-", ".", "ab" * 12, "BEARER ", "Cookie", "resume%3d", "\\", "secret", "42"),
    ]
)


@settings(max_examples=500)
@given(st.lists(_PARTS, max_size=12).map("".join))
def test_the_quick_look_misses_no_secret(text: str) -> None:
    assert LineFormatter().redacted(text) == _SECRETS.sub(_hide, text)
