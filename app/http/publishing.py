"""Messages of publishers, and `POST /ws/broadcast` (docs/PROTOCOL.md, "Publishing")."""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import orjson
from aiohttp import web

from app.config import Settings
from app.errors import ClientError, ErrorCode
from app.http.audit import Write
from app.http.context import HttpContext, Queued
from app.http.errors import HttpError, json_response
from app.http.json_body import read_json
from app.http.writers import Writer
from app.protocol.envelope import (
    RESERVED_EVENTS,
    body_middle,
    decode_json,
    encode_decoded,
    encode_json,
    new_id,
)
from app.protocol.schema.bodies import PUBLISHED
from app.protocol.schema.limits import EVENT_NAME, MAX_ID, MAX_MESSAGES
from app.types import Draft, Position, Priority

LARGEST_ARRAY = 4
"""How many messages of the largest size fit into one call."""

_FIELDS = tuple(field.name for field in PUBLISHED.fields)
_KNOWN_FIELDS = frozenset(_FIELDS)
_EVENT = re.compile(EVENT_NAME, re.ASCII)
_LONGEST_EVENT = 64
"""Characters; what is longer is not remembered."""
_PRIORITIES = {priority.name.lower(): priority for priority in Priority}

_Kind = tuple[str, str, Priority, bytes]
"""What messages have in common: type, event, rank, and the envelope between its id and its data."""


class DraftMaker:
    """Checks messages of one call and writes their envelopes.

    The messages of an array are much alike: what they have in common is checked and written once.

    Args:
        settings: of the service.
        now: Unix time in seconds.
        size: of all of them together, in bytes, when it is known: if that is no more than one may have, none is measured.
        decoded: they are parts of what `decode_json` has returned.
        writer: the publisher; None: the service itself.
    """

    __slots__ = ("_decoded", "_kinds", "_measures", "_now", "_settings", "_writer")

    def __init__(
        self,
        settings: Settings,
        now: float,
        size: int | None = None,
        *,
        decoded: bool = False,
        writer: Writer | None = None,
    ) -> None:
        self._settings = settings
        self._now = now
        self._measures = size is None or size > settings.max_message_size
        self._decoded = decoded
        self._writer = writer
        self._kinds: dict[tuple[object, object, object], _Kind] = {}
        """By type, event and priority."""

    def make(self, message: Any) -> Draft:
        """Check a publisher's message, `{type, event, data, priority?, id?}`, and write its envelope.

        Raises:
            ClientError: what is wrong with it.
            ValueError, TypeError: it is not `decoded`, and JSON cannot say its data.
        """
        if type(message) is not dict and not isinstance(message, Mapping):
            raise _invalid("A message must be an object with 'type', 'event' and 'data'.")
        if not _KNOWN_FIELDS.issuperset(message):
            name = next(name for name in message if name not in _KNOWN_FIELDS)
            raise _invalid(f"Unknown field {name[:64]!r}: a message has {', '.join(_FIELDS)}.")
        get = message.get
        id = get("id")
        if id is not None and not _is_id(id):
            raise _invalid(f"'id' must have 1 to {MAX_ID} printable characters.")
        key = get("type"), get("event"), get("priority", "normal")
        try:
            kind = self._kinds.get(key)
        except TypeError:  # one of them is an array or an object
            kind = None
        if kind is None:
            kind = self._check_kind(*key, has_data="data" in message)
        elif "data" not in message:
            raise _data_missing()
        stream, event, rank, middle = kind
        data = message["data"]
        if self._measures:
            self._check_size(message)
        chosen = id or new_id()
        encoded = b'{"id":%b%b%b' % (
            orjson.dumps(chosen),
            middle,
            encode_decoded(data) if self._decoded else encode_json(data),
        )
        return Draft(stream, event, chosen, encoded, self._now, rank, id is not None)

    def _check_kind(
        self, stream: object, event: object, priority: object, *, has_data: bool
    ) -> _Kind:
        settings, writer = self._settings, self._writer
        if not isinstance(stream, str) or stream not in settings.message_types:
            types = ", ".join(settings.message_types)
            raise ClientError(ErrorCode.INVALID_TYPE, f"'type' must be one of {types}.")
        if writer is not None and writer.types is not None:
            writer.check_type(stream)
        if not isinstance(event, str) or len(event) > _LONGEST_EVENT or not _is_event(event):
            raise _invalid(
                "'event' must be a letter and at most 63 more letters, digits or any of _.:/-"
            )
        if event in RESERVED_EVENTS:
            raise _invalid(f"The event name '{event}' is reserved; choose another.")
        if not has_data:
            raise _data_missing()
        if not isinstance(priority, str) or priority not in _PRIORITIES:
            raise _invalid(f"'priority' must be one of {', '.join(_PRIORITIES)}.")
        middle = body_middle(stream, event, int(self._now * 1000))
        kind = self._kinds[stream, event, priority] = stream, event, _PRIORITIES[priority], middle
        return kind

    def _check_size(self, message: Any) -> None:
        limit = self._settings.max_message_size
        if len(encode_json(message)) > limit:
            text = f"The message is too large: {limit} bytes are allowed."
            raise ClientError(ErrorCode.MESSAGE_TOO_LARGE, text)


