"""JSON and the envelope that every message of the service travels in (docs/PROTOCOL.md, "Messages").

Pure: values in, bytes out. JSON is strict both ways, since a browser cannot parse `NaN`.
"""

from __future__ import annotations

import functools
import json
import os
import struct
import time
from collections.abc import Callable, Iterable
from itertools import chain
from math import isfinite
from typing import Any, NoReturn

import orjson

from app.errors import ClientError, ErrorCode
from app.protocol.schema import events

MAX_DEPTH = 128
"""How deep arrays and objects may be nested; far below what exhausts the stack of a parser."""

_MAX_DIGITS = 308
"""Digits of an integer: a longer one is `Infinity` to every client that counts in doubles."""

RESERVED_ON_WIRE = frozenset(
    {"connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener"}
)
"""Names of events that are not allowed in packets of Socket.IO: its clients close the connection
when one comes, and its servers do."""

RESERVED_EVENTS = RESERVED_ON_WIRE | frozenset(
    {
        # Events that only the service itself sends.
        *(event.name for event in events.TABLE if not event.is_stream),
        # Names that Socket.IO clients and servers give to their own events.
        "connecting",
        "connect_failed",
        "connect_timeout",
        "message",
        "reconnect",
        "reconnect_attempt",
        "reconnect_error",
        "reconnect_failed",
        "reconnecting",
        "ping",
    }
)
"""Names that a publisher may not use: a client could not tell the message from the protocol."""


_SHORT = 2 * MAX_DEPTH
"""Bytes of JSON that can be neither too deep nor hold a number that is too long."""
_STRIDE = 128
"""Bytes between two samples; a number that is too long holds two samples in a row."""
_DIGITS = bytes(ord("0") if chr(byte) in "0123456789" else 0 for byte in range(256))
_LONG_RUN = b"0" * (_MAX_DIGITS + 1)
_TOO_LONG = f"an integer has more than {_MAX_DIGITS} digits, which clients cannot represent: send it as a string"
TOO_DEEP = (
    f"the value is nested too deeply: at most {MAX_DEPTH} levels are allowed, including those of the"
    " envelope; flatten it, or send it as a string"
)
"""Why a value cannot be encoded, and what to do about it."""


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def _parse_float(text: str) -> float:
    value = float(text)
    if not isfinite(value):
        raise ValueError(f"the number {text[:20]}… is too large")
    return value


def _parse_int(text: str) -> int:
    if len(text) > _MAX_DIGITS + text.startswith("-"):
        raise ValueError(f"the number {text[:20]}… is too large")
    return int(text)


_decoder = json.JSONDecoder(
    parse_float=_parse_float, parse_int=_parse_int, parse_constant=_refuse_constant
)
_NUMBERS = bytes(
    ord("0") if chr(byte) in "0123456789" else ord("-") if chr(byte) == "-" else 0
    for byte in range(256)
)
_LONG, _LONG_NEGATIVE = b"0" * 20, b"-" + b"0" * 19
"""What each integer beyond 64 bits contains in `_NUMBERS`."""
_CLOSE, _SAMPLES = 6, b"000"
"""Bytes between two samples of a text, and what each such integer leaves in them: 19 digits in a row
hold three samples at least."""


def _make_encoder(*, ensure_ascii: bool) -> Callable[[Any], str]:
    """`JSONEncoder.encode`, but with the encoder in C made once instead of at every call.

    What contains itself ends as a RecursionError: nothing remembers where the encoder has been.
    """
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii, allow_nan=False, check_circular=False, separators=(",", ":")
    )
    make: Any = json.encoder.c_make_encoder  # type: ignore[attr-defined]
    if make is None:  # no C here
        return encoder.encode
    string: Callable[[str], str] = (
        json.encoder.encode_basestring_ascii if ensure_ascii else json.encoder.encode_basestring
    )
    chunks = make(None, encoder.default, string, None, ":", ",", False, False, False)

    def encode(value: Any) -> str:
        return string(value) if type(value) is str else "".join(chunks(value, 0))

    return encode


_encode = _make_encoder(ensure_ascii=False)
_encode_to_ascii = _make_encoder(ensure_ascii=True)


def encode_json(value: Any) -> bytes:
    """Encode a value as compact JSON in UTF-8; `decode_json` takes all that this returns.

    It gives the same value back, but for what JSON does not know: tuples become lists, and keys
    that are numbers become strings.

    Raises:
        ValueError: it holds NaN, Infinity or an integer of more than 308 digits, contains
            itself, or is nested too deeply.
        TypeError: it holds something that JSON cannot say.
    """
    try:
        encoded = _encode(value).encode()
    except (ValueError, RecursionError) as error:
        encoded = _encode_again(value, error)
    if len(encoded) > _SHORT:
        _check(value, encoded)
    return encoded


