"""What goes over a connection, and the answers to HTTP calls. Made by `make protocol`: do not edit."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict


class Envelope(TypedDict):
    """What every message of the service travels in."""

    id: str
    """a UUID, or what the publisher has chosen"""
    type: str
    """the type of messages that it belongs to; of answers `config`, `system` or `error`"""
    timestamp: int
    """Unix time in milliseconds"""
    direction: Literal["server-to-client"]
    """always the same"""
    event: str
    """what it is; over Socket.IO also the name of the event"""
    data: Any
    """as the event says"""
    seq: NotRequired[int]
    """on messages of a stream: rises by one from message to message of its type"""
    epoch: NotRequired[str]
    """on messages of a stream: changes when the stream started anew"""
    replyTo: NotRequired[str | int]
    """on answers: the `id` of the request"""


class StreamMessage(TypedDict):
    """A message of a stream."""

    id: str
    """a UUID, or what the publisher has chosen"""
    type: str
    """the type of messages that it belongs to; of answers `config`, `system` or `error`"""
    timestamp: int
    """Unix time in milliseconds"""
    direction: Literal["server-to-client"]
    """always the same"""
    event: str
    """what it is; over Socket.IO also the name of the event"""
    data: Any
    """as the event says"""
    replyTo: NotRequired[str | int]
    """on answers: the `id` of the request"""
    seq: int
    """rises by one from message to message of its type"""
    epoch: str
    """changes when the stream started anew"""


class RequestEnvelope(TypedDict):
    """What clients send: only `action` is required."""

    action: str
    """what to do"""
    payload: NotRequired[Any]
    """as the action says"""
    id: NotRequired[str | int | None]
    """comes back as `replyTo` of the answer"""
    type: NotRequired[Any]
    """ignored"""
    timestamp: NotRequired[Any]
    """ignored"""


class Position(TypedDict):
    """The last message of a type that a client has."""

    epoch: str
    """of that message"""
    seq: int
    """of that message"""


class Subscribe(TypedDict):
    """Payload of `subscribe`."""

    types: list[str]
    """types of messages; `all`: every one"""
    history: NotRequired[int | None]
    """newest messages of each type that come first"""
    recover: NotRequired[dict[str, Position] | None]
    """by type, of those in `types`: the last message that the client has"""
    batch: NotRequired[bool | None]
    """whether messages may come as `batch_update`; as before where it is not given"""


class Unsubscribe(TypedDict):
    """Payload of `unsubscribe`."""

    types: list[str]
    """types of messages; `all`: every one"""


class GetHistory(TypedDict):
    """Payload of `get_history`."""

    type: str
    """of the messages"""
    limit: NotRequired[int | None]
    """messages; by default the setting `DEFAULT_HISTORY_LIMIT` (50)"""
    before: NotRequired[int | None]
    """only messages with a lower `seq`"""


class Ack(TypedDict):
    """Payload of `ack`."""

    id: str
    """of the message"""


class AskPresence(TypedDict):
    """Payload of `presence`."""

    type: str
    """of messages"""
    limit: NotRequired[int | None]
    """users that are named; where it is not given none are"""
    after: NotRequired[str | None]
    """with `limit`: only users behind this one"""


class Auth(TypedDict):
    """Payload of `auth`."""

    token: str
    """a JWT"""


class Connected(TypedDict):
    """What the service says of the connection and of itself."""

    connectionId: str
    """names the connection in logs"""
    resume: str
    """to take over from this connection: the query parameter `resume` of the next one"""
    user: str | None
    """the user's name; null: none"""
    serverTime: int
    """Unix time in milliseconds by the service's clock"""
    supportedTypes: list[str]
    """types that the client may subscribe to"""
    subscriptions: list[str]
    """types that it is subscribed to"""
    heartbeatInterval: int
    """milliseconds between pings of the service"""
    heartbeatTimeout: int
    """milliseconds of silence after which the service closes"""
    recoveryWindow: int
    """milliseconds for which history holds every message at least"""
    maxReconnectAttempts: int
    """a suggestion"""
    maxMessageSize: int
    """bytes of a message of the client"""


Flow = TypedDict(
    "Flow",
    {
        "epoch": str,
        "seq": int,
        "recovered": bool,
        "from": int,
    },
)
"""Where a type begins to flow."""


