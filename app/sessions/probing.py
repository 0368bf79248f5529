"""Whether the clients that hold something still answer, asked of every worker.

Two questions go through the control stream. *Where are these sessions?* is asked for a client that
reconnects with the token of an older connection: one that answers a ping stays open, and the new
connection is another client (a duplicated tab); one that is silent is closed for its client's new
connection. *Do the holders of these users' places answer?* is asked for a user at the cap: of the
silent ones each worker closes the one that has been silent for the longest.

A worker that has a session says so at once, then whether it answers. Where there are few workers
and none on other machines, the others say that they have none; else no answer in time means that. One that
says too late that it has a session is asked to close it, since the new connection has its place by then.
Nothing goes by the clocks of machines, which may differ.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

from app.errors import ClientError, CloseCode
from app.ports import Slots
from app.sessions.asking import Channel, Questions, wait_for
from app.sessions.registry import Registry
from app.sessions.session import Session
from app.transport.connection import OPEN

logger = logging.getLogger("realtime.session")

FEW_WORKERS = 8
"""With no more others than this on the only machine each of them answers."""
ALL_ANSWER_SECONDS = 1.0
"""How long their answers are awaited."""
GRACE_SECONDS = 0.3
"""How long an answer is awaited where only workers that have a session answer."""
LATE_SHARE = 0.8
"""Workers of versions that go by the clock replace without a probe after this share of that time."""
VERDICT_SECONDS = 2.5
"""How long the answers about pings are awaited; a worker that has a session and sends no answer
counts as one whose client answers."""
GATHER_SECONDS = 0.02
"""Users at their cap that come within this time share a question."""
MAX_USERS = 1000
"""Users of one question."""
MAX_ENDED = 256
"""Questions whose outcome is remembered, for answers that come too late."""


class _Question:
    """What has been answered so far."""

    def __init__(self) -> None:
        self.answers = 0
        """Workers that have said what they have."""
        self.held: set[str] = set()
        """Sessions that workers have."""
        self.settled: set[str] = set()
        """Those of which it is known whether they answer a ping."""
        self.alive: set[str] = set()
        """Those that do."""
        self.users: Counter[str] = Counter()
        """Connections that do, by user."""
        self.news = asyncio.Event()
        """Set with each answer."""


class Prober:
    """Asks and answers for one worker.

    Args:
        channel: its way to the other workers.
        registry: its sessions.
        slots: tell how many other workers there are on this machine.
        is_alone: there are no workers on other machines.
    """

    def __init__(
        self, channel: Channel, registry: Registry, slots: Slots, *, is_alone: bool
    ) -> None:
        self._channel = channel
        self._registry = registry
        self._questions = Questions[_Question](channel, slots, is_alone=is_alone)
        self._ended: dict[int, set[str]] = {}
        """Sessions that stayed, by the number of a question about sessions that is over."""
        self._users: dict[str, asyncio.Future[int]] = {}
        self._to_replace: list[str] = []
        """Ids of sessions that `_replacing` will ask for, and"""
        self._replacing: asyncio.Task[set[str]] | None = None
        """the task, for all that join it."""
        self._sending: asyncio.Future[None] | None = None
        """Settled when the task before it has asked."""

    # Asking.

    async def replace_one(self, id: str) -> bool:
        """End a session on whatever worker has it; its client has a newer connection here.

        One that answers a ping stays: then this is another client. Returns whether it does.
        Thousands of clients may come back at once, so those of one moment share a message.

        Raises:
            BackplaneUnavailable, QueueOverflow: the old connection may stay.
        """
        if self._replacing is None or not self._to_replace:
            self._replacing = asyncio.create_task(self._replace_together(self._sending))
        self._to_replace.append(id)
        return id in await asyncio.shield(self._replacing)

    async def _replace_together(self, before: asyncio.Future[None] | None) -> set[str]:
        self._sending = sent = asyncio.get_running_loop().create_future()
        if before is not None:
            await before
        ids, self._to_replace = self._to_replace, []
        # The next ones need not wait for the answers to these.
        sent.set_result(None)
        return await self.replace(ids)

    async def replace(self, ids: list[str]) -> set[str]:
        """Close the sessions with these ids on whatever workers have them; those that live stay.

        Returns the ids of those.

        Raises:
            BackplaneUnavailable, QueueOverflow: the old ones may stay.
        """
        others = self._others()
        grace = GRACE_SECONDS if others is None else ALL_ANSWER_SECONDS
        question = _Question()
        with self._questions.open(question) as number:
            asked = time.time()
            await self._channel.send_and_read_back(
                {
                    "method": "replace",
                    "sids": ids,
                    "ask": number,
                    "all": others is not None,
                    "late": round((asked + grace * LATE_SHARE) * 1000),
                }
            )
            if others != 0:
                await wait_for(
                    question.news, grace, lambda: others is not None and question.answers >= others
                )
            await wait_for(
                question.news, VERDICT_SECONDS, lambda: question.held <= question.settled
            )
            stayed = question.alive | (question.held - question.settled)
        if len(self._ended) >= MAX_ENDED:
            del self._ended[next(iter(self._ended))]
        self._ended[number] = stayed
        return stayed

    async def count_answering(self, user: str) -> int:
        """How many connections of a user answer a ping, on all workers; silent ones are closed.

        At most one of them on each worker.
        """
        future = self._users.get(user)
        if future is None:
            loop = asyncio.get_running_loop()
            if not self._users:
                loop.call_later(GATHER_SECONDS, self._ask_for_users)
            future = self._users[user] = loop.create_future()
        return await asyncio.shield(future)

    def _ask_for_users(self) -> None:
        users, self._users = self._users, {}
        names = list(users)
        for start in range(0, len(names), MAX_USERS):
            chunk = {name: users[name] for name in names[start : start + MAX_USERS]}
            self._channel.start_task(self._probe_users(chunk))

    async def _probe_users(self, users: dict[str, asyncio.Future[int]]) -> None:
        question = _Question()
        until = asyncio.get_running_loop().time() + VERDICT_SECONDS
        try:
            with self._questions.open(question) as number:
                others = self._others()
                if others != 0:
                    await self._channel.send_and_read_back(
                        {"method": "probe", "users": list(users), "ask": number}
                    )
                question.users.update(await self._probe(users))
                if others != 0:
                    left = until - asyncio.get_running_loop().time()
                    await wait_for(
                        question.news,
                        left,
                        lambda: others is not None and question.answers >= others,
                    )
        except ClientError:
            pass  # the backplane is away: what is known here must do
        finally:
            for user, future in users.items():
                if not future.done():
                    future.set_result(question.users[user])

    def _others(self) -> int | None:
        """How many other workers there are; None where they are many or unknown."""
        count = self._questions.others()
        return None if count is None or count > FEW_WORKERS else count

    # Answering.

    def on_replace(self, message: dict[str, Any], sessions: list[Session]) -> None:
        """Another worker has connections that would take the place of these sessions."""
        if message.get("ask") is None:
            for session in sessions:
                session.end_replaced()
        elif sessions or message.get("all"):
            self._channel.start_task(self._settle(message, sessions))

    async def _settle(self, message: dict[str, Any], sessions: list[Session]) -> None:
        held = [session.id for session in sessions]
        try:
            await self._questions.answer("held", message, {"sids": held})
            if not held:
                return
            alive = await self._answering(sessions)
            for session in sessions:
                if session not in alive:
                    session.end_replaced()
            await self._questions.answer(
                "alive", message, {"sids": held, "alive": [session.id for session in alive]}
            )
        except ClientError as error:
            logger.info("Cannot send an answer about pings: %s", error.code)

    def on_probe(self, message: dict[str, Any]) -> None:
        """Another worker asks whether the holders of these users' places answer."""
        self._channel.start_task(self._count(message))

    async def _count(self, message: dict[str, Any]) -> None:
        try:
            users = await self._probe(message["users"])
            await self._questions.answer(
                "alive", message, {"sids": [], "alive": [], "users": users}
            )
        except ClientError as error:
            logger.info("Cannot send an answer about pings: %s", error.code)

    async def _probe(self, users: Iterable[str]) -> dict[str, int]:
        """Connections here that answer, by user; the one of each that is silent longest ends."""
        wanted = frozenset(users)
        holders: defaultdict[str, list[Session]] = defaultdict(list)
        for session in self._registry.by_id.values():
            if session.user in wanted and session.claimed and session.state == OPEN:
                holders[session.user].append(session)
        alive = await self._answering([one for held in holders.values() for one in held])
        counts = {}
        for user, held in holders.items():
            counts[user] = sum(session in alive for session in held)
            silent = [one for one in held if one not in alive and one.state == OPEN]
            if silent:
                oldest = min(silent, key=lambda session: session.seen)
                oldest.end(CloseCode.HEARTBEAT_TIMEOUT, "silent, and its user is at the cap")
        return counts

    async def _answering(self, sessions: list[Session]) -> set[Session]:
        answers = await asyncio.gather(*(one.answers_ping() for one in sessions))
        return {one for one, answered in zip(sessions, answers, strict=True) if answered}

    def on_answer(self, message: dict[str, Any]) -> None:
        """Another worker has answered a question of this one."""
        question = self._questions.answered_by(message)
        if question is None:
            self._on_late_answer(message)
            return
        if message["method"] == "held":
            question.answers += 1
            question.held.update(message["sids"])
        else:
            question.settled.update(message["sids"])
            question.alive.update(message["alive"])
            if "users" in message:
                question.answers += 1
                question.users.update(message["users"])
        question.news.set()

    def _on_late_answer(self, message: dict[str, Any]) -> None:
        """Have sessions closed whose place was taken before their worker said that it has them."""
        if message["to"] != self._channel.host_id or message["method"] != "held":
            return
        stayed = self._ended.get(message["ask"])
        late = [] if stayed is None else [sid for sid in message["sids"] if sid not in stayed]
        if late:
            self._channel.start_task(self._insist(late))

    async def _insist(self, sids: list[str]) -> None:
        try:
            await self._channel.send_to_all(
                {"method": "replace", "sids": sids, "host_id": self._channel.host_id}
            )
        except ClientError as error:
            logger.info("Cannot have sessions closed that were replaced: %s", error.code)
