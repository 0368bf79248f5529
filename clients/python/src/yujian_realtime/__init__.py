"""Client of Yujian Presence: newest state first, recovery without gaps, and a publisher."""

from yujian_realtime.client import Realtime, Subscription, connect
from yujian_realtime.errors import ConnectionClosed, PublishError, RealtimeError, RequestTimeout
from yujian_realtime.messages import Cause, Counts, Gap, History, Message, Origin, State
from yujian_realtime.publisher import Draft, Publisher, Stored

__all__ = [
    "Cause",
    "ConnectionClosed",
    "Counts",
    "Draft",
    "Gap",
    "History",
    "Message",
    "Origin",
    "PublishError",
    "Publisher",
    "Realtime",
    "RealtimeError",
    "RequestTimeout",
    "State",
    "Stored",
    "Subscription",
    "connect",
]
__version__ = "1.0.0"
