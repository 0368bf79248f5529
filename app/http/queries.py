"""Parameters in the query of an HTTP call."""

from __future__ import annotations

from collections.abc import Mapping

from app.errors import ClientError, ErrorCode

_MOST_DIGITS = 20


def number(query: Mapping[str, str], name: str, most: int) -> int | None:
    """A parameter that is an integer; None where it is missing or empty.

    Raises:
        ClientError: INVALID_PAYLOAD, it is none from 1 to `most`.
    """
    text = query.get(name)
    if not text:
        return None
    is_short = text.isascii() and text.isdecimal() and len(text) <= _MOST_DIGITS
    if not (is_short and 1 <= int(text) <= most):
        message = f"'{name}' must be an integer from 1 to {most}."
        raise ClientError(ErrorCode.INVALID_PAYLOAD, message)
    return int(text)
