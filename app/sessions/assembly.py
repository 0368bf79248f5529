"""Puts the parts together that sessions use, in the order in which they need each other."""

from __future__ import annotations

import platform
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from app.backplane.claims import UserClaims
from app.backplane.history import History
from app.broadcast.catchup import CatchUp
from app.broadcast.fanout import FanOut
from app.broadcast.subscriber import Group
from app.config import Settings
from app.metrics import Metrics
from app.ports import Slots
from app.protocol.codecs import EVENT_STREAM, PLAIN, SOCKETIO
from app.refusals import Refusals
from app.sessions.addresses import Addresses
from app.sessions.allowed import AllowedTypes
from app.sessions.auth import TokenVerifier
from app.sessions.claiming import Claiming
from app.sessions.context import SessionContext
from app.sessions.expiry import Expiry
from app.sessions.names import Names
from app.sessions.pages import Pages
from app.sessions.places import Places
from app.sessions.rates import Rates
from app.sessions.registry import Registry
from app.sessions.resume_tokens import ResumeTokens
from app.sessions.router import Router
from app.sessions.socketio.connect_deadlines import ConnectDeadlines
from app.sessions.socketio.engine import OpenPacket
from app.sessions.socketio.manager import StreamManager
from app.sessions.socketio.server import RealtimeServer
from app.sessions.subscriptions import Subscriptions
from app.sessions.welcome import Welcome
from app.transport.hub import Hub
from app.types import Position, Subscribers


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionNeeds:
    """What the parts of sessions need of the rest of a worker."""

    settings: Settings
    """Of the service."""
    key: bytes
    """The secret that all workers share."""
    hub: Hub
    """The connections of this worker."""
    rates: Rates
    """What they may cost; the hub's meter."""
    fanout: FanOut
    """Writes to those that are live."""
    catchup: CatchUp
    """Brings those that are behind up to date."""
    history: History
    """Where old messages are read."""
    slots: Slots
    """Counts that the workers of this machine share."""
    claims: UserClaims | None
    """Counts that all machines share, if there are several."""
    verifier: TokenVerifier
    """Of users' tokens."""
    metrics: Metrics
    """What is counted for Prometheus."""
    subscribers: Callable[[str], Subscribers]
    """Connections and users that are subscribed to a type, over all workers."""
    names: Names
    """The users that are subscribed to a type."""
    control_position: Position
    """Of the control stream, from which on its messages are carried out."""
    send_control: Callable[[dict[str, Any]], Awaitable[None]]
    """Stores a message in the control stream."""
    publish: Callable[[str, str, Any], Awaitable[object]]
    """Stores a message in the stream of a type: type, event, data."""
    note_unreadable: Callable[[], None]
    """Counts a control message that cannot be read."""


def make_context(needs: SessionNeeds) -> SessionContext:
    """Make what the sessions of one worker are given."""
    settings, slots, hub, metrics = needs.settings, needs.slots, needs.hub, needs.metrics
    known = frozenset(settings.message_types)
    registry = Registry()
    refusals = Refusals(lambda reason: metrics.refused[reason].inc(), slots.begin_line)
    pages = Pages(hub, needs.history, needs.catchup, needs.rates)
    subscriptions = _make_subscriptions(needs, known, pages)
    manager = _make_manager(needs, known, registry, subscriptions)
    tokens, expiry = ResumeTokens(needs.key), Expiry()
    return SessionContext(
        settings=settings,
        known_types=known,
        hub=hub,
        fanout=needs.fanout,
        catchup=needs.catchup,
        no_subscriptions=_no_subscriptions(needs.fanout),
        registry=registry,
        verifier=needs.verifier,
        allowed=AllowedTypes(known),
        tokens=tokens,
        claiming=_make_claiming(needs, registry, tokens, refusals, manager),
        welcome=Welcome(settings, needs.fanout, tokens, expiry, pages),
        expiry=expiry,
        router=_make_router(needs, subscriptions, pages, refusals),
        subscriptions=subscriptions,
        pages=pages,
        places=Places(slots),
        rates=needs.rates,
        addresses=_make_addresses(settings, slots),
        refusals=refusals,
        metrics=metrics,
        sio=RealtimeServer(manager, settings.max_message_size),
        connect_deadlines=ConnectDeadlines(refusals),
        open_packet=OpenPacket(settings),
        keeps_environ=bool(settings.handlers),
    )


def _make_subscriptions(needs: SessionNeeds, known: frozenset[str], pages: Pages) -> Subscriptions:
    return Subscriptions(
        known=known,
        fanout=needs.fanout,
        catchup=needs.catchup,
        history=needs.history,
        pages=pages,
        rates=needs.rates,
        metrics=needs.metrics,
    )


def _make_router(
    needs: SessionNeeds, subscriptions: Subscriptions, pages: Pages, refusals: Refusals
) -> Router:
    return Router(
        subscriptions=subscriptions,
        pages=pages,
        history_limit=needs.settings.default_history_limit,
        verifier=needs.verifier,
        subscribers=needs.subscribers,
        names=needs.names,
        rates=needs.rates,
        refusals=refusals,
        metrics=needs.metrics,
    )


def _make_manager(
    needs: SessionNeeds, known: frozenset[str], registry: Registry, subscriptions: Subscriptions
) -> StreamManager:
    settings = needs.settings
    return StreamManager(
        registry,
        subscriptions,
        known,
        slots=needs.slots,
        is_alone=not settings.backplane_url,
        host=settings.host_name or platform.node(),
        position=needs.control_position,
        send_control=needs.send_control,
        publish=needs.publish,
        note_unreadable=needs.note_unreadable,
    )


def _make_claiming(
    needs: SessionNeeds,
    registry: Registry,
    tokens: ResumeTokens,
    refusals: Refusals,
    manager: StreamManager,
) -> Claiming:
    return Claiming(
        most=needs.settings.max_connections_per_user,
        slots=needs.slots,
        claims=needs.claims,
        registry=registry,
        tokens=tokens,
        refusals=refusals,
        prober=manager.prober,
    )


def _no_subscriptions(fanout: FanOut) -> dict[str, Group]:
    return {
        codec.name: fanout.group(codec, frozenset(), False)
        for codec in (PLAIN, SOCKETIO, EVENT_STREAM)
    }


def _make_addresses(settings: Settings, slots: Slots) -> Addresses | None:
    most, connects = settings.max_connections_per_address, settings.max_connects_per_address
    return Addresses(most, connects, slots) if most or connects else None
