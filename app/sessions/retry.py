"""When clients are to come back: drawn evenly, so that they do not all come at once."""

from __future__ import annotations

import json
import random

RETRY_AFTER_MS = (500, 5000)
"""Range of the delay in milliseconds."""


def draw_delay() -> int:
    """A delay in milliseconds."""
    return random.randint(*RETRY_AFTER_MS)  # noqa: S311 (guards nothing)


def retry_reason(milliseconds: int | None = None) -> str:
    """Reason of close codes 1012 and 1013: when to come back.

    Args:
        milliseconds: until then; drawn if it is not given.
    """
    return json.dumps({"retryAfter": draw_delay() if milliseconds is None else milliseconds})


def read_delay(reason: str) -> int | None:
    """The milliseconds that `retry_reason` has written; None for any other reason."""
    if not reason.startswith('{"retryAfter": '):
        return None
    delay: int = json.loads(reason)["retryAfter"]
    return delay
