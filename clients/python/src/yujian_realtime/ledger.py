"""Where each type of message stands: what to ask for, and what of the received is new."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import Any, NamedTuple

from yujian_realtime.messages import Counts, Gap, Message, Origin


class Position(NamedTuple):
    """Place in the stream of a type."""

    epoch: str
    seq: int


class Ledger:
    """Positions of all types over all connections; does no I/O."""

    def __init__(self) -> None:
        self.counts = Counts()
        self._positions: dict[str, Position] = {}
        self._newest: dict[str, Message] = {}
        self._live_from: dict[str, int] = {}
        self._flowing: set[str] = set()
        self._ended: dict[str, str] = {}  # by type, the id of its last `unsubscribe`

    def connected(self) -> None:
        """A connection has begun: nothing flows on it yet."""
        self._flowing.clear()
        self._ended.clear()

    def ends(self, types: Iterable[str], id: str) -> None:
        """An `unsubscribe` is sent: what comes before its answer is of the subscription that ends."""
        self._ended.update(dict.fromkeys(types, id))

    def answered(self, id: str) -> None:
        """A request has been answered."""
        for type in [type for type, last in self._ended.items() if last == id]:
            del self._ended[type]

    def missing(self, wanted: Mapping[str, int], supported: Container[str]) -> list[dict[str, Any]]:
        """Payloads of the `subscribe` requests for what does not flow yet; from then on it does.

        Args:
            wanted: number of newest messages that come first, by type.
            supported: types that the service has for this client.
        """
        payloads: dict[object, dict[str, Any]] = {}
        for type, history in wanted.items():
            if type in self._flowing:
                continue
            self._flowing.add(type)
            # A list is refused as one: what the service may refuse is asked for alone.
            alone = type not in supported
            place = None if alone else self._positions.get(type)
            key = type if alone else "recover" if place is not None else history
            payload = payloads.setdefault(key, {"types": []})
            payload["types"].append(type)
            if place is not None:
                payload.setdefault("recover", {})[type] = place._asdict()
            elif history:
                payload["history"] = history
        return list(payloads.values())

    def unwanted(self, wanted: Container[str], supported: Container[str]) -> list[str]:
        """Forget types that are not wanted any more, and return those that the service sends."""
        gone = sorted(type for type in self._flowing if type not in wanted)
        for type in gone:
            self._flowing.discard(type)
            self._positions.pop(type, None)
            self._newest.pop(type, None)
        return [type for type in gone if type in supported]

    def refused(self, types: Iterable[str]) -> None:
        """A `subscribe` was refused for now: it is to be sent again."""
        self._flowing.difference_update(types)

    def newest(self) -> list[Message]:
        """The newest message of each type that flows."""
        return list(self._newest.values())

    def subscribed(self, places: Mapping[str, Mapping[str, Any]]) -> None:
        """A `subscribed` has come: where each type begins to be live."""
        for type, place in places.items():
            if type in self._ended:
                continue
            self._live_from[type] = int(place["seq"])
            if type not in self._positions:
                self._positions[type] = Position(str(place["epoch"]), int(place["from"]) - 1)

    def gap(self, type: str, data: Mapping[str, Any]) -> Gap | None:
        """A `gap` has come: go on behind it; None if it belongs to a subscription that ended."""
        if type in self._ended:
            return None
        gap = Gap(type, int(data["first"]), int(data["last"]), str(data["epoch"]), data["reason"])
        if gap.reason != "latest":
            self.counts.gaps += 1
            if gap.reason == "history":
                self.counts.missed += gap.last - gap.first + 1
        self._positions[type] = Position(gap.epoch, gap.last)
        return gap

    def past(self, type: str, envelopes: Iterable[Mapping[str, Any]]) -> list[Message]:
        """Messages of a `history_data` that follows a subscription."""
        if type not in self._flowing or type in self._ended:
            return []
        return [self._take(envelope, "history") for envelope in envelopes]

    def live(self, envelope: Mapping[str, Any]) -> Message | None:
        """A message of a stream; None if it was delivered before, or its subscription has ended."""
        type, seq, epoch = envelope["type"], envelope["seq"], envelope.get("epoch", "")
        if type in self._ended:
            return None
        known = self._positions.get(type)
        if known is not None and known.epoch == epoch and seq <= known.seq:
            return None
        recovered = seq <= self._live_from.get(type, 0)
        self.counts.received += 1
        if recovered and self.counts.reconnects:
            self.counts.recovered += 1
        return self._take(envelope, "recovered" if recovered else "live")

    def _take(self, envelope: Mapping[str, Any], origin: Origin) -> Message:
        message = Message.of(envelope, origin)
        position = Position(message.epoch or "", message.seq or 0)
        known = self._positions.get(message.type)
        if known is None or known.epoch != position.epoch or position.seq >= known.seq:
            self._positions[message.type] = position
            self._newest[message.type] = message
        return message