class Subscribed(TypedDict):
    """The answer to `subscribe`."""

    types: dict[str, Flow]
    """where each type that was asked for begins"""
    batch: bool
    """whether messages may come as `batch_update`"""


class Unsubscribed(TypedDict):
    """The answer to `unsubscribe`."""

    types: list[str]
    """types that are left"""


class HistoryData(TypedDict):
    """Old messages of a type, over a connection."""

    messages: list[StreamMessage]
    """the newest last, at most 1 MB but at least one"""
    more: bool
    """whether there are older ones"""
    follows: NotRequired[bool]
    """true: older messages that were asked for follow in another `history_data`"""


class Pong(TypedDict):
    """The answer to `ping`."""

    payload: Any
    """what the request had; null where it had none"""
    serverTime: int
    """Unix time in milliseconds by the service's clock"""


class ConnectedUser(TypedDict):
    """A user that is connected."""

    user: str
    """the user's name"""
    connections: int
    """open connections"""


class Subscribers(TypedDict):
    """How many are subscribed to a type, over all workers of the machine; at most 2 s old."""

    connections: int
    """connections"""
    users: int
    """users; a client without a name counts as one"""
    names: NotRequired[list[ConnectedUser]]
    """with `limit`: users of all machines that are subscribed to the type, in the order of their names"""
    total: NotRequired[int]
    """with `limit`: users with a name, on all pages"""
    more: NotRequired[bool]
    """with `limit`: whether there is another page"""


class Authenticated(TypedDict):
    """The answer to `auth`."""

    user: str
    """the name in the token"""
    expiresAt: int | None
    """Unix time in milliseconds; null: never"""
    types: NotRequired[list[str]]
    """types that the token allows, where it limits them"""


class Batch(TypedDict):
    """Several messages; each has its own `seq`."""

    messages: list[StreamMessage]
    """in order"""


class GapData(TypedDict):
    """Messages of this type that will not come."""

    first: int
    """`seq` of the first one"""
    last: int
    """`seq` of the last one"""
    epoch: str
    """of the stream in which they count"""
    reason: Literal["history", "latest", "epoch"]
    """`history`: no longer kept; `latest`: skipped for a newer one; `epoch`: the stream started anew"""


class TokenExpiring(TypedDict):
    """The token ends soon."""

    expiresAt: int
    """Unix time in milliseconds"""


class ConnectionClosing(TypedDict):
    """Why a stream of server-sent events ends."""

    code: int
    """that of the close frame of a WebSocket"""
    reason: str
    """in words"""
    retryAfter: NotRequired[int]
    """milliseconds after which to connect again"""


class ErrorData(TypedDict):
    """Why a request was refused, or the connection is about to be closed."""

    code: Literal["PARSE_ERROR", "INVALID_TYPE", "INVALID_ACTION", "INVALID_PAYLOAD", "SUBSCRIPTION_INVALID", "MESSAGE_TOO_LARGE", "RATE_LIMITED", "UNAUTHORIZED", "FORBIDDEN", "MAX_CONNECTIONS_EXCEEDED", "HEARTBEAT_TIMEOUT", "QUEUE_OVERFLOW", "BACKPLANE_UNAVAILABLE", "BACKPLANE_FULL", "SERVICE_UNAVAILABLE", "INTERNAL_ERROR"]
    """for programs"""
    message: str
    """the cause and the remedy, for people"""


class Presence(TypedDict):
    """What the lab does."""

    state: Literal["idle", "working", "offline"]
    """after ten minutes without an update `offline`"""
    task: str | None
    """in words"""
    updatedAt: int | None
    """Unix time in milliseconds; null: never set"""


class StatusUpdate(TypedDict):
    """The complete state of a machine. The figures are there where the machine collects them."""

    presence: Presence
    """what the lab does"""
    since: NotRequired[int | None]
    """Unix time in milliseconds from which on state and task have been these"""
    host: NotRequired[str]
    """name of the machine"""
    cpu: NotRequired[float]
    """percent"""
    cpus: NotRequired[float]
    """cores"""
    load: NotRequired[list[float]]
    """load averages of 1, 5 and 15 minutes"""
    memory: NotRequired[float]
    """percent"""
    memoryUsed: NotRequired[int]
    """bytes"""
    memoryTotal: NotRequired[int]
    """bytes"""
    disk: NotRequired[float]
    """percent"""
    diskUsed: NotRequired[int]
    """bytes"""
    diskTotal: NotRequired[int]
    """bytes"""
    uptime: NotRequired[int]
    """seconds"""
    connections: NotRequired[int]
    """of this machine"""
    users: NotRequired[int]
    """of this machine"""
    workers: NotRequired[int]
    """that serve"""
    queue: NotRequired[int]
    """messages that wait to be stored"""


