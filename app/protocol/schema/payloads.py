"""The objects that travel over connections: envelopes, positions, and what messages and answers say."""

from __future__ import annotations

from typing import get_args

from app.errors import ErrorCode
from app.protocol.schema.kinds import (
    AnyJson,
    Boolean,
    Choice,
    Either,
    Field,
    Integer,
    ListOf,
    MapOf,
    Nullable,
    Number,
    Struct,
    Text,
)
from app.protocol.schema.limits import (
    MAX_ANNOUNCED,
    MAX_EPOCH,
    MAX_ID,
    MAX_SEQ,
    MAX_TASK_LENGTH,
    PERIODS,
    PRESENCE_STATES,
)
from app.types import GapReason

COUNT = Integer(0)
TIME = Integer(0)
"""Unix time in milliseconds."""
MILLISECONDS = Integer(0)

# Envelopes.

REQUEST_ID = Either((Text(most=MAX_ID), Integer()))

ENVELOPE = Struct(
    "Envelope",
    "What every message of the service travels in.",
    (
        Field("id", Text(1), "a UUID, or what the publisher has chosen"),
        Field(
            "type",
            Text(1),
            "the type of messages that it belongs to; of answers `config`, `system` or `error`",
        ),
        Field("timestamp", TIME, "Unix time in milliseconds"),
        Field("direction", Choice(("server-to-client",)), "always the same"),
        Field("event", Text(1), "what it is; over Socket.IO also the name of the event"),
        Field("data", AnyJson(), "as the event says"),
        Field(
            "seq",
            Integer(1),
            "on messages of a stream: rises by one from message to message of its type",
            required=False,
        ),
        Field(
            "epoch",
            Text(1),
            "on messages of a stream: changes when the stream started anew",
            required=False,
        ),
        Field("replyTo", REQUEST_ID, "on answers: the `id` of the request", required=False),
    ),
)
STREAM_MESSAGE = Struct(
    "StreamMessage",
    "A message of a stream.",
    (
        Field("seq", Integer(1), "rises by one from message to message of its type"),
        Field("epoch", Text(1), "changes when the stream started anew"),
    ),
    like=ENVELOPE,
)
REQUEST = Struct(
    "RequestEnvelope",
    "What clients send: only `action` is required.",
    (
        Field("action", Text(1), "what to do"),
        Field("payload", AnyJson(), "as the action says", required=False),
        Field("id", Nullable(REQUEST_ID), "comes back as `replyTo` of the answer", required=False),
        Field("type", AnyJson(), "ignored", required=False),
        Field("timestamp", AnyJson(), "ignored", required=False),
    ),
)

# Payloads of clients.

POSITION = Struct(
    "Position",
    "The last message of a type that a client has.",
    (
        Field("epoch", Text(most=MAX_EPOCH), "of that message"),
        Field("seq", Integer(0, MAX_SEQ), "of that message"),
    ),
)

# Data of the service's own events.

