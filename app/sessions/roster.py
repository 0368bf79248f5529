"""The connections of every worker, for operators: lists of them, and their end.

Both go through the control stream: a worker that is asked answers what it has. Where the workers
are all on this machine their number is known, and the last answer ends the wait; workers of other
machines have `ELSEWHERE_SECONDS` to answer.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from app.errors import ClientError, CloseCode
from app.ports import Slots
from app.protocol.envelope import time_of_id
from app.protocol.schema.limits import MAX_ROWS
from app.sessions.asking import Channel, Questions, wait_for
from app.sessions.registry import Registry
from app.sessions.session import Session
from app.transport.connection import OPEN

logger = logging.getLogger("realtime.session")

ALL_ANSWER_SECONDS = 2.0
"""How long the workers of this machine may take, where there are no others."""
ELSEWHERE_SECONDS = 0.5
"""How long answers are awaited where it is unknown how many will come."""
QUESTIONS = 4
"""Questions that one worker has under way at a time; later ones wait."""

METHODS = frozenset({"list", "listed", "close", "closed"})
"""Of the messages between workers that are for it."""

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Query:
    """Which connections are meant."""

    user: str | None = None
    """Only those of this user."""
    type: str | None = None
    """Only those that are subscribed to this type."""
    by_user: bool = False
    """Whether the rows are users, in place of connections."""
    after: str = ""
    """The last row of the page before."""
    limit: int = 100
    """Rows of a page."""
    protocol: str | None = None
    """Only those that speak this one."""


@dataclass(slots=True)
class RosterPage:
    """What was found, in the order of ids or names."""

    rows: list[Row]
    total: int
    """Connections on all pages."""
    anonymous: int
    """Connections without a name among them."""
    more: bool
    workers: int
    """Workers that have answered."""
    complete: bool
    """Whether these are known to be all."""


@dataclass(slots=True)
class Closed:
    """What a request to close has done."""

    count: int
    workers: int
    complete: bool


@dataclass(slots=True)
class _Question:
    """What has been answered so far."""

    pages: list[tuple[list[Row], int, int]] = field(default_factory=list)
    count: int = 0
    answers: int = 1
    news: asyncio.Event = field(default_factory=asyncio.Event)


class Roster:
    """Asks and answers for one worker.

    Args:
        channel: its way to the other workers.
        registry: its sessions.
        slots: tell how many other workers there are on this machine.
        is_alone: there are no workers on other machines.
        host: the name of this machine in rows.
    """

    def __init__(
        self, channel: Channel, registry: Registry, slots: Slots, *, is_alone: bool, host: str
    ) -> None:
        self._channel = channel
        self._registry = registry
        self._host = host
        self._questions = Questions[_Question](channel, slots, is_alone=is_alone)
        self._places = asyncio.Semaphore(QUESTIONS)

    # Asking.

    async def find(self, query: Query) -> RosterPage:
        """One page of the connections, or of the users, of all workers.

        Raises:
            BackplaneUnavailable, QueueOverflow: the other workers cannot be asked.
        """
        message = {
            "method": "list",
            "user": query.user,
            "type": query.type,
            "protocol": query.protocol,
            "by_user": query.by_user,
            "after": query.after,
            "limit": query.limit,
        }
        question, complete = await self._ask(message)
        pages = [self._list(query), *question.pages]
        rows = _merged((row for page, _, _ in pages for row in page), by_user=query.by_user)
        return RosterPage(
            rows[: query.limit],
            sum(total for _, total, _ in pages),
            sum(anonymous for _, _, anonymous in pages),
            len(rows) > query.limit or any(len(page) > query.limit for page, _, _ in pages),
            question.answers,
            complete,
        )

    async def close(self, *, id: str | None = None, user: str | None = None, code: int) -> Closed:
        """Close one connection, or all of a user.

        Args:
            id: of the connection.
            user: whose connections are closed, without an `id`.
            code: `OPERATOR` or `UNAUTHORIZED` of `CloseCode`.

        Raises:
            BackplaneUnavailable, QueueOverflow: those of other workers may go on.
        """
        here = self._end(id, user, code)
        if here and id is not None:
            return Closed(here, 1, complete=True)
        question, complete = await self._ask(
            {"method": "close", "id": id, "user": user, "code": code}
        )
        return Closed(here + question.count, question.answers, complete)

    async def _ask(self, message: dict[str, Any]) -> tuple[_Question, bool]:
        """Ask the others; what they answered, and whether all of them have."""
        async with self._places:
            others = self._questions.others()
            question = _Question()
            if others == 0:
                return question, True
            wanted = None if others is None else others + 1
            with self._questions.open(question) as number:
                await self._channel.send_and_read_back({**message, "ask": number})
                await wait_for(
                    question.news,
                    ELSEWHERE_SECONDS if wanted is None else ALL_ANSWER_SECONDS,
                    lambda: wanted is not None and question.answers >= wanted,
                )
            return question, wanted is not None and question.answers >= wanted

    # Answering.

    def take(self, message: dict[str, Any]) -> None:
        """Carry out a message of another worker with one of `METHODS`."""
        method = message["method"]
        if method in {"listed", "closed"}:
            self._take_answer(message)
        elif message["host_id"] == self._channel.host_id:
            pass  # its own question
        elif method == "list":
            self._take_list(message)
        else:
            self._take_close(message)

    def _take_list(self, message: dict[str, Any]) -> None:
        query = Query(
            message.get("user"),
            message.get("type"),
            bool(message.get("by_user")),
            message.get("after") or "",
            min(message["limit"], MAX_ROWS),
            message.get("protocol"),
        )
        rows, total, anonymous = self._list(query)
        answer = {"rows": rows, "total": total, "anonymous": anonymous}
        self._channel.start_task(self._answer("listed", message, answer))

    def _take_close(self, message: dict[str, Any]) -> None:
        count = self._end(message.get("id"), message.get("user"), message["code"])
        self._channel.start_task(self._answer("closed", message, {"count": count}))

    def _take_answer(self, message: dict[str, Any]) -> None:
        question = self._questions.answered_by(message)
        if question is None:
            return
        if message["method"] == "listed":
            question.pages.append((message["rows"], message["total"], message["anonymous"]))
        else:
            question.count += message["count"]
        question.answers += 1
        question.news.set()

    async def _answer(self, method: str, message: dict[str, Any], what: dict[str, Any]) -> None:
        try:
            await self._questions.answer(method, message, what)
        except ClientError as error:
            logger.info("Cannot send an answer about connections: %s", error.code)

    # What this worker has.

    def _matching(self, query: Query) -> list[Session]:
        user, type, protocol = query.user, query.type, query.protocol
        return [
            session
            for session in self._registry.by_id.values()
            if session.welcomed
            and session.state == OPEN
            and (user is None or session.user == user)
            and (type is None or type in session.group.types)
            and (protocol is None or session.protocol == protocol)
        ]

    def _list(self, query: Query) -> tuple[list[Row], int, int]:
        """One row more than the page has, if there is one; connections, those without a name."""
        found = self._matching(query)
        anonymous = sum(session.user is None for session in found)
        if query.by_user:
            users = Counter(session.user for session in found if session.user is not None)
            names = heapq.nsmallest(query.limit + 1, (name for name in users if name > query.after))
            rows = [{"user": name, "connections": users[name]} for name in names]
        else:
            later = (session for session in found if session.id > query.after)
            first = heapq.nsmallest(query.limit + 1, later, key=lambda session: session.id)
            rows = [self._row(session) for session in first]
        return rows, len(found), anonymous

    def _row(self, session: Session) -> Row:
        return {
            "id": session.id,
            "user": session.user,
            "protocol": session.protocol,
            "types": sorted(session.group.types),
            "host": self._host,
            "worker": os.getpid(),
            "since": time_of_id(session.id),
        }

    def _end(self, id: str | None, user: str | None, code: int) -> int:
        if id is not None:
            one = self._registry.by_id.get(id)
            ending = [one] if one is not None and one.state == OPEN else []
        else:
            ending = [one for one in self._registry.all() if one.user == user and one.state == OPEN]
        reason = (
            "the token was revoked" if code == CloseCode.UNAUTHORIZED else "closed by an operator"
        )
        for session in ending:
            session.end(CloseCode(code), reason)
        return len(ending)


def _merged(rows: Iterable[Row], *, by_user: bool) -> list[Row]:
    """The rows of all workers in order; a connection that passes from one to another counts once."""
    found: dict[str, Row] = {}
    key = "user" if by_user else "id"
    for row in rows:
        known = found.get(row[key])
        if by_user and known is not None:
            known["connections"] += row["connections"]
        else:
            found[row[key]] = row
    return [found[name] for name in sorted(found)]