class Latency(TypedDict):
    """From accepting a message to writing it, in milliseconds; null: nothing was delivered."""

    avg: float | None
    """mean"""
    p50: float | None
    """median"""
    p95: float | None
    """95th percentile"""
    p99: float | None
    """99th percentile"""


class PeriodFigures(TypedDict):
    """What happened in a period."""

    period: Literal["1m", "5m", "15m", "1h", "24h"]
    """its nominal length"""
    seconds: float
    """its real length: less where less is known"""
    requests: int
    """HTTP requests and actions"""
    published: int
    """messages that were stored"""
    deliveries: int
    """messages that were written to clients"""
    errors: int
    """errors that were answered"""
    latency: Latency
    """of deliveries"""


class WorkerStatus(TypedDict):
    """One worker process; where clients need a token, without one no more than its state and connections."""

    pid: NotRequired[int]
    """process id"""
    state: Literal["starting", "ready", "leaving"]
    """what it does"""
    connections: int
    """open connections"""
    generation: NotRequired[int]
    """rises with each reload"""
    startedAt: NotRequired[int]
    """Unix time in milliseconds"""
    deaf: NotRequired[bool]
    """true: it receives no messages"""


class Connections(TypedDict):
    """The connections of a machine."""

    totalConnections: int
    """open connections"""
    uniqueUsers: int
    """users; a client without a name counts as one"""
    averageSubscriptions: float
    """types that a connection is subscribed to"""
    subscriptions: dict[str, int]
    """connections by type"""
    protocols: dict[str, int]
    """connections by protocol"""
    slowConsumers: int
    """connections that are behind"""
    maxConnections: int
    """the setting `MAX_TOTAL_CONNECTIONS`"""
    workers: list[WorkerStatus]
    """of the machine"""


class StatsUpdate(TypedDict):
    """The figures of one period, of all periods, and the connections of a machine."""

    period: Literal["1m", "5m", "15m", "1h", "24h"]
    """its nominal length"""
    seconds: float
    """its real length: less where less is known"""
    requests: int
    """HTTP requests and actions"""
    published: int
    """messages that were stored"""
    deliveries: int
    """messages that were written to clients"""
    errors: int
    """errors that were answered"""
    latency: Latency
    """of deliveries"""
    host: str
    """name of the machine"""
    periods: dict[str, PeriodFigures]
    """by period"""
    connections: Connections
    """as `GET /ws/stats` answers"""


class HealthData(TypedDict):
    """A threshold was crossed, or an alert of Alertmanager."""

    metric: str
    """what is measured; of Alertmanager `alertname`"""
    level: str
    """`critical`, `warning` or `info`; of Alertmanager the label `severity`"""
    message: str
    """for people"""
    value: NotRequired[float]
    """measured"""
    threshold: NotRequired[float]
    """that was crossed"""
    since: NotRequired[int]
    """Unix time in milliseconds"""
    host: NotRequired[str]
    """name of the machine, with a shared backplane"""
    labels: NotRequired[dict[str, str]]
    """of Alertmanager's alert"""
    source: NotRequired[Literal["alertmanager"]]
    """where it comes from, if not from the collector"""


class ChangedUser(TypedDict):
    """A user that came or went."""

    user: str
    """the user's name"""
    types: list[str]
    """types that its first connection has subscribed to, or its last one has left"""


class AttendanceChange(TypedDict):
    """Users that came or went within a second."""

    users: list[ChangedUser]
    """some of them, in the order of their names, at most 16 KB"""
    total: int
    """all of them"""