CONNECTED = Struct(
    "Connected",
    "What the service says of the connection and of itself.",
    (
        Field("connectionId", Text(1), "names the connection in logs"),
        Field(
            "resume",
            Text(1),
            "to take over from this connection: the query parameter `resume` of the next one",
        ),
        Field("user", Nullable(Text(1)), "the user's name; null: none"),
        Field("serverTime", TIME, "Unix time in milliseconds by the service's clock"),
        Field("supportedTypes", ListOf(Text(1)), "types that the client may subscribe to"),
        Field("subscriptions", ListOf(Text(1)), "types that it is subscribed to"),
        Field("heartbeatInterval", MILLISECONDS, "milliseconds between pings of the service"),
        Field(
            "heartbeatTimeout",
            MILLISECONDS,
            "milliseconds of silence after which the service closes",
        ),
        Field(
            "recoveryWindow",
            MILLISECONDS,
            "milliseconds for which history holds every message at least",
        ),
        Field("maxReconnectAttempts", COUNT, "a suggestion"),
        Field("maxMessageSize", COUNT, "bytes of a message of the client"),
    ),
)
FLOW = Struct(
    "Flow",
    "Where a type begins to flow.",
    (
        Field("epoch", Text(1), "of the stream"),
        Field("seq", COUNT, "where live messages begin: behind this one"),
        Field("recovered", Boolean(), "whether `recover` was honoured in full"),
        Field("from", Integer(1), "the first `seq` that is replayed"),
    ),
)
SUBSCRIBED = Struct(
    "Subscribed",
    "The answer to `subscribe`.",
    (
        Field("types", MapOf(FLOW), "where each type that was asked for begins"),
        Field("batch", Boolean(), "whether messages may come as `batch_update`"),
    ),
)
UNSUBSCRIBED = Struct(
    "Unsubscribed",
    "The answer to `unsubscribe`.",
    (Field("types", ListOf(Text(1)), "types that are left"),),
)
HISTORY = Struct(
    "HistoryPage",
    "Old messages of a type.",
    (
        Field("messages", ListOf(STREAM_MESSAGE), "the newest last, at most 1 MB but at least one"),
        Field("more", Boolean(), "whether there are older ones"),
    ),
)
HISTORY_DATA = Struct(
    "HistoryData",
    "Old messages of a type, over a connection.",
    (
        Field(
            "follows",
            Boolean(),
            "true: older messages that were asked for follow in another `history_data`",
            required=False,
        ),
    ),
    like=HISTORY,
)
PONG = Struct(
    "Pong",
    "The answer to `ping`.",
    (
        Field("payload", AnyJson(), "what the request had; null where it had none"),
        Field("serverTime", TIME, "Unix time in milliseconds by the service's clock"),
    ),
)
CONNECTED_USER = Struct(
    "ConnectedUser",
    "A user that is connected.",
    (Field("user", Text(1), "the user's name"), Field("connections", COUNT, "open connections")),
)
SUBSCRIBERS = Struct(
    "Subscribers",
    "How many are subscribed to a type, over all workers of the machine; at most 2 s old.",
    (
        Field("connections", COUNT, "connections"),
        Field("users", COUNT, "users; a client without a name counts as one"),
        Field(
            "names",
            ListOf(CONNECTED_USER),
            "with `limit`: users of all machines that are subscribed to the type, in the order of their names",
            required=False,
        ),
        Field("total", COUNT, "with `limit`: users with a name, on all pages", required=False),
        Field("more", Boolean(), "with `limit`: whether there is another page", required=False),
    ),
)
AUTHENTICATED = Struct(
    "Authenticated",
    "The answer to `auth`.",
    (
        Field("user", Text(1), "the name in the token"),
        Field("expiresAt", Nullable(Integer()), "Unix time in milliseconds; null: never"),
        Field(
            "types",
            ListOf(Text(1)),
            "types that the token allows, where it limits them",
            required=False,
        ),
    ),
)
BATCH = Struct(
    "Batch",
    "Several messages; each has its own `seq`.",
    (Field("messages", ListOf(STREAM_MESSAGE), "in order"),),
)
GAP = Struct(
    "GapData",
    "Messages of this type that will not come.",
    (
        Field("first", COUNT, "`seq` of the first one"),
        Field("last", COUNT, "`seq` of the last one"),
        Field("epoch", Text(1), "of the stream in which they count"),
        Field(
            "reason",
            Choice(get_args(GapReason)),
            "`history`: no longer kept; `latest`: skipped for a newer one; `epoch`: the stream started anew",
        ),
    ),
)
TOKEN_EXPIRING = Struct(
    "TokenExpiring",
    "The token ends soon.",
    (Field("expiresAt", TIME, "Unix time in milliseconds"),),
)
CONNECTION_CLOSING = Struct(
    "ConnectionClosing",
    "Why a stream of server-sent events ends.",
    (
        Field("code", Integer(1000, 4999), "that of the close frame of a WebSocket"),
        Field("reason", Text(), "in words"),
        Field(
            "retryAfter", Integer(1), "milliseconds after which to connect again", required=False
        ),
    ),
)
ERROR_DATA = Struct(
    "ErrorData",
    "Why a request was refused, or the connection is about to be closed.",
    (
        Field(
            "code",
            Choice(tuple(code for code in ErrorCode if not code.is_http_only)),
            "for programs",
        ),
        Field("message", Text(1), "the cause and the remedy, for people"),
    ),
)
ERROR = Struct(
    "ErrorAnswer",
    "Why an HTTP call was refused.",
    (
        Field("error", Text(1), "the cause and the remedy, for people"),
        Field("code", Choice(tuple(ErrorCode)), "for programs"),
    ),
)

# Data of the messages that the service itself publishes.