def encode_ascii(value: Any) -> str:
    """As `encode_json`, but as a text of ASCII characters; raises the same."""
    try:
        text = _encode_to_ascii(value)
    except (ValueError, RecursionError) as error:
        text = _encode_again(value, error).decode()
    if len(text) > _SHORT:
        _check(value, text.encode())
    return text


def encode_decoded(value: Any) -> bytes:
    """As `encode_json`, for what is known to be good, as what `decode_json` has returned is.

    No number in it is NaN or infinite, no key is a number, and it is not nested too deeply.
    """
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:  # integers beyond 64 bits, half a surrogate pair
        pass
    try:
        return _encode(value).encode()
    except (ValueError, RecursionError) as error:
        return _encode_again(value, error)


def _encode_again(value: Any, error: Exception) -> bytes:
    """Encode what UTF-8 cannot say, or raise the error with what to do about it."""
    if isinstance(error, UnicodeEncodeError):
        # Half of a surrogate pair is legal in JSON as an escape, but not in UTF-8.
        return _encode_to_ascii(value).encode()
    if isinstance(error, RecursionError):
        raise ValueError(TOO_DEEP) from None
    if "integer string conversion" in str(error):  # more digits than Python writes
        raise ValueError(_TOO_LONG) from None
    raise error


def _check(value: Any, encoded: bytes) -> None:
    """Refuse what `decode_json` would refuse; looks at the value only where the text is suspicious.

    Raises:
        ValueError: see `encode_json`.
    """
    opened = encoded.count(b"[") + encoded.count(b"{")
    if opened > MAX_DEPTH and _is_deeper(value, MAX_DEPTH, opened):
        raise ValueError(TOO_DEEP)
    if (
        b"00" in encoded[::_STRIDE].translate(_DIGITS)
        and _LONG_RUN in encoded.translate(_DIGITS)
        and _has_long_integer(value)
    ):
        raise ValueError(_TOO_LONG)


def decode_json(text: bytes | str) -> Any:
    """Decode JSON from outside the service.

    Raises:
        ClientError: PARSE_ERROR with the place, for anything that is not strict JSON, for
            nesting deeper than `MAX_DEPTH` and for numbers that a double cannot hold.
    """
    # orjson refuses half a surrogate pair in a text, as it does in an escape.
    encoded = text.encode(errors="surrogatepass") if isinstance(text, str) else text
    if _has_long_number(encoded):
        value = _decode_strictly(text)
    else:
        try:
            value = orjson.loads(encoded)
        except orjson.JSONDecodeError:
            value = _decode_strictly(text)
    # The count bounds the depth and costs little; few messages need the exact figure.
    opened = len(encoded) - len(encoded.translate(None, b"[{"))
    if opened > MAX_DEPTH and _is_deeper(value, MAX_DEPTH, opened):
        raise _too_deep()
    return value


def _has_long_number(encoded: bytes) -> bool:
    """Whether a text may hold an integer beyond 64 bits, which orjson would make a float of."""
    if _SAMPLES not in encoded[::_CLOSE].translate(_DIGITS):
        return False
    numbers = encoded.translate(_NUMBERS)
    return _LONG in numbers or _LONG_NEGATIVE in numbers


