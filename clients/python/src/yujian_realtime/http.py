"""Calls over HTTP that are repeated while that may help."""

from __future__ import annotations

import asyncio
import json
import random as _random
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, Self

import aiohttp

from yujian_realtime.addresses import DEFAULT, base_url
from yujian_realtime.errors import PublishError
from yujian_realtime.failures import describe
from yujian_realtime.session import SessionUser

_REPEATED = frozenset({408, 429, 502, 503, 504})
"""Statuses after which the same call may succeed."""


class Answer(NamedTuple):
    """An HTTP answer of the service."""

    status: int
    body: Any
    """None where it is no JSON."""
    retry_after: float
    """Seconds that the service asks to wait; 0 where it does not ask."""


class HttpClient(SessionUser):
    """Calls of one service.

    Args:
        url: of the service.
        token: sent as `Authorization: Bearer`; empty: none.
        attempts: how often a call is made at most.
        patience: seconds after which no attempt is begun any more; less than the five minutes for
            which the service recognises a repeated id.
        timeout: seconds for one attempt.
        pause: shortest and longest pause between two attempts, in seconds; half of it is random.
        session: to call with, for proxies and certificates; by default one of its own.
        random: a number from 0 to 1.
        sleep: waits for some seconds.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        url: str = DEFAULT,
        token: str = "",
        *,
        attempts: int = 6,
        patience: float = 60.0,
        timeout: float = 15.0,
        pause: tuple[float, float] = (0.2, 5.0),
        session: aiohttp.ClientSession | None = None,
        random: Callable[[], float] = _random.random,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(session)
        self._base = base_url(url)
        self._token = token
        self._attempts = max(attempts, 1)
        self._patience = min(patience, 240.0)
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._pause = pause
        self._random = random
        self._sleep = sleep
        self._clock = clock

    async def __aenter__(self) -> Self:
        self._open_session()
        return self

    async def get(
        self, path: str, query: Mapping[str, str | int] | None = None, *, check: bool = True
    ) -> dict[str, Any]:
        """Object that a path answers.

        Args:
            path: of the service.
            query: of the address.
            check: whether an answer of 400 or more is an error.

        Raises:
            PublishError: the service refuses, or cannot be reached.
        """
        answer = await self.call("GET", path, query=query, check=check)
        if not isinstance(answer.body, dict):
            raise unreadable(answer.status)
        return answer.body

    async def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        query: Mapping[str, str | int] | None = None,
        check: bool = True,
    ) -> Answer:
        """Make a call; one that may succeed later is repeated.

        Raises:
            PublishError: the service refuses, or cannot be reached.
        """
        waited = 0.0
        attempt = 0
        while True:
            attempt += 1
            began = self._clock()
            answer, failure = await self._attempt(method, path, body, query or {})
            waited += self._clock() - began
            repeat = answer is None or (check and answer.status in _REPEATED)
            hint = answer.retry_after if answer is not None else 0.0
            pause = max(hint, self.pause(attempt))
            waited += pause
            if repeat and attempt < self._attempts and waited <= self._patience:
                await self._sleep(pause)
                continue
            if answer is None:
                raise PublishError("UNREACHABLE", failure)
            if check and not 200 <= answer.status < 300:
                raise refusal(answer)
            return answer

    def pause(self, attempt: int) -> float:
        """Seconds to wait after an attempt, the first of which is 1."""
        least, most = self._pause
        grown: float = min(most, least * 2 ** min(attempt - 1, 16))
        return grown * (0.5 + self._random())

    async def _attempt(
        self, method: str, path: str, body: object, query: Mapping[str, str | int]
    ) -> tuple[Answer | None, str]:
        if self._session is None:
            raise RuntimeError("Use it with 'async with'.")
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        url = self._base.joinpath(path.lstrip("/"))
        data = None
        if method not in {"GET", "HEAD", "DELETE"}:
            data = json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
            headers["Content-Type"] = "application/json"
        try:
            async with self._session.request(
                method,
                url.update_query({name: str(value) for name, value in query.items()}),
                data=data,
                headers=headers,
                timeout=self._timeout,
                allow_redirects=False,
            ) as response:
                text = await response.text()
        except TimeoutError:
            return None, f"No answer within {self._timeout.total:g} seconds."
        except (aiohttp.ClientError, OSError) as error:
            return None, describe(error)
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        return Answer(response.status, value, _seconds(response.headers.get("Retry-After"))), ""


def refusal(answer: Answer) -> PublishError:
    """The error that an answer stands for."""
    body = answer.body if isinstance(answer.body, dict) else {}
    code = str(body.get("code") or f"HTTP_{answer.status}")
    message = str(body.get("error") or f"The service answered with HTTP status {answer.status}.")
    return PublishError(code, message, answer.status)


def unreadable(status: int = 200) -> PublishError:
    """The error that an answer of another service stands for."""
    return PublishError("INVALID_ANSWER", "What answers there is no Yujian Presence.", status)


def _seconds(header: str | None) -> float:
    try:
        seconds = float(header or 0)
    except ValueError:
        return 0.0
    return min(seconds, 60.0) if seconds > 0 else 0.0