class ErrorAnswer(TypedDict):
    """Why an HTTP call was refused."""

    error: str
    """the cause and the remedy, for people"""
    code: Literal["PARSE_ERROR", "INVALID_TYPE", "INVALID_ACTION", "INVALID_PAYLOAD", "SUBSCRIPTION_INVALID", "MESSAGE_TOO_LARGE", "RATE_LIMITED", "UNAUTHORIZED", "FORBIDDEN", "MAX_CONNECTIONS_EXCEEDED", "HEARTBEAT_TIMEOUT", "QUEUE_OVERFLOW", "BACKPLANE_UNAVAILABLE", "BACKPLANE_FULL", "SERVICE_UNAVAILABLE", "INTERNAL_ERROR", "BAD_REQUEST", "NOT_FOUND", "METHOD_NOT_ALLOWED", "REQUEST_TIMEOUT", "CONFLICT", "UNSUPPORTED_MEDIA_TYPE", "NOT_ACCEPTABLE", "EXPECTATION_FAILED", "UPGRADE_REQUIRED", "REQUEST_HEADER_FIELDS_TOO_LARGE", "HTTP_VERSION_NOT_SUPPORTED"]
    """for programs"""


class ReplicaStatus(TypedDict):
    """The replica of the shared server that this machine runs."""

    state: str
    """`in sync`, or why it is not read"""
    readers: int
    """workers that read from it"""
    bytesBehind: int | None
    """bytes of the replication that it lacks; null: unknown"""
    secondsBehind: float | None
    """seconds that it is behind; null: unknown"""


class BackplaneStatus(TypedDict):
    """What keeps the messages; where clients need a token, `cause`, `warnings` and `replica` only with one."""

    status: Literal["ok", "degraded", "unavailable"]
    """in a word"""
    cause: NotRequired[str | None]
    """what is wrong; null: nothing"""
    writable: bool
    """whether messages can be stored"""
    warnings: NotRequired[list[str]]
    """what an operator should know"""
    replica: NotRequired[ReplicaStatus]
    """this machine's replica, where it has one"""


class ShownPresence(TypedDict):
    """What the lab does, as far as this worker knows."""

    state: Literal["idle", "working", "offline"]
    """after ten minutes without an update `offline`"""
    task: str | None
    """in words"""
    updatedAt: int | None
    """Unix time in milliseconds; null: never set"""
    stale: NotRequired[bool]
    """true: the backplane could not confirm it"""


class ServiceStatus(TypedDict):
    """Whether clients can be served, and what is wrong if not; where clients need a token, `version`, `uptime` and `presence` only with one."""

    status: Literal["ok", "degraded", "unavailable"]
    """in a word"""
    causes: list[str]
    """what is wrong, without a token only its kind; empty: nothing"""
    version: NotRequired[str]
    """of the service"""
    uptime: NotRequired[float]
    """seconds"""
    connections: int
    """of this machine"""
    maxConnections: int
    """the setting `MAX_TOTAL_CONNECTIONS`"""
    expectedWorkers: int
    """the setting `WORKERS`"""
    workers: list[WorkerStatus]
    """of this machine"""
    backplane: BackplaneStatus
    """what keeps the messages"""
    presence: NotRequired[ShownPresence]
    """what the lab does"""


class SetPresence(TypedDict):
    """What the lab does."""

    state: Literal["idle", "working", "offline"]
    """what it does"""
    task: NotRequired[str | None]
    """in words; empty: none"""


class Stored(TypedDict):
    """Where a message stands."""

    id: str
    """of the message"""
    type: str
    """of the stream"""
    seq: int
    """in the stream"""
    epoch: str
    """of the stream"""


class PresenceSet(TypedDict):
    """What the lab does, and the message that says so."""

    state: Literal["idle", "working", "offline"]
    """after ten minutes without an update `offline`"""
    task: str | None
    """in words"""
    updatedAt: int | None
    """Unix time in milliseconds; null: never set"""
    message: Stored
    """the `status_update`"""


class Samples(TypedDict):
    """Means of one machine; the lists have the same length."""

    t: list[int]
    """seconds after `start`"""
    cpu: list[float]
    """percent"""
    memory: list[float]
    """percent"""
    disk: list[float]
    """percent"""
    connections: list[float]
    """open connections"""


class Series(TypedDict):
    """CPU, memory, disk and connections over time."""

    range: Literal["15m", "1h", "6h", "24h"]
    """that was asked for"""
    step: int
    """seconds between samples"""
    start: int
    """Unix time in milliseconds"""
    end: int
    """Unix time in milliseconds"""
    hosts: dict[str, Samples]
    """by name of the machine"""


class HistoryPage(TypedDict):
    """Old messages of a type."""

    messages: list[StreamMessage]
    """the newest last, at most 1 MB but at least one"""
    more: bool
    """whether there are older ones"""


