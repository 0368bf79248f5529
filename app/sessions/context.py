"""What sessions are given: the parts of their worker."""

from __future__ import annotations

from dataclasses import dataclass

from app.broadcast.catchup import CatchUp
from app.broadcast.fanout import FanOut
from app.broadcast.subscriber import Group
from app.config import Settings
from app.metrics import Metrics
from app.refusals import Refusals
from app.sessions.addresses import Addresses
from app.sessions.allowed import AllowedTypes
from app.sessions.auth import TokenVerifier
from app.sessions.claiming import Claiming
from app.sessions.expiry import Expiry
from app.sessions.pages import Pages
from app.sessions.places import Places
from app.sessions.rates import Rates
from app.sessions.registry import Registry
from app.sessions.resume_tokens import ResumeTokens
from app.sessions.router import Router
from app.sessions.socketio.connect_deadlines import ConnectDeadlines
from app.sessions.socketio.engine import OpenPacket
from app.sessions.socketio.server import RealtimeServer
from app.sessions.subscriptions import Subscriptions
from app.sessions.welcome import Welcome
from app.transport.hub import Hub


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionContext:
    """The parts of one worker that its sessions use; none of them knows this object."""

    settings: Settings
    """Of the service."""
    known_types: frozenset[str]
    """The types of messages that there are."""

    # Connections and what is written to them.
    hub: Hub
    """The connections of this worker."""
    fanout: FanOut
    """Groups of live sessions, and where live is."""
    catchup: CatchUp
    """Brings sessions that are behind up to date."""
    no_subscriptions: dict[str, Group]
    """The group of a new session, by the name of its codec."""

    # How a session begins and ends.
    registry: Registry
    """The sessions of this worker by id."""
    verifier: TokenVerifier
    """Of users' tokens."""
    allowed: AllowedTypes
    """Types that users' tokens allow."""
    tokens: ResumeTokens
    """The service's own tokens, by which a client comes back."""
    claiming: Claiming
    """The places of users."""
    welcome: Welcome
    """`connected`, and the hold of default subscriptions."""
    expiry: Expiry
    """The end of users' tokens."""

    # What a session asks for.
    router: Router
    """Carries out requests."""
    subscriptions: Subscriptions
    """What sessions are subscribed to."""
    pages: Pages
    """Answers with history."""

    # What a session costs.
    places: Places
    """The places of connections in the cap of the machine."""
    rates: Rates
    """Messages, bytes and time of each connection."""
    addresses: Addresses | None
    """Limits per client address, where there are any."""
    refusals: Refusals
    """Refused clients, counted and logged."""
    metrics: Metrics
    """What is counted for Prometheus."""

    # Socket.IO.
    sio: RealtimeServer
    """python-socketio's server."""
    connect_deadlines: ConnectDeadlines
    """Clients that are in no namespace yet."""
    open_packet: OpenPacket
    """What an Engine.IO session begins with."""
    keeps_environ: bool
    """Application handlers may ask for the request that a connection began with."""
