"""HANDLERS: what is wrong with a module is one line at the start."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from app.errors import SettingsError
from app.handlers import load_handlers
from app.sessions.socketio.server import EnvironView


def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> list[Any]:
    name = f"handlers_{abs(hash(code))}"
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    given: list[Any] = []
    server: Any = given
    try:
        load_handlers(name, server)
    finally:
        sys.modules.pop(name, None)
    return given


def test_a_module_registers_its_handlers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(tmp_path, monkeypatch, "def register(sio): sio.append(1)") == [1]


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("", "no function register(sio)"),
        ("register = 7", "no function register(sio)"),
        ("async def register(sio): pass", "must be a plain function, not 'async def'"),
        ("def register(sio):\n    raise ValueError('a\\nb')", "ValueError: a b"),
        ("def register(): pass", "TypeError"),
        ("import nothing_of_that_name", "ModuleNotFoundError: No module named"),
        ("def register(sio)", "SyntaxError"),
        ("def register(sio):\n    raise NotImplementedError('no admin page')", "no admin page"),
    ],
)
def test_one_line_says_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, says: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, monkeypatch, code)
    text = str(caught.value)
    assert says in text
    assert text.startswith("HANDLERS=handlers_")
    assert "\n" not in text


def test_an_unknown_client_has_no_environ() -> None:
    """As with a plain server of python-socketio, which looks up None for it."""
    assert EnvironView().get(None) is None
