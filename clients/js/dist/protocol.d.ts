/** What goes over a connection, and the answers to HTTP calls. Made by `make protocol`: do not edit. */
/** What every message of the service travels in. */
export interface Envelope<T = unknown> {
    /** a UUID, or what the publisher has chosen */
    id: string;
    /** the type of messages that it belongs to; of answers `config`, `system` or `error` */
    type: string;
    /** Unix time in milliseconds */
    timestamp: number;
    /** always the same */
    direction: 'server-to-client';
    /** what it is; over Socket.IO also the name of the event */
    event: string;
    /** as the event says */
    data: T;
    /** on messages of a stream: rises by one from message to message of its type */
    seq?: number;
    /** on messages of a stream: changes when the stream started anew */
    epoch?: string;
    /** on answers: the `id` of the request */
    replyTo?: string | number;
}
/** A message of a stream. */
export interface StreamMessage<T = unknown> extends Envelope<T> {
    /** rises by one from message to message of its type */
    seq: number;
    /** changes when the stream started anew */
    epoch: string;
}
/** What clients send: only `action` is required. */
export interface RequestEnvelope {
    /** what to do */
    action: string;
    /** as the action says */
    payload?: unknown;
    /** comes back as `replyTo` of the answer */
    id?: string | number | null;
    /** ignored */
    type?: unknown;
    /** ignored */
    timestamp?: unknown;
}
/** The last message of a type that a client has. */
export interface Position {
    /** of that message */
    epoch: string;
    /** of that message */
    seq: number;
}
/** Payload of `subscribe`. */
export interface Subscribe {
    /** types of messages; `all`: every one */
    types: string[];
    /** newest messages of each type that come first */
    history?: number | null;
    /** by type, of those in `types`: the last message that the client has */
    recover?: Record<string, Position> | null;
    /** whether messages may come as `batch_update`; as before where it is not given */
    batch?: boolean | null;
}
/** Payload of `unsubscribe`. */
export interface Unsubscribe {
    /** types of messages; `all`: every one */
    types: string[];
}
/** Payload of `get_history`. */
export interface GetHistory {
    /** of the messages */
    type: string;
    /** messages; by default the setting `DEFAULT_HISTORY_LIMIT` (50) */
    limit?: number | null;
    /** only messages with a lower `seq` */
    before?: number | null;
}
/** Payload of `ack`. */
export interface Ack {
    /** of the message */
    id: string;
}
/** Payload of `presence`. */
export interface AskPresence {
    /** of messages */
    type: string;
    /** users that are named; where it is not given none are */
    limit?: number | null;
    /** with `limit`: only users behind this one */
    after?: string | null;
}
/** Payload of `auth`. */
export interface Auth {
    /** a JWT */
    token: string;
}
/** What the service says of the connection and of itself. */
export interface Connected {
    /** names the connection in logs */
    connectionId: string;
    /** to take over from this connection: the query parameter `resume` of the next one */
    resume: string;
    /** the user's name; null: none */
    user: string | null;
    /** Unix time in milliseconds by the service's clock */
    serverTime: number;
    /** types that the client may subscribe to */
    supportedTypes: string[];
    /** types that it is subscribed to */
    subscriptions: string[];
    /** milliseconds between pings of the service */
    heartbeatInterval: number;
    /** milliseconds of silence after which the service closes */
    heartbeatTimeout: number;
    /** milliseconds for which history holds every message at least */
    recoveryWindow: number;
    /** a suggestion */
    maxReconnectAttempts: number;
    /** bytes of a message of the client */
    maxMessageSize: number;
}
/** Where a type begins to flow. */
export interface Flow {
    /** of the stream */
    epoch: string;
    /** where live messages begin: behind this one */
    seq: number;
    /** whether `recover` was honoured in full */
    recovered: boolean;
    /** the first `seq` that is replayed */
    from: number;
}
/** The answer to `subscribe`. */
export interface Subscribed {
    /** where each type that was asked for begins */
    types: Record<string, Flow>;
    /** whether messages may come as `batch_update` */
    batch: boolean;
}
/** The answer to `unsubscribe`. */
export interface Unsubscribed {
    /** types that are left */
    types: string[];
}
/** Old messages of a type, over a connection. */
export interface HistoryData extends HistoryPage {
    /** true: older messages that were asked for follow in another `history_data` */
    follows?: boolean;
}
/** The answer to `ping`. */
export interface Pong {
    /** what the request had; null where it had none */
    payload: unknown;
    /** Unix time in milliseconds by the service's clock */
    serverTime: number;
}
/** A user that is connected. */
export interface ConnectedUser {
    /** the user's name */
    user: string;
    /** open connections */
    connections: number;
}
/** How many are subscribed to a type, over all workers of the machine; at most 2 s old. */
export interface Subscribers {
    /** connections */
    connections: number;
    /** users; a client without a name counts as one */
    users: number;
    /** with `limit`: users of all machines that are subscribed to the type, in the order of their names */
    names?: ConnectedUser[];
    /** with `limit`: users with a name, on all pages */
    total?: number;
    /** with `limit`: whether there is another page */
    more?: boolean;
}
/** The answer to `auth`. */
export interface Authenticated {
    /** the name in the token */
    user: string;
    /** Unix time in milliseconds; null: never */
    expiresAt: number | null;
    /** types that the token allows, where it limits them */
    types?: string[];
}
/** Several messages; each has its own `seq`. */
export interface Batch {
    /** in order */
    messages: StreamMessage[];
}
/** Messages of this type that will not come. */
export interface GapData {
    /** `seq` of the first one */
    first: number;
    /** `seq` of the last one */
    last: number;
    /** of the stream in which they count */
    epoch: string;
    /** `history`: no longer kept; `latest`: skipped for a newer one; `epoch`: the stream started anew */
    reason: 'history' | 'latest' | 'epoch';
}
/** The token ends soon. */
export interface TokenExpiring {
    /** Unix time in milliseconds */
    expiresAt: number;
}
/** Why a stream of server-sent events ends. */
export interface ConnectionClosing {
    /** that of the close frame of a WebSocket */
    code: number;
    /** in words */
    reason: string;
    /** milliseconds after which to connect again */
    retryAfter?: number;
}
/** Why a request was refused, or the connection is about to be closed. */
export interface ErrorData {
    /** for programs */
    code: 'PARSE_ERROR' | 'INVALID_TYPE' | 'INVALID_ACTION' | 'INVALID_PAYLOAD' | 'SUBSCRIPTION_INVALID' | 'MESSAGE_TOO_LARGE' | 'RATE_LIMITED' | 'UNAUTHORIZED' | 'FORBIDDEN' | 'MAX_CONNECTIONS_EXCEEDED' | 'HEARTBEAT_TIMEOUT' | 'QUEUE_OVERFLOW' | 'BACKPLANE_UNAVAILABLE' | 'BACKPLANE_FULL' | 'SERVICE_UNAVAILABLE' | 'INTERNAL_ERROR';
    /** the cause and the remedy, for people */
    message: string;
}
/** What the lab does. */
export interface Presence {
    /** after ten minutes without an update `offline` */
    state: 'idle' | 'working' | 'offline';
    /** in words */
    task: string | null;
    /** Unix time in milliseconds; null: never set */
    updatedAt: number | null;
}
/** The complete state of a machine. The figures are there where the machine collects them. */
export interface StatusUpdate {
    /** what the lab does */
    presence: Presence;
    /** Unix time in milliseconds from which on state and task have been these */
    since?: number | null;
    /** name of the machine */
    host?: string;
    /** percent */
    cpu?: number;
    /** cores */
    cpus?: number;
    /** load averages of 1, 5 and 15 minutes */
    load?: number[];
    /** percent */
    memory?: number;
    /** bytes */
    memoryUsed?: number;
    /** bytes */
    memoryTotal?: number;
    /** percent */
    disk?: number;
    /** bytes */
    diskUsed?: number;
    /** bytes */
    diskTotal?: number;
    /** seconds */
    uptime?: number;
    /** of this machine */
    connections?: number;
    /** of this machine */
    users?: number;
    /** that serve */
    workers?: number;
    /** messages that wait to be stored */
    queue?: number;
}
/** From accepting a message to writing it, in milliseconds; null: nothing was delivered. */
export interface Latency {
    /** mean */
    avg: number | null;
    /** median */
    p50: number | null;
    /** 95th percentile */
    p95: number | null;
    /** 99th percentile */
    p99: number | null;
}
/** What happened in a period. */
export interface PeriodFigures {
    /** its nominal length */
    period: '1m' | '5m' | '15m' | '1h' | '24h';
    /** its real length: less where less is known */
    seconds: number;
    /** HTTP requests and actions */
    requests: number;
    /** messages that were stored */
    published: number;
    /** messages that were written to clients */
    deliveries: number;
    /** errors that were answered */
    errors: number;
    /** of deliveries */
    latency: Latency;
}
/** One worker process; where clients need a token, without one no more than its state and connections. */
export interface WorkerStatus {
    /** process id */
    pid?: number;
    /** what it does */
    state: 'starting' | 'ready' | 'leaving';
    /** open connections */
    connections: number;
    /** rises with each reload */
    generation?: number;
    /** Unix time in milliseconds */
    startedAt?: number;
    /** true: it receives no messages */
    deaf?: boolean;
}
/** The connections of a machine. */
export interface Connections {
    /** open connections */
    totalConnections: number;
    /** users; a client without a name counts as one */
    uniqueUsers: number;
    /** types that a connection is subscribed to */
    averageSubscriptions: number;
    /** connections by type */
    subscriptions: Record<string, number>;
    /** connections by protocol */
    protocols: Record<string, number>;
    /** connections that are behind */
    slowConsumers: number;
    /** the setting `MAX_TOTAL_CONNECTIONS` */
    maxConnections: number;
    /** of the machine */
    workers: WorkerStatus[];
}
/** The figures of one period, of all periods, and the connections of a machine. */
export interface StatsUpdate extends PeriodFigures {
    /** name of the machine */
    host: string;
    /** by period */
    periods: Record<string, PeriodFigures>;
    /** as `GET /ws/stats` answers */
    connections: Connections;
}
/** A threshold was crossed, or an alert of Alertmanager. */
export interface HealthData {
    /** what is measured; of Alertmanager `alertname` */
    metric: string;
    /** `critical`, `warning` or `info`; of Alertmanager the label `severity` */
    level: string;
    /** for people */
    message: string;
    /** measured */
    value?: number;
    /** that was crossed */
    threshold?: number;
    /** Unix time in milliseconds */
    since?: number;
    /** name of the machine, with a shared backplane */
    host?: string;
    /** of Alertmanager's alert */
    labels?: Record<string, string>;
    /** where it comes from, if not from the collector */
    source?: 'alertmanager';
}
/** A user that came or went. */
export interface ChangedUser {
    /** the user's name */
    user: string;
    /** types that its first connection has subscribed to, or its last one has left */
    types: string[];
}
/** Users that came or went within a second. */
export interface AttendanceChange {
    /** some of them, in the order of their names, at most 16 KB */
    users: ChangedUser[];
    /** all of them */
    total: number;
}
/** Why an HTTP call was refused. */
export interface ErrorAnswer {
    /** the cause and the remedy, for people */
    error: string;
    /** for programs */
    code: 'PARSE_ERROR' | 'INVALID_TYPE' | 'INVALID_ACTION' | 'INVALID_PAYLOAD' | 'SUBSCRIPTION_INVALID' | 'MESSAGE_TOO_LARGE' | 'RATE_LIMITED' | 'UNAUTHORIZED' | 'FORBIDDEN' | 'MAX_CONNECTIONS_EXCEEDED' | 'HEARTBEAT_TIMEOUT' | 'QUEUE_OVERFLOW' | 'BACKPLANE_UNAVAILABLE' | 'BACKPLANE_FULL' | 'SERVICE_UNAVAILABLE' | 'INTERNAL_ERROR' | 'BAD_REQUEST' | 'NOT_FOUND' | 'METHOD_NOT_ALLOWED' | 'REQUEST_TIMEOUT' | 'CONFLICT' | 'UNSUPPORTED_MEDIA_TYPE' | 'NOT_ACCEPTABLE' | 'EXPECTATION_FAILED' | 'UPGRADE_REQUIRED' | 'REQUEST_HEADER_FIELDS_TOO_LARGE' | 'HTTP_VERSION_NOT_SUPPORTED';
}
/** The replica of the shared server that this machine runs. */
export interface ReplicaStatus {
    /** `in sync`, or why it is not read */
    state: string;
    /** workers that read from it */
    readers: number;
    /** bytes of the replication that it lacks; null: unknown */
    bytesBehind: number | null;
    /** seconds that it is behind; null: unknown */
    secondsBehind: number | null;
}
/** What keeps the messages; where clients need a token, `cause`, `warnings` and `replica` only with one. */
export interface BackplaneStatus {
    /** in a word */
    status: 'ok' | 'degraded' | 'unavailable';
    /** what is wrong; null: nothing */
    cause?: string | null;
    /** whether messages can be stored */
    writable: boolean;
    /** what an operator should know */
    warnings?: string[];
    /** this machine's replica, where it has one */
    replica?: ReplicaStatus;
}
/** What the lab does, as far as this worker knows. */
export interface ShownPresence extends Presence {
    /** true: the backplane could not confirm it */
    stale?: boolean;
}
/** Whether clients can be served, and what is wrong if not; where clients need a token, `version`, `uptime` and `presence` only with one. */
export interface ServiceStatus {
    /** in a word */
    status: 'ok' | 'degraded' | 'unavailable';
    /** what is wrong, without a token only its kind; empty: nothing */
    causes: string[];
    /** of the service */
    version?: string;
    /** seconds */
    uptime?: number;
    /** of this machine */
    connections: number;
    /** the setting `MAX_TOTAL_CONNECTIONS` */
    maxConnections: number;
    /** the setting `WORKERS` */
    expectedWorkers: number;
    /** of this machine */
    workers: WorkerStatus[];
    /** what keeps the messages */
    backplane: BackplaneStatus;
    /** what the lab does */
    presence?: ShownPresence;
}
/** What the lab does. */
export interface SetPresence {
    /** what it does */
    state: 'idle' | 'working' | 'offline';
    /** in words; empty: none */
    task?: string | null;
}
/** Where a message stands. */
export interface Stored {
    /** of the message */
    id: string;
    /** of the stream */
    type: string;
    /** in the stream */
    seq: number;
    /** of the stream */
    epoch: string;
}
/** What the lab does, and the message that says so. */
export interface PresenceSet extends Presence {
    /** the `status_update` */
    message: Stored;
}
/** Means of one machine; the lists have the same length. */
export interface Samples {
    /** seconds after `start` */
    t: number[];
    /** percent */
    cpu: number[];
    /** percent */
    memory: number[];
    /** percent */
    disk: number[];
    /** open connections */
    connections: number[];
}
/** CPU, memory, disk and connections over time. */
export interface Series {
    /** that was asked for */
    range: '15m' | '1h' | '6h' | '24h';
    /** seconds between samples */
    step: number;
    /** Unix time in milliseconds */
    start: number;
    /** Unix time in milliseconds */
    end: number;
    /** by name of the machine */
    hosts: Record<string, Samples>;
}
/** Old messages of a type. */
export interface HistoryPage {
    /** the newest last, at most 1 MB but at least one */
    messages: StreamMessage[];
    /** whether there are older ones */
    more: boolean;
}
/** Messages by priority. */
export interface PriorityCounts {
    /** messages */
    high: number;
    /** messages */
    normal: number;
    /** messages */
    low: number;
}
/** Messages that were dropped from the full queue, by priority. */
export interface Dropped extends PriorityCounts {
    /** all of them */
    total: number;
}
/** What waits to be stored. */
export interface Queue {
    /** messages */
    length: number;
    /** messages; the setting `MAX_QUEUE_SIZE` */
    maxSize: number;
    /** of these messages */
    bytes: number;
    /** the setting `MAX_QUEUE_BYTES` */
    maxBytes: number;
    /** messages by priority */
    priorities: PriorityCounts;
    /** since the start */
    dropped: Dropped;
    /** milliseconds */
    flushInterval: number;
    /** messages of one write */
    batchSize: number;
    /** milliseconds that the slowest worker is behind */
    lag: number;
}
/** A connection, as operators see it. */
export interface Connection {
    /** the `connectionId` of `connected` */
    id: string;
    /** the user's name; null: none */
    user: string | null;
    /** what it speaks */
    protocol: string;
    /** subscriptions */
    types: string[];
    /** the machine that serves it */
    host: string;
    /** process id of the worker there */
    worker: number;
    /** Unix time in milliseconds of its first connect, which recovery keeps; null: unknown */
    since: number | null;
}
/** A page of connections. */
export interface ConnectionList {
    /** in the order of their ids */
    connections: Connection[];
    /** connections on all pages */
    total: number;
    /** whether there is another page */
    more: boolean;
    /** workers that have answered */
    workers: number;
    /** whether these are known to be all workers */
    complete: boolean;
}
/** A page of the users that are connected. */
export interface UserList {
    /** in the order of their names */
    users: ConnectedUser[];
    /** connections without a name */
    anonymous: number;
    /** connections on all pages */
    total: number;
    /** whether there is another page */
    more: boolean;
    /** workers that have answered */
    workers: number;
    /** whether these are known to be all workers */
    complete: boolean;
}
/** What was closed. */
export interface ClosedConnections {
    /** connections */
    closed: number;
    /** workers that have answered */
    workers: number;
    /** whether these are known to be all workers */
    complete: boolean;
}
/** A message to publish. */
export interface PublishedMessage {
    /** of the stream */
    type: string;
    /** its name: a letter, then at most 63 letters, digits or any of `_.:/-`; some are reserved */
    event: string;
    /** any JSON value */
    data: unknown;
    /** when the queue is full, the lowest goes first; `normal` */
    priority?: 'high' | 'normal' | 'low';
    /** makes the call repeatable: within five minutes the same `id` is stored once; printable characters */
    id?: string | null;
}
/** Why a message of an array is not stored. `type`, `seq` and `epoch` are those of the stored message with the same `id`. */
export interface NotStored extends ErrorAnswer {
    /** of the message; null: it has none, or an invalid one */
    id: string | null;
    /** with `CONFLICT` */
    type?: string;
    /** with `CONFLICT` */
    seq?: number;
    /** with `CONFLICT` */
    epoch?: string;
}
/** An alert of Alertmanager; what it lacks, or has in another form, is left out. */
export interface Alert {
    /** `firing` or `resolved` */
    status?: unknown;
    /** texts by name; `alertname` and `severity` are used */
    labels?: unknown;
    /** texts by name; `summary` and `value` are used */
    annotations?: unknown;
    /** a time as in RFC 3339 */
    startsAt?: unknown;
    /** names the alert */
    fingerprint?: unknown;
}
/** The webhook of Alertmanager, version 4. */
export interface Notification {
    /** of the webhook */
    version: '4';
    /** one message each */
    alerts: Alert[];
    /** stands in for what an alert lacks */
    status?: unknown;
    /** likewise */
    commonLabels?: unknown;
}
/** An alert that is not stored. */
export interface SkippedAlert extends ErrorAnswer {
    /** its place in the notification, from 0 */
    alert: number;
}
/** What became of a notification. */
export interface AlertsStored {
    /** the alerts that are stored */
    messages: Stored[];
    /** those that are not */
    skipped?: SkippedAlert[];
}
/** Where everything is. */
export interface Index {
    /** of the service */
    name: string;
    /** of the service */
    version: string;
    /** paths by name */
    links: Record<string, string>;
}
/** Tells the page where its service is. */
export interface PageConfig {
    /** an address; empty: the page's own origin */
    api: string;
}
/** Codes of `error` events and of HTTP answers. */
export type ErrorCode = "PARSE_ERROR" | "INVALID_TYPE" | "INVALID_ACTION" | "INVALID_PAYLOAD" | "SUBSCRIPTION_INVALID" | "MESSAGE_TOO_LARGE" | "RATE_LIMITED" | "UNAUTHORIZED" | "FORBIDDEN" | "MAX_CONNECTIONS_EXCEEDED" | "HEARTBEAT_TIMEOUT" | "QUEUE_OVERFLOW" | "BACKPLANE_UNAVAILABLE" | "BACKPLANE_FULL" | "SERVICE_UNAVAILABLE" | "INTERNAL_ERROR" | "BAD_REQUEST" | "NOT_FOUND" | "METHOD_NOT_ALLOWED" | "REQUEST_TIMEOUT" | "CONFLICT" | "UNSUPPORTED_MEDIA_TYPE" | "NOT_ACCEPTABLE" | "EXPECTATION_FAILED" | "UPGRADE_REQUIRED" | "REQUEST_HEADER_FIELDS_TOO_LARGE" | "HTTP_VERSION_NOT_SUPPORTED";
/** Close codes of the service. */
export type CloseCode = 1000 | 1001 | 1002 | 1007 | 1008 | 1009 | 1012 | 1013 | 4401 | 4403 | 4408 | 4409 | 4413 | 4429;
/** What clients may ask for: payload, and data of the answer. */
export interface Actions {
    /** Receive the messages of these types; the list is accepted or refused as one. */
    subscribe: {
        payload: Subscribe;
        reply: Subscribed;
    };
    /** Receive the messages of these types no longer. */
    unsubscribe: {
        payload: Unsubscribe;
        reply: Unsubscribed;
    };
    /** Get old messages of a type. */
    get_history: {
        payload: GetHistory;
        reply: HistoryData;
    };
    /** Measure the round trip, and get the service's time. */
    ping: {
        payload: unknown;
        reply: Pong;
    };
    /** Note that a message has arrived; it is counted. */
    ack: {
        payload: Ack;
        reply: undefined;
    };
    /** Ask how many are subscribed to a type, and which users. */
    presence: {
        payload: AskPresence;
        reply: Subscribers;
    };
    /** Show a token, first or in place of one that expires. */
    auth: {
        payload: Auth;
        reply: Authenticated;
    };
}
/** Data of the events of the service. Publishers add their own. */
export interface EventData {
    /** the first message; with tokens, once authenticated */
    connected: Connected;
    /** answers `subscribe` */
    subscribed: Subscribed;
    /** answers `unsubscribe` */
    unsubscribed: Unsubscribed;
    /** answers `get_history`, and follows `subscribe` with `history` */
    history_data: HistoryData;
    /** answers `ping` */
    pong: Pong;
    /** answers `presence` */
    presence_data: Subscribers;
    /** answers `auth` */
    authenticated: Authenticated;
    /** several messages, only if asked for; has no `seq` of its own */
    batch_update: Batch;
    /** messages of this type that will not come */
    gap: GapData;
    /** send `auth` with a new token */
    token_expiring: TokenExpiring;
    /** server-sent events only: the last one */
    connection_closing: ConnectionClosing;
    /** `replyTo` where it answers something */
    error: ErrorData;
    /** the complete state of a machine, see below */
    status_update: StatusUpdate;
    /** figures of one period, of all, and the connections */
    stats_update: StatsUpdate;
    /** a threshold was crossed, or an alert fires */
    health_alert: HealthData;
    /** the end of that */
    health_recovery: HealthData;
    /** users came, with the setting `JOIN_LEAVE` */
    join: AttendanceChange;
    /** users went, likewise */
    leave: AttendanceChange;
}
