"""A transport that a test plays."""

from __future__ import annotations

import asyncio
from typing import Any


class Transport(asyncio.WriteTransport):
    """Keeps what is written.

    Attributes:
        written: each write.
        closed: whether it was aborted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.closed = False

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))

    def is_closing(self) -> bool:
        return self.closed

    def abort(self) -> None:
        self.closed = True

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        pass