class PriorityCounts(TypedDict):
    """Messages by priority."""

    high: int
    """messages"""
    normal: int
    """messages"""
    low: int
    """messages"""


class Dropped(TypedDict):
    """Messages that were dropped from the full queue, by priority."""

    high: int
    """messages"""
    normal: int
    """messages"""
    low: int
    """messages"""
    total: int
    """all of them"""


class Queue(TypedDict):
    """What waits to be stored."""

    length: int
    """messages"""
    maxSize: int
    """messages; the setting `MAX_QUEUE_SIZE`"""
    bytes: int
    """of these messages"""
    maxBytes: int
    """the setting `MAX_QUEUE_BYTES`"""
    priorities: PriorityCounts
    """messages by priority"""
    dropped: Dropped
    """since the start"""
    flushInterval: float
    """milliseconds"""
    batchSize: int
    """messages of one write"""
    lag: float
    """milliseconds that the slowest worker is behind"""


class Connection(TypedDict):
    """A connection, as operators see it."""

    id: str
    """the `connectionId` of `connected`"""
    user: str | None
    """the user's name; null: none"""
    protocol: str
    """what it speaks"""
    types: list[str]
    """subscriptions"""
    host: str
    """the machine that serves it"""
    worker: int
    """process id of the worker there"""
    since: int | None
    """Unix time in milliseconds of its first connect, which recovery keeps; null: unknown"""


class ConnectionList(TypedDict):
    """A page of connections."""

    connections: list[Connection]
    """in the order of their ids"""
    total: int
    """connections on all pages"""
    more: bool
    """whether there is another page"""
    workers: int
    """workers that have answered"""
    complete: bool
    """whether these are known to be all workers"""


class UserList(TypedDict):
    """A page of the users that are connected."""

    users: list[ConnectedUser]
    """in the order of their names"""
    anonymous: int
    """connections without a name"""
    total: int
    """connections on all pages"""
    more: bool
    """whether there is another page"""
    workers: int
    """workers that have answered"""
    complete: bool
    """whether these are known to be all workers"""


class ClosedConnections(TypedDict):
    """What was closed."""

    closed: int
    """connections"""
    workers: int
    """workers that have answered"""
    complete: bool
    """whether these are known to be all workers"""


class PublishedMessage(TypedDict):
    """A message to publish."""

    type: str
    """of the stream"""
    event: str
    """its name: a letter, then at most 63 letters, digits or any of `_.:/-`; some are reserved"""
    data: Any
    """any JSON value"""
    priority: NotRequired[Literal["high", "normal", "low"]]
    """when the queue is full, the lowest goes first; `normal`"""
    id: NotRequired[str | None]
    """makes the call repeatable: within five minutes the same `id` is stored once; printable characters"""


class NotStored(TypedDict):
    """Why a message of an array is not stored. `type`, `seq` and `epoch` are those of the stored message with the same `id`."""

    error: str
    """the cause and the remedy, for people"""
    code: Literal["PARSE_ERROR", "INVALID_TYPE", "INVALID_ACTION", "INVALID_PAYLOAD", "SUBSCRIPTION_INVALID", "MESSAGE_TOO_LARGE", "RATE_LIMITED", "UNAUTHORIZED", "FORBIDDEN", "MAX_CONNECTIONS_EXCEEDED", "HEARTBEAT_TIMEOUT", "QUEUE_OVERFLOW", "BACKPLANE_UNAVAILABLE", "BACKPLANE_FULL", "SERVICE_UNAVAILABLE", "INTERNAL_ERROR", "BAD_REQUEST", "NOT_FOUND", "METHOD_NOT_ALLOWED", "REQUEST_TIMEOUT", "CONFLICT", "UNSUPPORTED_MEDIA_TYPE", "NOT_ACCEPTABLE", "EXPECTATION_FAILED", "UPGRADE_REQUIRED", "REQUEST_HEADER_FIELDS_TOO_LARGE", "HTTP_VERSION_NOT_SUPPORTED"]
    """for programs"""
    id: str | None
    """of the message; null: it has none, or an invalid one"""
    type: NotRequired[str]
    """with `CONFLICT`"""
    seq: NotRequired[int]
    """with `CONFLICT`"""
    epoch: NotRequired[str]
    """with `CONFLICT`"""


