"""Puts the parts together that sessions use, in the order in which they need each other."""

from __future__ import annotations

import platform
from collections.abc import Awaitable, Callable
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


def make_context(
    *,
    settings: Settings,
    key: bytes,
    hub: Hub,
    rates: Rates,
    fanout: FanOut,
    catchup: CatchUp,
    history: History,
    slots: Slots,
    claims: UserClaims | None,
    verifier: TokenVerifier,
    metrics: Metrics,
    subscribers: Callable[[str], Subscribers],
    names: Names,
    control_position: Position,
    send_control: Callable[[dict[str, Any]], Awaitable[None]],
    publish: Callable[[str, str, Any], Awaitable[object]],
    note_unreadable: Callable[[], None],
) -> SessionContext:
    """Make what the sessions of one worker are given.

    Args:
        settings: of the service.
        key: the secret that all workers share.
        hub: the connections of this worker.
        rates: what they may cost; the hub's meter.
        fanout: writes to those that are live.
        catchup: brings those that are behind up to date.
        history: where old messages are read.
        slots: counts that the workers of this machine share.
        claims: counts that all machines share, if there are several.
        verifier: of users' tokens.
        metrics: what is counted for Prometheus.
        subscribers: connections and users that are subscribed to a type, over all workers.
        names: the users that are subscribed to a type.
        control_position: of the control stream, from which on its messages are carried out.
        send_control: stores a message in the control stream.
        publish: stores a message in the stream of a type: type, event, data.
        note_unreadable: counts a control message that cannot be read.
    """
    known = frozenset(settings.message_types)
    registry = Registry()
    refusals = Refusals(lambda reason: metrics.refused[reason].inc(), slots.begin_line)

    # What sessions are subscribed to, and what they read.
    pages = Pages(hub, history, catchup, rates)
    subscriptions = Subscriptions(
        known=known,
        fanout=fanout,
        catchup=catchup,
        history=history,
        pages=pages,
        rates=rates,
        metrics=metrics,
    )
    router = Router(
        subscriptions=subscriptions,
        pages=pages,
        history_limit=settings.default_history_limit,
        verifier=verifier,
        subscribers=subscribers,
        names=names,
        rates=rates,
        metrics=metrics,
    )

    # Between workers, and python-socketio.
    manager = StreamManager(
        registry,
        subscriptions,
        known,
        slots=slots,
        is_alone=not settings.backplane_url,
        host=settings.host_name or platform.node(),
        position=control_position,
        send_control=send_control,
        publish=publish,
        note_unreadable=note_unreadable,
    )

    # How sessions begin and end.
    tokens, expiry = ResumeTokens(key), Expiry()
    claiming = Claiming(
        most=settings.max_connections_per_user,
        slots=slots,
        claims=claims,
        registry=registry,
        tokens=tokens,
        refusals=refusals,
        replace_elsewhere=manager.replace_elsewhere,
        count_answering=manager.prober.count_answering,
    )
    return SessionContext(
        settings=settings,
        known_types=known,
        hub=hub,
        fanout=fanout,
        catchup=catchup,
        no_subscriptions=_no_subscriptions(fanout),
        registry=registry,
        verifier=verifier,
        allowed=AllowedTypes(known),
        tokens=tokens,
        claiming=claiming,
        welcome=Welcome(settings, fanout, metrics, tokens, expiry, pages),
        expiry=expiry,
        router=router,
        subscriptions=subscriptions,
        pages=pages,
        slots=slots,
        rates=rates,
        addresses=_make_addresses(settings, slots),
        refusals=refusals,
        metrics=metrics,
        sio=RealtimeServer(manager, settings.max_message_size),
        connect_deadlines=ConnectDeadlines(refusals),
        open_packet=OpenPacket(settings),
        keeps_environ=bool(settings.handlers),
    )


def _no_subscriptions(fanout: FanOut) -> dict[str, Group]:
    return {
        codec.name: fanout.group(codec, frozenset(), False)
        for codec in (PLAIN, SOCKETIO, EVENT_STREAM)
    }


def _make_addresses(settings: Settings, slots: Slots) -> Addresses | None:
    most, connects = settings.max_connections_per_address, settings.max_connects_per_address
    return Addresses(most, connects, slots) if most or connects else None
