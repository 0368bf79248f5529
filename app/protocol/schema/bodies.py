"""The bodies of HTTP calls and of their answers."""

from __future__ import annotations

from app.protocol.schema.kinds import (
    AnyJson,
    Boolean,
    Choice,
    Field,
    Integer,
    ListOf,
    MapOf,
    Nullable,
    Number,
    Struct,
    Text,
    TypeName,
)
from app.protocol.schema.limits import (
    EVENT_NAME,
    MAX_ID,
    MAX_TASK_LENGTH,
    PRESENCE_STATES,
    PRIORITIES,
    RANGES,
)
from app.protocol.schema.payloads import (
    CONNECTED_USER,
    COUNT,
    ERROR,
    PRESENCE,
    SHOWN_PRESENCE,
    TIME,
    WORKER,
)

PUBLISHED = Struct(
    "PublishedMessage",
    "A message to publish.",
    (
        Field("type", TypeName(), "of the stream"),
        Field(
            "event",
            Text(pattern=EVENT_NAME),
            "its name: a letter, then at most 63 letters, digits or any of `_.:/-`; some are reserved",
        ),
        Field("data", AnyJson(), "any JSON value"),
        Field(
            "priority",
            Choice(PRIORITIES),
            "when the queue is full, the lowest goes first; `normal`",
            required=False,
        ),
        Field(
            "id",
            Nullable(Text(1, MAX_ID)),
            "makes the call repeatable: within five minutes the same `id` is stored once; printable characters",
            required=False,
        ),
    ),
    is_closed=True,
)
STORED = Struct(
    "Stored",
    "Where a message stands.",
    (
        Field("id", Text(1), "of the message"),
        Field("type", Text(1), "of the stream"),
        Field("seq", Integer(1), "in the stream"),
        Field("epoch", Text(1), "of the stream"),
    ),
)
NOT_STORED = Struct(
    "NotStored",
    "Why a message of an array is not stored. `type`, `seq` and `epoch` are those of the stored message with the same `id`.",
    (
        Field("id", Nullable(Text(1)), "of the message; null: it has none, or an invalid one"),
        Field("type", Text(1), "with `CONFLICT`", required=False),
        Field("seq", Integer(1), "with `CONFLICT`", required=False),
        Field("epoch", Text(1), "with `CONFLICT`", required=False),
    ),
    like=ERROR,
)
SET_PRESENCE = Struct(
    "SetPresence",
    "What the lab does.",
    (
        Field("state", Choice(PRESENCE_STATES), "what it does"),
        Field(
            "task", Nullable(Text(most=MAX_TASK_LENGTH)), "in words; empty: none", required=False
        ),
    ),
    is_closed=True,
)
PRESENCE_SET = Struct(
    "PresenceSet",
    "What the lab does, and the message that says so.",
    (Field("message", STORED, "the `status_update`"),),
    like=PRESENCE,
)
CONNECTION = Struct(
    "Connection",
    "A connection, as operators see it.",
    (
        Field("id", Text(1), "the `connectionId` of `connected`"),
        Field("user", Nullable(Text(1)), "the user's name; null: none"),
        Field("protocol", Text(1), "what it speaks"),
        Field("types", ListOf(TypeName()), "subscriptions"),
        Field("host", Text(), "the machine that serves it"),
        Field("worker", COUNT, "process id of the worker there"),
        Field(
            "since",
            Nullable(Integer()),
            "Unix time in milliseconds of its first connect, which recovery keeps; null: unknown",
        ),
    ),
)
_ROSTER = (
    Field("total", COUNT, "connections on all pages"),
    Field("more", Boolean(), "whether there is another page"),
    Field("workers", COUNT, "workers that have answered"),
    Field("complete", Boolean(), "whether these are known to be all workers"),
)
CONNECTION_LIST = Struct(
    "ConnectionList",
    "A page of connections.",
    (Field("connections", ListOf(CONNECTION), "in the order of their ids"), *_ROSTER),
)
USER_LIST = Struct(
    "UserList",
    "A page of the users that are connected.",
    (
        Field("users", ListOf(CONNECTED_USER), "in the order of their names"),
        Field("anonymous", COUNT, "connections without a name"),
        *_ROSTER,
    ),
)
CLOSED = Struct(
    "ClosedConnections",
    "What was closed.",
    (
        Field("closed", COUNT, "connections"),
        Field("workers", COUNT, "workers that have answered"),
        Field("complete", Boolean(), "whether these are known to be all workers"),
    ),
)
ALERT = Struct(
    "Alert",
    "An alert of Alertmanager; what it lacks, or has in another form, is left out.",
    (
        Field("status", AnyJson(), "`firing` or `resolved`", required=False),
        Field(
            "labels",
            AnyJson(),
            "texts by name; `alertname` and `severity` are used",
            required=False,
        ),
        Field(
            "annotations",
            AnyJson(),
            "texts by name; `summary` and `value` are used",
            required=False,
        ),
        Field("startsAt", AnyJson(), "a time as in RFC 3339", required=False),
        Field("fingerprint", AnyJson(), "names the alert", required=False),
    ),
)
NOTIFICATION = Struct(
    "Notification",
    "The webhook of Alertmanager, version 4.",
    (
        Field("version", Choice(("4",)), "of the webhook"),
        Field("alerts", ListOf(ALERT, 0, 1000), "one message each"),
        Field("status", AnyJson(), "stands in for what an alert lacks", required=False),
        Field("commonLabels", AnyJson(), "likewise", required=False),
    ),
)
SKIPPED_ALERT = Struct(
    "SkippedAlert",
    "An alert that is not stored.",
    (Field("alert", COUNT, "its place in the notification, from 0"),),
    like=ERROR,
)
ALERTS_STORED = Struct(
    "AlertsStored",
    "What became of a notification.",
    (
        Field("messages", ListOf(STORED), "the alerts that are stored"),
        Field("skipped", ListOf(SKIPPED_ALERT), "those that are not", required=False),
    ),
)
REPLICA = Struct(
    "ReplicaStatus",
    "The replica of the shared server that this machine runs.",
    (
        Field("state", Text(1), "`in sync`, or why it is not read"),
        Field("readers", COUNT, "workers that read from it"),
        Field(
            "bytesBehind", Nullable(COUNT), "bytes of the replication that it lacks; null: unknown"
        ),
        Field("secondsBehind", Nullable(Number()), "seconds that it is behind; null: unknown"),
    ),
)
BACKPLANE = Struct(
    "BackplaneStatus",
    "What keeps the messages; where clients need a token, `cause`, `warnings` and `replica` only with one.",
    (
        Field("status", Choice(("ok", "degraded", "unavailable")), "in a word"),
        Field("cause", Nullable(Text(1)), "what is wrong; null: nothing", required=False),
        Field("writable", Boolean(), "whether messages can be stored"),
        Field("warnings", ListOf(Text(1)), "what an operator should know", required=False),
        Field("replica", REPLICA, "this machine's replica, where it has one", required=False),
    ),
)
STATUS = Struct(
    "ServiceStatus",
    "Whether clients can be served, and what is wrong if not; where clients need a token, `version`, `uptime` and `presence` only with one.",
    (
        Field("status", Choice(("ok", "degraded", "unavailable")), "in a word"),
        Field(
            "causes",
            ListOf(Text(1)),
            "what is wrong, without a token only its kind; empty: nothing",
        ),
        Field("version", Text(1), "of the service", required=False),
        Field("uptime", Number(), "seconds", required=False),
        Field("connections", COUNT, "of this machine"),
        Field("maxConnections", COUNT, "the setting `MAX_TOTAL_CONNECTIONS`"),
        Field("expectedWorkers", COUNT, "the setting `WORKERS`"),
        Field("workers", ListOf(WORKER), "of this machine"),
        Field("backplane", BACKPLANE, "what keeps the messages"),
        Field("presence", SHOWN_PRESENCE, "what the lab does", required=False),
    ),
)
SAMPLES = Struct(
    "Samples",
    "Means of one machine; the lists have the same length.",
    (
        Field("t", ListOf(COUNT), "seconds after `start`"),
        Field("cpu", ListOf(Number()), "percent"),
        Field("memory", ListOf(Number()), "percent"),
        Field("disk", ListOf(Number()), "percent"),
        Field("connections", ListOf(Number()), "open connections"),
    ),
)
SERIES = Struct(
    "Series",
    "CPU, memory, disk and connections over time.",
    (
        Field("range", Choice(RANGES), "that was asked for"),
        Field("step", Integer(1), "seconds between samples"),
        Field("start", TIME, "Unix time in milliseconds"),
        Field("end", TIME, "Unix time in milliseconds"),
        Field("hosts", MapOf(SAMPLES), "by name of the machine"),
    ),
)
PRIORITY_COUNTS = Struct(
    "PriorityCounts",
    "Messages by priority.",
    tuple(Field(name, COUNT, "messages") for name in PRIORITIES),
)
DROPPED = Struct(
    "Dropped",
    "Messages that were dropped from the full queue, by priority.",
    (Field("total", COUNT, "all of them"),),
    like=PRIORITY_COUNTS,
)
QUEUE = Struct(
    "Queue",
    "What waits to be stored.",
    (
        Field("length", COUNT, "messages"),
        Field("maxSize", COUNT, "messages; the setting `MAX_QUEUE_SIZE`"),
        Field("bytes", COUNT, "of these messages"),
        Field("maxBytes", COUNT, "the setting `MAX_QUEUE_BYTES`"),
        Field("priorities", PRIORITY_COUNTS, "messages by priority"),
        Field("dropped", DROPPED, "since the start"),
        Field("flushInterval", Number(), "milliseconds"),
        Field("batchSize", COUNT, "messages of one write"),
        Field("lag", Number(), "milliseconds that the slowest worker is behind"),
    ),
)
INDEX = Struct(
    "Index",
    "Where everything is.",
    (
        Field("name", Text(1), "of the service"),
        Field("version", Text(1), "of the service"),
        Field("links", MapOf(Text(1)), "paths by name"),
    ),
)
PAGE_CONFIG = Struct(
    "PageConfig",
    "Tells the page where its service is.",
    (Field("api", Text(), "an address; empty: the page's own origin"),),
)
