"""Signed tokens of the service's own, by which a client proves which connection it had.

A plain client has a `resume`, a Socket.IO client a `pid`, which says as well where it stood.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass

from app.protocol.offsets import Offset, decode_offset, encode_offset
from app.types import Position

_BLOCK = 64
"""Bytes of a block of SHA-256."""


@dataclass(frozen=True, slots=True)
class Pid:
    """The earlier session of a Socket.IO client."""

    sid: str
    offset: Offset
    user: str | None


class ResumeTokens:
    """Makes and reads tokens.

    Args:
        key: the secret that all workers share.
    """

    def __init__(self, key: bytes) -> None:
        # HMAC (RFC 2104) with both of its hashes begun: every connect asks for two.
        block = (hashlib.sha256(key).digest() if len(key) > _BLOCK else key).ljust(_BLOCK, b"\0")
        self._inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in block))
        self._outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in block))
        # Most clients of a storm connect at the same position and ask for the same.
        self._positions: Mapping[str, Position] | None = None
        self._asked: tuple[tuple[str, ...], bool] = (), False
        self._offset = ""

    def resume(self, id: str, user: str | None = None) -> str:
        """The token that proves that a client was connection `id`, of this user."""
        return f"{id}.{self._proof(id if user is None else f'resume|{id}|{user}')}"

    def pid(
        self,
        id: str,
        user: str | None,
        types: tuple[str, ...],
        batch: bool,
        positions: Mapping[str, Position],
    ) -> str:
        """The token that proves a Socket.IO client's identity and its positions as it connects.

        Args:
            id: of its connection.
            user: its name, if it has one.
            types: what it is subscribed to.
            batch: whether it gets batches.
            positions: where each type stands; not changed afterwards.
        """
        if self._positions is not positions or self._asked != (types, batch):
            self._positions, self._asked = positions, (types, batch)
            self._offset = encode_offset(types, positions, batch)
        name = "null" if user is None else json.dumps(user)
        return self._sign(f"{id}|{self._offset}|{name}")

    def read_owner(self, token: str, user: str | None) -> str | None:
        """The connection id in a `resume` or `pid`; None when it is not ours, or another user's."""
        pid = self.read_pid(token)
        if pid is not None:
            return pid.sid if pid.user == user else None
        id = token.rpartition(".")[0]
        expected = self.resume(id, user).encode(errors="replace")
        return id if hmac.compare_digest(token.encode(errors="replace"), expected) else None

    def read_pid(self, token: str) -> Pid | None:
        """What a `pid` says; None when it is not one of ours."""
        text = self._check_signature(token)
        words = text.split("|", 2) if text is not None else []
        offset = decode_offset(words[1]) if len(words) == 3 else None
        return None if offset is None else Pid(words[0], offset, json.loads(words[2]))

    def _sign(self, text: str) -> str:
        return f"{text}.{self._proof(text)}"

    def _proof(self, text: str) -> str:
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(text.encode(errors="replace"))
        outer.update(inner.digest())
        return outer.digest()[:12].hex()

    def _check_signature(self, token: str) -> str | None:
        text = token.rpartition(".")[0]
        expected = self._sign(text)
        genuine = hmac.compare_digest(
            token.encode(errors="replace"), expected.encode(errors="replace")
        )
        return text if genuine else None