def make_draft(message: Any, settings: Settings, now: float) -> Draft:
    """Check a message that is the only one of its call; see `DraftMaker.make`."""
    return DraftMaker(settings, now).make(message)


async def broadcast(request: web.Request, write: Write, context: HttpContext) -> web.Response:
    """`POST /ws/broadcast`: put one message or an array of them into the streams."""
    settings = context.settings
    writer = write.writer = await context.writers.require(request, clients=True)
    value, size = await read_json(
        request, settings.max_message_size * LARGEST_ARRAY, context.received
    )
    settled = asyncio.Event()
    call = PublishingCall(value, size, write, writer, context, settled.set)
    if not call.is_settled:
        await settled.wait()
    return json_response(*await call.outcome())


class PublishingCall:
    """One `POST /ws/broadcast` whose messages are on their way.

    Args:
        value: the body, decoded.
        size: of the body in bytes.
        write: is filled in.
        writer: the publisher, which is charged with the messages.
        context: parts of the service.
        settled: called when all its messages are settled, if they are not at once.

    Raises:
        ClientError: nothing of it is queued.
    """

    __slots__ = (
        "_context",
        "_is_array",
        "_items",
        "_queued",
        "_settled",
        "_unsettled",
        "_value",
        "_write",
    )

    def __init__(
        self,
        value: Any,
        size: int,
        write: Write,
        writer: Writer,
        context: HttpContext,
        settled: Callable[[], object],
    ) -> None:
        settings = context.settings
        self._context = context
        self._write = write
        self._value = value
        self._settled = settled
        self._unsettled = 0
        maker = DraftMaker(settings, context.now(), size, decoded=True, writer=writer)
        self._is_array = isinstance(value, list)
        if not self._is_array:
            context.writers.charge(writer, 1)
            draft = maker.make(value)
            write.messages = 1
            write.types, write.event = {draft.type}, draft.event
            write.id = draft.id if draft.once else None
            (item,) = context.publisher.submit_all([draft], self._note_settled)
            if isinstance(item, ClientError):
                raise item
            self._queued = [item]
            self._items: list[Queued | ClientError | Conflict] = [item]
        else:
            if len(value) > MAX_MESSAGES:
                raise _invalid(f"An array may hold at most {MAX_MESSAGES} messages.")
            # All are queued before the first is stored: they share batches and keep their order.
            context.writers.charge(writer, len(value))
            drafts: list[Draft] = []
            refused: list[tuple[int, ClientError]] = []
            for place, message in enumerate(value):
                try:
                    drafts.append(maker.make(message))
                except ClientError as error:  # without a traceback, which would be a cycle
                    refused.append((place, error.with_traceback(None)))
            self._items = [*context.publisher.submit_all(drafts, self._note_settled)]
            for refusal in refused:
                self._items.insert(*refusal)
            self._queued = [item for item in self._items if not isinstance(item, Exception)]
            write.messages = len(value)
            write.types = {item.draft.type for item in self._queued}
        # Those that have pushed out others of the same call are counted by now, as less than none.
        self._unsettled = len([item for item in self._queued if item.outcome is None])

    def _note_settled(self, _: Queued) -> None:
        self._unsettled -= 1
        if not self._unsettled:
            self._settled()

    @property
    def is_settled(self) -> bool:
        """Whether the outcome of all its messages is known."""
        return not self._unsettled

    @property
    def needs_history(self) -> bool:
        """Whether stored messages decide on the answer; to be asked when its messages are settled."""
        return any(_may_be_known(item) for item in self._queued if item.draft.once)

    async def outcome(self) -> tuple[object, int]:
        """The answer and its status, when its messages are settled.

        Raises:
            ClientError: QUEUE_OVERFLOW or BACKPLANE_UNAVAILABLE, of a call with one message.
            Conflict: its id stands for another message.
        """
        if self.needs_history:
            for place, item in enumerate(self._items):
                if isinstance(item, Exception) or not isinstance(item.outcome, Position):
                    continue
                try:
                    await _check_known(item.draft, item.outcome, self._context)
                except Conflict as conflict:
                    if not self._is_array:
                        raise
                    self._items[place] = conflict.with_traceback(None)
        return self.answer()

    def answer(self) -> tuple[object, int]:
        """As `outcome`, where the history is not needed."""
        if not self._is_array:
            (item,) = self._queued
            if isinstance(item.outcome, Position):
                return _answer(item.draft, item.outcome), 200
            assert item.outcome is not None
            raise item.outcome
        answers, failed = [], 0
        for message, one in zip(self._value, self._items, strict=True):
            if not isinstance(one, Exception) and isinstance(one.outcome, Position):
                answers.append(_answer(one.draft, one.outcome))
            else:
                answers.append(_failure(message, one))
                failed += 1
        self._write.note_failed(failed)
        return answers, 207 if failed else 200


