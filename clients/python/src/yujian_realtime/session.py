"""The HTTP session of a client: the caller's, or one that is opened and closed with the client."""

from __future__ import annotations

import aiohttp


class SessionUser:
    """What is entered with `async with`, and closed at its end.

    Args:
        session: the caller's, which stays open; None: one of its own.
    """

    def __init__(self, session: aiohttp.ClientSession | None) -> None:
        self._session = session
        self._owns_session = session is None

    async def close(self) -> None:
        """Close what was opened."""
        if self._owns_session and self._session is not None:
            await self._session.close()
            self._session = None

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _open_session(self) -> None:
        """Make a session, unless there is one."""
        if self._session is None:
            self._session = aiohttp.ClientSession()
