"""Limits of the protocol that are the same for every service; others are settings."""

from __future__ import annotations

from typing import Final, Literal, get_args

MAX_HISTORY = 100
"""Maximum messages of one answer with history."""
MAX_ID = 128
"""Longest id, of a request or of a published message, in characters."""
MAX_EPOCH = 64
"""Longest epoch that a client may give back, in characters."""
MAX_TOKEN = 8192
"""Longest token, in characters; more would not fit into a request line either."""
MAX_REQUEST_SIZE = 16 * 1024
"""Maximum length of a request, in characters of its JSON. The longest useful one has a token."""
MAX_VALUES = 500
"""Maximum values in a request, which determine its cost; all types with `recover` need 130."""
MAX_MESSAGES = 1000
"""Maximum messages of one call of a publisher, and alerts of one notification."""
MAX_ROWS = 500
"""Maximum connections or users of one answer: about 100 KB of each worker."""
MAX_USER = 128
"""Longest name of a user, in characters."""
MAX_USERS = 100
"""Maximum users of one answer to `presence`."""
MAX_ANNOUNCED, MAX_ANNOUNCED_BYTES = 200, 16 * 1024
"""Maximum users that one `join` or `leave` names, and their size as JSON."""
MAX_NAME = 1024
"""Longest id or name in the query of a call, in characters."""
PROTOCOLS = ("plain", "socketio", "sse")
"""What connections speak."""
CLOSING_CODES = ("4403", "4401")
"""With which an operator closes connections; the first is the default."""
MAX_TASK_LENGTH = 500
"""Longest task of the presence, in characters."""
MAX_SEQ, MAX_BEFORE, MAX_HTTP_BEFORE = 2**63 - 1, 2**53, 2**63 - 1
"""Largest `seq` to recover from, and largest `before` of `get_history` and of `GET /history`."""

EVENT_NAME = "[A-Za-z][A-Za-z0-9_.:/-]{0,63}"
"""What the name of a published event looks like."""
PRIORITIES = ("high", "normal", "low")
"""Of published messages, the first to stay when the queue is full."""
PresenceName = Literal["idle", "working", "offline"]
PRESENCE_STATES: Final[tuple[PresenceName, ...]] = get_args(PresenceName)
RANGES = ("15m", "1h", "6h", "24h")
"""Spans of `GET /stats/series`."""
PERIODS = ("1m", "5m", "15m", "1h", "24h")
"""Spans of `stats_update`."""