class Alert(TypedDict):
    """An alert of Alertmanager; what it lacks, or has in another form, is left out."""

    status: NotRequired[Any]
    """`firing` or `resolved`"""
    labels: NotRequired[Any]
    """texts by name; `alertname` and `severity` are used"""
    annotations: NotRequired[Any]
    """texts by name; `summary` and `value` are used"""
    startsAt: NotRequired[Any]
    """a time as in RFC 3339"""
    fingerprint: NotRequired[Any]
    """names the alert"""


class Notification(TypedDict):
    """The webhook of Alertmanager, version 4."""

    version: Literal["4"]
    """of the webhook"""
    alerts: list[Alert]
    """one message each"""
    status: NotRequired[Any]
    """stands in for what an alert lacks"""
    commonLabels: NotRequired[Any]
    """likewise"""


class SkippedAlert(TypedDict):
    """An alert that is not stored."""

    error: str
    """the cause and the remedy, for people"""
    code: Literal["PARSE_ERROR", "INVALID_TYPE", "INVALID_ACTION", "INVALID_PAYLOAD", "SUBSCRIPTION_INVALID", "MESSAGE_TOO_LARGE", "RATE_LIMITED", "UNAUTHORIZED", "FORBIDDEN", "MAX_CONNECTIONS_EXCEEDED", "HEARTBEAT_TIMEOUT", "QUEUE_OVERFLOW", "BACKPLANE_UNAVAILABLE", "BACKPLANE_FULL", "SERVICE_UNAVAILABLE", "INTERNAL_ERROR", "BAD_REQUEST", "NOT_FOUND", "METHOD_NOT_ALLOWED", "REQUEST_TIMEOUT", "CONFLICT", "UNSUPPORTED_MEDIA_TYPE", "NOT_ACCEPTABLE", "EXPECTATION_FAILED", "UPGRADE_REQUIRED", "REQUEST_HEADER_FIELDS_TOO_LARGE", "HTTP_VERSION_NOT_SUPPORTED"]
    """for programs"""
    alert: int
    """its place in the notification, from 0"""


class AlertsStored(TypedDict):
    """What became of a notification."""

    messages: list[Stored]
    """the alerts that are stored"""
    skipped: NotRequired[list[SkippedAlert]]
    """those that are not"""


class Index(TypedDict):
    """Where everything is."""

    name: str
    """of the service"""
    version: str
    """of the service"""
    links: dict[str, str]
    """paths by name"""


class PageConfig(TypedDict):
    """Tells the page where its service is."""

    api: str
    """an address; empty: the page's own origin"""


ErrorCode = Literal[
    "PARSE_ERROR", "INVALID_TYPE", "INVALID_ACTION", "INVALID_PAYLOAD", "SUBSCRIPTION_INVALID",
    "MESSAGE_TOO_LARGE", "RATE_LIMITED", "UNAUTHORIZED", "FORBIDDEN",
    "MAX_CONNECTIONS_EXCEEDED", "HEARTBEAT_TIMEOUT", "QUEUE_OVERFLOW", "BACKPLANE_UNAVAILABLE",
    "BACKPLANE_FULL", "SERVICE_UNAVAILABLE", "INTERNAL_ERROR", "BAD_REQUEST", "NOT_FOUND",
    "METHOD_NOT_ALLOWED", "REQUEST_TIMEOUT", "CONFLICT", "UNSUPPORTED_MEDIA_TYPE",
    "NOT_ACCEPTABLE", "EXPECTATION_FAILED", "UPGRADE_REQUIRED",
    "REQUEST_HEADER_FIELDS_TOO_LARGE", "HTTP_VERSION_NOT_SUPPORTED",
]
"""Codes of `error` events and of HTTP answers."""


CloseCode = Literal[
    1000, 1001, 1002, 1007, 1008, 1009, 1012, 1013, 4401, 4403, 4408, 4409, 4413, 4429,
]
"""Close codes of the service."""


ActionName = Literal[
    "subscribe", "unsubscribe", "get_history", "ping", "ack", "presence", "auth",
]
"""What clients may ask for."""


EventName = Literal[
    "connected", "subscribed", "unsubscribed", "history_data", "pong", "presence_data",
    "authenticated", "batch_update", "gap", "token_expiring", "connection_closing", "error",
    "offset", "status_update", "stats_update", "health_alert", "health_recovery", "join",
    "leave",
]
"""Events of the service; publishers add their own."""
