/** Client of the plain protocol of Yujian Presence: newest state first, recovery, no dependency. */
import type { Actions, Connected, GapData, HistoryPage, Subscribers } from './protocol.js';
export type * from './protocol.js';
/** A message of a stream, or an answer. `seq` rises by one from message to message of its type. */
export interface Message<T = unknown> {
    id: string;
    type: string;
    event: string;
    /** Unix time in milliseconds. */
    timestamp: number;
    data: T;
    seq?: number;
    epoch?: string;
    replyTo?: string;
}
/** How a message came: as it happened, from the past that was asked for, or after a reconnect. */
export type Origin = 'live' | 'history' | 'recovered';
/** Messages `first` to `last` of a type that will not come. */
export interface Gap extends GapData {
    type: string;
}
/** Why there is no connection, in one word. */
export type Cause = 'network' | 'restart' | 'full' | 'silent' | 'slow' | 'flood' | 'protocol' | 'token' | 'origin' | 'operator' | 'user-limit' | 'replaced' | 'left';
export interface State {
    name: 'connecting' | 'open' | 'waiting' | 'closed';
    cause?: Cause;
    /** Close code of the last connection; 403 where HTTP refuses the page's origin, 400 the query, 404 the address. */
    code?: number;
    /** What the service said about it. */
    message?: string | undefined;
    /** Unix time in milliseconds of the next attempt. */
    retryAt?: number;
}
export interface Counts {
    received: number;
    /** Came after a reconnect, in place of what was missed. */
    recovered: number;
    reconnects: number;
    /** Gaps that lost messages, and how many messages those were. */
    gaps: number;
    missed: number;
}
export interface Options {
    /** Newest messages of each type that come first: 0 to 100, by default 1. */
    history?: number;
    /** A token, or a function that gets one, or null where there is none: called for each connection and before one expires. */
    token?: string | (() => string | null | undefined | Promise<string | null | undefined>);
    /** Name of the client, where the service asks for no token. */
    user?: string;
    /** Milliseconds between pings; twice as much silence ends a connection. By default 15 000. */
    ping?: number;
    /** Shortest and longest pause before a reconnect, in milliseconds. By default 500 and 15 000. */
    pause?: [number, number];
    /** For a runtime without one of its own, such as that of `ws`. */
    WebSocket?: unknown;
    /**
     * `auto`, the default: server-sent events where the service answers over HTTP and no WebSocket has opened twice.
     * `presence` is not available over them.
     */
    transport?: 'auto' | 'websocket' | 'sse';
    /** For a runtime without one of its own. */
    EventSource?: unknown;
}
interface Events {
    state: State;
    message: Message;
    gap: Gap;
    error: RealtimeError;
    rtt: number;
}
/** What the service answered in place of what was asked for; `code` as in its `error` events. */
export declare class RealtimeError extends Error {
    readonly code: string;
    constructor(code: string, message: string);
}
/**
 * Begin to connect. `url` is the service's, `http(s)` or `ws(s)`, with the path under which it is served;
 * in a browser by default the page's origin.
 */
export declare function connect(url?: string, options?: Options): Realtime;
export declare class Realtime {
    private _options;
    /** State of the connection; `on('state', …)` tells of changes. */
    state: State;
    readonly counts: Counts;
    /** Last round trip in milliseconds. */
    rtt: number | undefined;
    /** Data of `connected`: `connectionId`, `user`, `supportedTypes`, limits. */
    connected: Connected | undefined;
    /** Milliseconds by which the service's clock is ahead of this one. */
    clockOffset: number;
    private _url;
    private _socket;
    private _listeners;
    private _handlers;
    private _positions;
    /** The newest message of each type that flows, for listeners that come later. */
    private _newest;
    private _liveFrom;
    /** Types that flow or were asked for on this connection. */
    private _flowing;
    /** The last `unsubscribe` of a type, by id: what comes before its answer belongs to the subscription that it ends. */
    private _ended;
    private _pending;
    private _queue;
    private _ready;
    private _failures;
    private _blocked;
    private _hasOpened;
    private _hasLeft;
    private _lastError;
    private _tokenTried;
    private _retry;
    private _pings;
    private _wake;
    /** A browser that knows of no network is right; waiting for the heartbeat would only hide it. */
    private _cut;
    constructor(url?: string, _options?: Options);
    /**
     * Listen to messages of one or more types; `all` stands for every one.
     * The newest message of each comes first. Returns what ends the subscription.
     */
    subscribe<T = unknown>(types: string | string[], listener: (message: Message<T>, origin: Origin) => void, { history }?: {
        history?: number;
    }): () => void;
    /** Listen to `state`, `message`, `gap`, `error` or `rtt`. Returns what ends it. */
    on<E extends keyof Events>(event: E, handler: (value: Events[E]) => void): () => void;
    /** Ask the service; waits for a connection. Rejects with a `RealtimeError` where it refuses. */
    request<A extends keyof Actions>(action: A, payload?: Actions[A]['payload']): Promise<Message<Actions[A]['reply']>>;
    request<T = unknown>(action: string, payload?: unknown): Promise<Message<T>>;
    /** Older messages of a type, newest last. */
    history(type: string, limit?: number, before?: number): Promise<HistoryPage>;
    /** How many are subscribed to a type, and with a `limit` (1 to 100) which users. */
    presence(type: string, limit?: number, after?: string): Promise<Subscribers>;
    /** Round trip in milliseconds. */
    ping(now?: boolean): Promise<number>;
    /** Come back now, also after what is final: with another token, say. */
    reconnect(options?: Partial<Options>): void;
    /** Leave for good. */
    close(): void;
    private _emit;
    private _become;
    private _open;
    /** The first frame shows the token, if there is one: it never stands in an address. */
    private _authenticate;
    private _ask;
    private _wanted;
    /** Subscriptions to what listeners want and does not flow. */
    private _missing;
    /** Ask for what is wanted and does not flow, and end what flows and is not wanted any more. */
    private _follow;
    private _receive;
    private _take;
    private _lost;
    /** Milliseconds before what has failed is tried again: longer each time, and at random. */
    private _pause;
    /** Whether it is WebSockets alone that do not pass, or the address is wrong: a service that is down answers nothing. */
    private _lookForHttp;
    private _end;
}
