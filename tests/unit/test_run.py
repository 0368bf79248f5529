"""What `make run` does before it becomes gunicorn."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import pytest

from app.config import Settings, load
from workers import run


def test_first_dotenv_is_private_and_valid(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    assert run.write_dotenv(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    token = load({}, path).publish_token
    assert len(token) >= 32
    assert not run.write_dotenv(path)
    assert load({}, path).publish_token == token


@pytest.mark.parametrize(
    ("bind", "expected"),
    [
        ("127.0.0.1:3001", ["ws://127.0.0.1:3001/ws/realtime", "make listen\n"]),
        ("0.0.0.0:80", ["http://127.0.0.1:80/status", "URL=ws://127.0.0.1:80/ws/realtime"]),
        ("[::]:80", ["http://[::1]:80/status"]),
        ("unix:/run/p.sock", ["curl --unix-socket /run/p.sock http://localhost/status"]),
    ],
)
def test_banner_says_where_to_look(bind: str, expected: list[str]) -> None:
    text = run.banner(replace(Settings(), bind=bind, publish_token="hunter2"))
    for words in expected:
        assert words in text
    assert "hunter2" not in text
    assert "  Page  " in text


def test_without_the_page_the_banner_names_none() -> None:
    text = run.banner(replace(Settings(), page=False))
    assert "Page" not in text
    assert "\n\n  Socket  " in text
