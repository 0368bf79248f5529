"""Tokens by which a client proves which connection it had."""

from __future__ import annotations

import hmac

import pytest

from app.protocol.offsets import Offset
from app.sessions.resume_tokens import Pid, ResumeTokens
from app.types import Position

POSITIONS = {"status": Position("abc", 7)}


@pytest.mark.parametrize("size", [1, 32, 63, 64, 65, 200])
def test_they_are_signed_by_hmac(size: int) -> None:
    """Workers of other versions read them."""
    key = bytes(range(size))
    tokens = ResumeTokens(key)

    def proof(text: str) -> str:
        return hmac.digest(key, text.encode(), "sha256")[:12].hex()

    assert tokens.resume("c1") == f"c1.{proof('c1')}"
    assert tokens.resume("c1", "汉") == f"c1.{proof('resume|c1|汉')}"
    for user, name in ((None, "null"), ('a"b', r'"a\"b"')):
        pid = tokens.pid("c1", user, ("status",), False, POSITIONS)
        text = f"c1|yj1;status,abc,7|{name}"
        assert pid == f"{text}.{proof(text)}"
        assert tokens.read_pid(pid) == Pid("c1", Offset(POSITIONS, batch=False), user)
        assert tokens.read_owner(pid, user) == "c1"
        assert tokens.read_owner(pid, "another") is None
        assert ResumeTokens(key + b"x").read_pid(pid) is None
        assert tokens.read_pid(pid.replace(",7|", ",8|")) is None
