"""The tree of exceptions is drawn in app/errors.py as it is; HTTP errors take codes of the one list."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from itertools import pairwise
from pathlib import Path

import app
from app import errors
from app.errors import BackplaneFull, ClientError, CloseCode, ErrorCode, NoRoomNow, PresenceError
from app.http.errors import HttpError


def exceptions() -> dict[str, type[BaseException]]:
    """Every exception that a module of `app/` defines, by name."""
    found: dict[str, type[BaseException]] = {}
    for module in pkgutil.walk_packages(app.__path__, "app."):
        for name, kind in vars(importlib.import_module(module.name)).items():
            is_exception = inspect.isclass(kind) and issubclass(kind, BaseException)
            if is_exception and kind.__module__ == module.name:
                assert found.setdefault(name, kind) is kind, f"{name} is defined twice"
    return found


def drawing() -> list[tuple[int, str, str]]:
    """Depth, name and remark of each line of the drawing."""
    rows = re.findall(
        r"^    ([ │├└─]*)(\w+)(?: {2,}(.*))?$", inspect.getdoc(errors) or "", re.MULTILINE
    )
    return [(len(lead) // 4, name, remark) for lead, name, remark in rows]


def test_every_exception_is_drawn_where_it_belongs() -> None:
    classes = exceptions()
    rows = drawing()
    assert sorted(name for _, name, _ in rows) == sorted(classes)
    assert rows[0][:2] == (0, "PresenceError")
    path: list[str] = []
    for depth, name, remark in rows:
        del path[depth:]
        assert len(path) == depth, name
        kind = classes[name]
        if path:
            assert kind.__mro__[1] is classes[path[-1]], f"{name} is drawn under {path[-1]}"
        path.append(name)
        if kind.__module__ != errors.__name__:
            assert remark.startswith(f"{kind.__module__}: "), name


def test_the_drawing_has_no_gap() -> None:
    assert all(after[0] <= before[0] + 1 for before, after in pairwise(drawing()))


def test_every_code_is_expected_by_a_test() -> None:
    tests = Path(__file__).parents[1]
    paths = (path for name in ("unit", "integration") for path in (tests / name).glob("*.py"))
    text = "".join(path.read_text() for path in paths)
    assert [code for code in ErrorCode if code not in text] == []
    names = [f"CloseCode.{code.name}" for code in CloseCode]
    assert [
        name
        for code, name in zip(CloseCode, names, strict=True)
        if name not in text and str(code.value) not in text
    ] == []


def test_every_code_has_a_status() -> None:
    assert all(400 <= code.status < 600 and code.advice for code in ErrorCode)


def test_what_is_worth_a_retry_says_so() -> None:
    assert not PresenceError().retryable
    assert not ClientError(ErrorCode.INVALID_TYPE, "").retryable
    assert not ClientError(ErrorCode.MAX_CONNECTIONS_EXCEEDED, "").retryable
    assert NoRoomNow("", 1000).retryable
    assert BackplaneFull("").retryable
    retried = {code for code in ErrorCode if HttpError.of(ClientError(code, "")).retryable}
    # At the door there is room again later, whatever the user has.
    assert retried == {code for code in ErrorCode if code.retryable} | {
        ErrorCode.MAX_CONNECTIONS_EXCEEDED
    }
