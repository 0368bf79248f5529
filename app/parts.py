"""The parts of one worker, as app/main.py has put them together."""

from __future__ import annotations

from dataclasses import dataclass

from app.attendance import Attendance
from app.backplane.claims import UserClaims
from app.backplane.client import AnyBackplane
from app.backplane.history import History
from app.backplane.replica import ReplicaRoute
from app.backplane.series import Series
from app.broadcast.queue import BroadcastQueue
from app.canary import Canary
from app.config import Settings
from app.delivery import Delivery
from app.exports import Exports
from app.figures import Figures, Sources
from app.metrics import Metrics
from app.ports import Slots
from app.presence import Presence
from app.publishing import Publishing
from app.sessions.context import SessionContext
from app.sessions.token_keys import RemoteKeys
from app.supervisor import Supervisor
from app.tick import Tick


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a worker is made of; what only other parts use is not listed."""

    settings: Settings
    """Of the service."""
    slots: Slots
    """Counts that the workers of this machine share."""
    supervisor: Supervisor
    """Keeps the loops going."""
    metrics: Metrics
    """What is counted for Prometheus."""

    # Messages on their way in.
    publishing: Publishing
    """Where messages go in."""
    queue: BroadcastQueue
    """Where they wait to be stored."""

    # The backplane.
    backplane: AnyBackplane
    """Its connections."""
    replica: ReplicaRoute | None
    """The way to the replica of this machine, if there may be one."""
    history: History
    """Old messages."""
    series: Series
    """Samples of all machines."""
    presence: Presence
    """What the lab is doing."""
    claims: UserClaims | None
    """Counts of users that all machines share, if there are several."""
    attendance: Attendance | None
    """The list of users that are subscribed, if a setting asks for it."""

    # Messages on their way out.
    delivery: Delivery
    """From the streams to the clients."""

    # Clients.
    sessions: SessionContext
    """The parts that sessions use."""
    remote_keys: RemoteKeys | None
    """The keys of AUTH_JWKS_URL, if it is set."""

    # What looks after the others.
    canary: Canary
    """Whether this worker still receives what the backplane stores."""
    sources: Sources
    """Where figures come from."""
    figures: Figures
    """What the other workers of this machine see."""
    exports: Exports
    """What Prometheus sees."""
    tick: Tick
    """What is done once a second."""