def _decode_strictly(text: bytes | str) -> Any:
    """Decode what orjson refuses, or would decode otherwise; raises as `decode_json`."""
    try:
        return _decoder.decode(text if isinstance(text, str) else text.decode())
    except UnicodeDecodeError as error:
        raise _parse_error(f"it is not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise _parse_error(f"{error.msg[:1].lower()}{error.msg[1:]} at {place}") from None
    except ValueError as error:
        raise _parse_error(str(error)) from None
    except RecursionError:
        raise _too_deep() from None


def _parse_error(reason: str) -> ClientError:
    return ClientError(ErrorCode.PARSE_ERROR, f"This is not valid JSON: {reason}.")


def _too_deep() -> ClientError:
    return ClientError(
        ErrorCode.PARSE_ERROR, f"The JSON is nested too deeply: {MAX_DEPTH} levels are allowed."
    )


_NESTED = (dict, list, tuple)
_PLAIN = frozenset({str, int, float, bool, type(None)})
"""Classes of most values, which are looked at no further."""
_FIRST_LONG = 10**_MAX_DIGITS


def _is_deeper(value: Any, limit: int, opened: int) -> bool:
    """Whether a value is nested deeper than `limit`.

    Args:
        value: any JSON value.
        limit: levels.
        opened: brackets that open in its text, or more.
    """
    level = [value] if isinstance(value, _NESTED) else []
    for depth in range(1, limit + 1):
        opened -= len(level)
        if depth + opened <= limit:
            return False  # even if each of the others were in the one before
        level = [
            item
            for one in level
            for item in (one.values() if isinstance(one, dict) else one)
            if type(item) not in _PLAIN and isinstance(item, _NESTED)
        ]
        if not level:
            return False
    return True


def _has_long_integer(value: Any) -> bool:
    level = [value]
    while level:
        if any(isinstance(item, int) and abs(item) >= _FIRST_LONG for item in level):
            return True
        level = list(_items(level))
    return False


def _items(level: Iterable[Any]) -> Iterable[Any]:
    """What the arrays and objects of a level hold."""
    objects = [item for item in level if isinstance(item, dict)]
    arrays = [item for item in level if isinstance(item, (list, tuple))]
    return chain(chain.from_iterable(map(dict.values, objects)), chain.from_iterable(arrays))


def new_id() -> str:
    """A random UUID (version 4), several times faster than `str(uuid.uuid4())`."""
    try:
        return _ids.pop()
    except IndexError:
        _ids.extend(_make_ids())
        return _ids.pop()


def _make_ids() -> list[str]:
    """Many at once, without a step of Python's for each: messages come in arrays."""
    random = int.from_bytes(os.urandom(16 * _MANY)) & _RANDOM | _FIXED
    digits = random.to_bytes(16 * _MANY).hex().encode()
    return (_PARTED % _PARTS.unpack(digits)).decode().split()


def connection_id() -> str:
    """A UUID of version 7: its first 48 bits are the Unix time in milliseconds, 74 are random.

    So it is known since when a connection is open, and nothing is kept for it.
    """
    time_ = f"{time.time_ns() // 1_000_000:012x}"
    return f"{time_[:8]}-{time_[8:]}-7{new_id()[15:]}"


def time_of_id(id: str) -> int | None:
    """Unix time in milliseconds at which `connection_id` made an id; None: another made it."""
    if len(id) != 36 or id[14] != "7":
        return None
    try:
        return int(id[:8] + id[9:13], 16)
    except ValueError:
        return None


_MANY = 128
"""Ids that are made at once: to ask the kernel for each would cost as much as the rest."""
_RANDOM = int.from_bytes(bytes.fromhex("ffffffffffff0fff3fffffffffffffff") * _MANY)
"""The bits of so many ids that are random, and"""
_FIXED = int.from_bytes(bytes.fromhex("00000000000040008000000000000000") * _MANY)
"""those that say version and variant (RFC 9562, 5.4)."""
_PARTS = struct.Struct("8s4s4s4s12s" * _MANY)
_PARTED = b"%b-%b-%b-%b-%b\n" * _MANY
_ids: list[str] = []
"""Ids to come."""
os.register_at_fork(after_in_child=_ids.clear)


@functools.lru_cache(maxsize=256, typed=True)
def _encode_name(name: str) -> bytes:
    """A name as JSON: there are few types, and few events."""
    return encode_json(name)


def body_middle(type: str, event: str, timestamp: int) -> bytes:
    """What is between the `id` and the `data` of an envelope; see `body`."""
    return b',"type":%b,"timestamp":%d,"direction":"server-to-client","event":%b,"data":' % (
        _encode_name(type),
        timestamp,
        _encode_name(event),
    )


def body(
    type: str,
    event: str,
    data: Any,
    *,
    id: str | None = None,
    timestamp: int | None = None,
    reply_to: Any = None,
) -> bytes:
    """Write an envelope without its closing brace, as `Draft.body` wants it.

    Args:
        type: the subscription type, or `config`, `system`, `error` of answers.
        event: the name of the event.
        data: any JSON value.
        id: the id of the message; a new UUID when None.
        timestamp: Unix time in milliseconds; now when None.
        reply_to: the `id` of the request that this answers; left out when None.

    Raises:
        ValueError, TypeError: as `encode_json`.
    """
    encoded = b'{"id":%b%b%b' % (
        orjson.dumps(new_id() if id is None else id),  # of a text, which nothing can be wrong with
        body_middle(type, event, int(time.time() * 1000) if timestamp is None else timestamp),
        encode_json(data),
    )
    if reply_to is not None:
        encoded += b',"replyTo":' + encode_json(reply_to)
    return encoded


def envelope(
    type: str,
    event: str,
    data: Any,
    *,
    reply_to: Any = None,
) -> bytes:
    """Write a complete envelope, for a message that belongs to no stream; see `body`."""
    return body(type, event, data, reply_to=reply_to) + b"}"


def error_envelope(code: str, message: str, reply_to: Any = None) -> bytes:
    """Write a complete envelope that says what is wrong; see `body`."""
    return envelope("error", "error", {"code": code, "message": message}, reply_to=reply_to)


def answer(type: str, event: str, data: bytes, reply_to: Any = None) -> bytes:
    """Write a complete envelope around data that is encoded as JSON; see `body`."""
    end = b"" if reply_to is None else b',"replyTo":' + encode_json(reply_to)
    middle = body_middle(type, event, int(time.time() * 1000))
    return b'{"id":"%b"%b%b%b}' % (new_id().encode(), middle, data, end)