def _may_be_known(item: Queued) -> bool:
    """Whether an earlier call may have stored a message under its id."""
    return isinstance(item.outcome, Position) and item.outcome.maybe_known


def _answer(draft: Draft, position: Position) -> dict[str, object]:
    """The answer for a message that is stored."""
    return {"id": draft.id, "type": draft.type, "seq": position.seq, "epoch": position.epoch}


async def publish(draft: Draft, context: HttpContext) -> dict[str, object]:
    """Put a message into its stream and say where it stands: `{id, type, seq, epoch}`.

    Raises:
        ClientError: QUEUE_OVERFLOW or BACKPLANE_UNAVAILABLE.
        Conflict: its id stands for another message.
    """
    position = await context.publisher.submit(draft)
    await _check_known(draft, position, context)
    return _answer(draft, position)


class Conflict(HttpError):
    """The id belongs to a stored message with other data; the new message is not stored.

    Args:
        answer: where the stored message stands.
    """

    def __init__(self, answer: Mapping[str, object]) -> None:
        super().__init__(
            409,
            ErrorCode.CONFLICT,
            f"The id {answer['id']!r} belongs to another message, seq {answer['seq']} of"
            f" {answer['type']!r}; this one is not stored. Use another id.",
        )
        self.answer = dict(answer)


async def _check_known(draft: Draft, position: Position, context: HttpContext) -> None:
    """Compare a message with the stored one of the same id.

    Raises:
        Conflict: event or data differ.
    """
    if not (draft.once and position.maybe_known):
        return
    try:
        messages, _ = await context.history.newest(draft.type, 1, position.seq + 1)
    except ClientError:
        return
    for stored in messages:
        if (stored.epoch, stored.seq) != (position.epoch, position.seq):
            continue  # no longer kept, or of an older epoch
        try:
            kept, new = decode_json(stored.body + b"}"), decode_json(draft.body + b"}")
        except ClientError:
            return
        if kept.get("event") != new.get("event") or not _is_same(kept.get("data"), new.get("data")):
            raise Conflict(_answer(draft, position))


def _is_same(one: Any, other: Any) -> bool:
    """Whether two values are the same to a client: 1 and 1.0 are, 1 and true are not."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_is_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_is_same, one, other))
    return bool(one == other)


def _failure(message: Any, item: Queued | ClientError | Conflict) -> dict[str, object]:
    """The answer for a message of an array that is not stored."""
    if isinstance(item, Conflict):
        return item.answer | {"error": item.message, "code": item.code}
    error = item if isinstance(item, ClientError) else item.outcome
    assert isinstance(error, ClientError)
    chosen = message.get("id") if isinstance(message, Mapping) else None
    id = chosen if _is_id(chosen) else None
    return {"id": id, "error": error.message, "code": error.code}


@functools.lru_cache(maxsize=256)
def _is_event(name: str) -> bool:
    """Whether a text can be the name of an event; there are few names."""
    return _EVENT.fullmatch(name) is not None


def _is_id(id: object) -> bool:
    return isinstance(id, str) and 0 < len(id) <= MAX_ID and id.isprintable()


def _data_missing() -> ClientError:
    return _invalid("'data' is missing; it may be any JSON value.")


def _invalid(message: str) -> ClientError:
    return ClientError(ErrorCode.INVALID_PAYLOAD, message)