PRESENCE = Struct(
    "Presence",
    "What the lab does.",
    (
        Field("state", Choice(PRESENCE_STATES), "after ten minutes without an update `offline`"),
        Field("task", Nullable(Text(most=MAX_TASK_LENGTH)), "in words"),
        Field("updatedAt", Nullable(TIME), "Unix time in milliseconds; null: never set"),
    ),
)
SHOWN_PRESENCE = Struct(
    "ShownPresence",
    "What the lab does, as far as this worker knows.",
    (Field("stale", Boolean(), "true: the backplane could not confirm it", required=False),),
    like=PRESENCE,
)
STATUS_UPDATE = Struct(
    "StatusUpdate",
    "The complete state of a machine. The figures are there where the machine collects them.",
    (
        Field("presence", PRESENCE, "what the lab does"),
        Field(
            "since",
            Nullable(TIME),
            "Unix time in milliseconds from which on state and task have been these",
            required=False,
        ),
        Field("host", Text(1), "name of the machine", required=False),
        Field("cpu", Number(), "percent", required=False),
        Field("cpus", Number(), "cores", required=False),
        Field("load", ListOf(Number()), "load averages of 1, 5 and 15 minutes", required=False),
        Field("memory", Number(), "percent", required=False),
        Field("memoryUsed", COUNT, "bytes", required=False),
        Field("memoryTotal", COUNT, "bytes", required=False),
        Field("disk", Number(), "percent", required=False),
        Field("diskUsed", COUNT, "bytes", required=False),
        Field("diskTotal", COUNT, "bytes", required=False),
        Field("uptime", COUNT, "seconds", required=False),
        Field("connections", COUNT, "of this machine", required=False),
        Field("users", COUNT, "of this machine", required=False),
        Field("workers", COUNT, "that serve", required=False),
        Field("queue", COUNT, "messages that wait to be stored", required=False),
    ),
)
WORKER = Struct(
    "WorkerStatus",
    "One worker process; where clients need a token, without one no more than its state and connections.",
    (
        Field("pid", COUNT, "process id", required=False),
        Field("state", Choice(("starting", "ready", "leaving")), "what it does"),
        Field("connections", COUNT, "open connections"),
        Field("generation", COUNT, "rises with each reload", required=False),
        Field("startedAt", TIME, "Unix time in milliseconds", required=False),
        Field("deaf", Boolean(), "true: it receives no messages", required=False),
    ),
)
CONNECTIONS = Struct(
    "Connections",
    "The connections of a machine.",
    (
        Field("totalConnections", COUNT, "open connections"),
        Field("uniqueUsers", COUNT, "users; a client without a name counts as one"),
        Field("averageSubscriptions", Number(), "types that a connection is subscribed to"),
        Field("subscriptions", MapOf(COUNT), "connections by type"),
        Field("protocols", MapOf(COUNT), "connections by protocol"),
        Field("slowConsumers", COUNT, "connections that are behind"),
        Field("maxConnections", COUNT, "the setting `MAX_TOTAL_CONNECTIONS`"),
        Field("workers", ListOf(WORKER), "of the machine"),
    ),
)
LATENCY = Struct(
    "Latency",
    "From accepting a message to writing it, in milliseconds; null: nothing was delivered.",
    tuple(
        Field(name, Nullable(Number()), meaning)
        for name, meaning in (
            ("avg", "mean"),
            ("p50", "median"),
            ("p95", "95th percentile"),
            ("p99", "99th percentile"),
        )
    ),
)
PERIOD_FIGURES = Struct(
    "PeriodFigures",
    "What happened in a period.",
    (
        Field("period", Choice(PERIODS), "its nominal length"),
        Field("seconds", Number(), "its real length: less where less is known"),
        Field("requests", COUNT, "HTTP requests and actions"),
        Field("published", COUNT, "messages that were stored"),
        Field("deliveries", COUNT, "messages that were written to clients"),
        Field("errors", COUNT, "errors that were answered"),
        Field("latency", LATENCY, "of deliveries"),
    ),
)
STATS_UPDATE = Struct(
    "StatsUpdate",
    "The figures of one period, of all periods, and the connections of a machine.",
    (
        Field("host", Text(1), "name of the machine"),
        Field("periods", MapOf(PERIOD_FIGURES), "by period"),
        Field("connections", CONNECTIONS, "as `GET /ws/stats` answers"),
    ),
    like=PERIOD_FIGURES,
)
HEALTH = Struct(
    "HealthData",
    "A threshold was crossed, or an alert of Alertmanager.",
    (
        Field("metric", Text(), "what is measured; of Alertmanager `alertname`"),
        Field(
            "level", Text(), "`critical`, `warning` or `info`; of Alertmanager the label `severity`"
        ),
        Field("message", Text(), "for people"),
        Field("value", Number(), "measured", required=False),
        Field("threshold", Number(), "that was crossed", required=False),
        Field("since", TIME, "Unix time in milliseconds", required=False),
        Field("host", Text(), "name of the machine, with a shared backplane", required=False),
        Field("labels", MapOf(Text()), "of Alertmanager's alert", required=False),
        Field(
            "source",
            Choice(("alertmanager",)),
            "where it comes from, if not from the collector",
            required=False,
        ),
    ),
)

ATTENDANCE = Struct(
    "AttendanceChange",
    "Users that came or went within a second.",
    (
        Field(
            "users",
            ListOf(
                Struct(
                    "ChangedUser",
                    "A user that came or went.",
                    (
                        Field("user", Text(1), "the user's name"),
                        Field(
                            "types",
                            ListOf(Text(1)),
                            "types that its first connection has subscribed to, or its last one has left",
                        ),
                    ),
                ),
                most=MAX_ANNOUNCED,
            ),
            "some of them, in the order of their names, at most 16 KB",
        ),
        Field("total", COUNT, "all of them"),
    ),
)
