"""Stores batches over the nodes of a Cluster: each type by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

from app.backplane.client import ANSWER_TIMEOUT, FAILURES
from app.backplane.cluster.client import ClusterBackplane
from app.backplane.faults import Fault, TooFewReplicas, combined, explain, of_fault
from app.backplane.publisher import UNPUBLISHED, StreamPublisher
from app.backplane.scripts import probe_key
from app.errors import BackplaneUnavailable
from app.types import Draft, Position

PATIENCE = 5.0
"""Seconds for which messages wait for a node that does not take them; then they are refused at once."""
PATIENCE_ALONE = 2.0
"""The same, where no replica can take its place."""
PROBE_INTERVAL = 0.5
"""Seconds between two attempts to write to a type that fails."""
PROBE_LIFE = 1000
"""Milliseconds for which what was written so is kept."""


class TypePublisher(StreamPublisher):
    """Stores messages of one type.

    Once they fail for longer than waiting is worth, they are refused at once until the node takes a
    write again, for which it is asked twice a second.

    Args:
        backplane: connected.
        seen: see `StreamPublisher`.
        type: the message type.
    """

    def __init__(
        self, backplane: ClusterBackplane, seen: Mapping[str, Position], type: str
    ) -> None:
        super().__init__(backplane, seen, only=type)
        self._cluster = backplane
        self._calls = backplane.publishing_calls(type)
        self._type = type
        self._failed_since: float | None = None  # loop time
        self._probing: asyncio.Task[None] | None = None

    async def store(
        self, drafts: Sequence[Draft], deadline: float
    ) -> list[Position | BackplaneUnavailable]:
        """See `StreamPublisher`."""
        now = asyncio.get_running_loop().time()
        patience = PATIENCE_ALONE if self._calls.is_alone else PATIENCE
        fault, since = self.fault, self._failed_since
        until = min(deadline, patience + (now if since is None else since))
        if fault is not None and until <= now:
            raise of_fault(fault, UNPUBLISHED)
        try:
            return await super().store(drafts, until)
        finally:
            if self.fault is not None:
                self._failed_since = now if since is None else since
                if self._probing is None or self._probing.done():
                    self._probing = self._cluster.spawn(self._probe(), f"probe {self._type}")
            else:
                self._failed_since = None

    def _note(self, type: str, fault: Fault) -> None:
        super()._note(type, replace(fault, of_server=False))  # of one node: the others are well

    async def _probe(self) -> None:
        """Write until that works."""
        command = (b"SET", probe_key(self._type), b"", b"PX", PROBE_LIFE)
        while self.fault is not None:
            await asyncio.sleep(PROBE_INTERVAL)
            try:
                answers = await self._calls.call([command, *self._last], ANSWER_TIMEOUT)
                (answer,) = self._confirmed(answers)
                if isinstance(answer, TooFewReplicas):
                    raise answer
            except FAILURES as error:
                self._note(self._type, explain(error))
            else:
                self._forget(self._type)
                self._failed_since = None


class ClusterPublisher:
    """As `StreamPublisher`; what fails for one type fails for no other.

    Args:
        backplane: connected.
        seen: see `StreamPublisher`.
    """

    def __init__(self, backplane: ClusterBackplane, seen: Mapping[str, Position]) -> None:
        self._publishers = {type: TypePublisher(backplane, seen, type) for type in backplane.types}

    @property
    def fault(self) -> Fault | None:
        """Why types cannot be published, and which; None: all can."""
        return combined(self.faults())

    def faults(self) -> dict[str, Fault]:
        """Why types cannot be published, by type."""
        faults = ((type, one.fault) for type, one in self._publishers.items())
        return {type: fault for type, fault in faults if fault is not None}

    async def store(
        self, drafts: Sequence[Draft], deadline: float
    ) -> list[Position | BackplaneUnavailable]:
        """Store a batch; see `StreamPublisher.store`.

        Args:
            drafts: messages of one type.
            deadline: loop time at which to give up.
        """
        (type,) = {draft.type for draft in drafts}
        return await self._publishers[type].store(drafts, deadline)
