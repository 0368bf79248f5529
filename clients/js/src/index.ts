/** Client of the plain protocol of Yujian Presence: newest state first, recovery, no dependency. */

import { beside, EventSocket, type SourceClass } from './events.js';
import type {
  Actions,
  CloseCode,
  Connected,
  GapData,
  HistoryPage,
  Position,
  Subscribe,
  Subscribed,
  Subscribers,
} from './protocol.js';

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
export type Cause =
  | 'network'
  | 'restart'
  | 'full'
  | 'silent'
  | 'slow'
  | 'flood'
  | 'protocol'
  | 'token'
  | 'origin'
  | 'operator'
  | 'user-limit'
  | 'replaced'
  | 'left';

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

type Listener = (message: Message<never>, origin: Origin) => void;
interface Events {
  state: State;
  message: Message;
  gap: Gap;
  error: RealtimeError;
  rtt: number;
}
/** A listener; its types are none once it has ended. */
interface Entry {
  types: string[];
  history: number | undefined;
  call: Listener;
}
type Pending = { resolve(message: Message): void; reject(error: Error): void };
type Socket = Pick<WebSocket, 'send' | 'close' | 'readyState'> &
  Record<'onopen' | 'onmessage' | 'onclose' | 'onerror', ((event: never) => void) | null>;

/** What the service answered in place of what was asked for; `code` as in its `error` events. */
export class RealtimeError extends Error {
  constructor(
    readonly code: string,
    message: string,
  ) {
    super(message);
    this.name = 'RealtimeError';
  }
}

/** Why a connection ended. */
const CAUSES: Record<number, Cause> = {
  400: 'protocol',
  403: 'origin',
  1001: 'restart',
  1002: 'protocol',
  1007: 'protocol',
  1008: 'user-limit',
  1009: 'protocol',
  1012: 'restart',
  1013: 'full',
  4401: 'token',
  4403: 'operator',
  4408: 'silent',
  4409: 'replaced',
  4413: 'slow',
  4429: 'flood',
} satisfies Record<Exclude<CloseCode, 1000> | 400 | 403, Cause>;
/** After which the client does not come back by itself. */
const FINAL = [400, 403, 404, 1008, 4401, 4403, 4409];
/** Codes of what is refused for now. */
const PASSING = /LIMITED|UNAVAILABLE|TIMEOUT|NETWORK/;
const REQUEST_TIMEOUT = 15_000;
/** WebSockets that do not open while HTTP works, in a row, before server-sent events are tried. */
const BLOCKED = 2;

let ids = 0;

/**
 * Begin to connect. `url` is the service's, `http(s)` or `ws(s)`, with the path under which it is served;
 * in a browser by default the page's origin.
 */
export function connect(url?: string, options?: Options): Realtime {
  return new Realtime(url, options);
}

export class Realtime {
  /** State of the connection; `on('state', …)` tells of changes. */
  state: State = { name: 'connecting' };
  readonly counts: Counts = { received: 0, recovered: 0, reconnects: 0, gaps: 0, missed: 0 };
  /** Last round trip in milliseconds. */
  rtt: number | undefined;
  /** Data of `connected`: `connectionId`, `user`, `supportedTypes`, limits. */
  connected: Connected | undefined;
  /** Milliseconds by which the service's clock is ahead of this one. */
  clockOffset = 0;

  private _url: string;
  private _socket: Socket | undefined;
  private _listeners: Entry[] = [];
  private _handlers = new Map<keyof Events, Set<(value: never) => void>>();
  private _positions = new Map<string, Position>();
  /** The newest message of each type that flows, for listeners that come later. */
  private _newest = new Map<string, Message<never>>();
  private _liveFrom = new Map<string, number>();
  /** Types that flow or were asked for on this connection. */
  private _flowing = new Set<string>();
  /** The last `unsubscribe` of a type, by id: what comes before its answer belongs to the subscription that it ends. */
  private _ended = new Map<string, string>();
  private _pending = new Map<string, Pending>();
  private _queue: { frame: string; id: string }[] = [];
  private _ready = false;
  private _failures = 0;
  private _blocked = 0;
  private _hasOpened = false;
  private _hasLeft = false;
  private _lastError: RealtimeError | undefined;
  private _tokenTried = false;
  private _retry: ReturnType<typeof setTimeout> | undefined;
  private _pings: ReturnType<typeof setInterval> | undefined;
  private _wake = () => {
    if (this.state.name === 'waiting') this._open();
    // An attempt that began without the network may fail yet: the next one comes soon.
    else this._failures = 0;
  };
  /** A browser that knows of no network is right; waiting for the heartbeat would only hide it. */
  private _cut = () => {
    if (this._socket) this._lost(this._socket, 1006, '');
  };

  constructor(
    url = '',
    private _options: Options = {},
  ) {
    const base = url || globalThis.location?.origin || '';
    const full = new URL(base.replace(/^http/, 'ws'));
    full.pathname = full.pathname.replace(/(\/ws\/realtime)?\/*$/, '/ws/realtime');
    full.search = full.hash = '';
    this._url = full.href;
    globalThis.addEventListener?.('online', this._wake);
    globalThis.addEventListener?.('offline', this._cut);
    this._open();
  }

  /**
   * Listen to messages of one or more types; `all` stands for every one.
   * The newest message of each comes first. Returns what ends the subscription.
   */
  subscribe<T = unknown>(
    types: string | string[],
    listener: (message: Message<T>, origin: Origin) => void,
    { history }: { history?: number } = {},
  ): () => void {
    const entry: Entry = {
      types: ([] as string[]).concat(types),
      history,
      call: listener as unknown as Listener,
    };
    this._listeners = [...this._listeners, entry];
    const held = [...this._newest.values()];
    queueMicrotask(() => {
      // A newer one may have come within the same batch.
      for (const message of held) if (this._newest.get(message.type) === message) tell(entry, message, 'history');
    });
    this._follow();
    return () => {
      entry.types = [];
      this._listeners = this._listeners.filter((other) => other !== entry);
      this._follow();
    };
  }

  /** Listen to `state`, `message`, `gap`, `error` or `rtt`. Returns what ends it. */
  on<E extends keyof Events>(event: E, handler: (value: Events[E]) => void): () => void {
    const handlers = this._handlers.get(event) ?? new Set();
    this._handlers.set(event, handlers.add(handler));
    return () => void handlers.delete(handler);
  }

  /** Ask the service; waits for a connection. Rejects with a `RealtimeError` where it refuses. */
  request<A extends keyof Actions>(
    action: A,
    payload?: Actions[A]['payload'],
  ): Promise<Message<Actions[A]['reply']>>;
  request<T = unknown>(action: string, payload?: unknown): Promise<Message<T>>;
  request(action: string, payload: unknown = {}): Promise<Message> {
    if (this.state.name === 'closed') {
      return Promise.reject(new RealtimeError('CLOSED', this.state.message ?? 'The connection has ended.'));
    }
    return this._ask(action, payload, this._ready);
  }

  /** Older messages of a type, newest last. */
  async history(type: string, limit = 50, before?: number): Promise<HistoryPage> {
    return (await this.request<HistoryPage>('get_history', { type, limit, before })).data;
  }

  /** How many are subscribed to a type, and with a `limit` (1 to 100) which users. */
  async presence(type: string, limit?: number, after?: string): Promise<Subscribers> {
    return (await this.request<Subscribers>('presence', { type, limit, after })).data;
  }

  /** Round trip in milliseconds. */
  async ping(now = this._ready): Promise<number> {
    const began = performance.now();
    await this._ask('ping', {}, now);
    this.rtt = performance.now() - began;
    this._emit('rtt', this.rtt);
    return this.rtt;
  }

  /** Come back now, also after what is final: with another token, say. */
  reconnect(options: Partial<Options> = {}): void {
    if (this._hasLeft) return;
    Object.assign(this._options, options);
    this._tokenTried = false;
    this._failures = this._blocked = 0;
    if (this._socket) this._end(1000, 'left', true);
    this._open();
  }

  /** Leave for good. */
  close(): void {
    if (this._hasLeft) return;
    this._hasLeft = true;
    globalThis.removeEventListener?.('online', this._wake);
    globalThis.removeEventListener?.('offline', this._cut);
    this._end(1000, 'left', false);
    for (const entry of this._listeners) entry.types = [];
    for (const handlers of this._handlers.values()) handlers.clear();
  }

  private _emit<E extends keyof Events>(event: E, value: Events[E]): void {
    for (const handler of this._handlers.get(event) ?? []) run(handler, value as never);
  }

  private _become(state: State): void {
    this.state = state;
    this._emit('state', state);
  }

  private _open(): void {
    clearTimeout(this._retry);
    this._become({ ...this.state, name: 'connecting' });
    if (this._hasLeft) return;
    const query = new URLSearchParams({ types: '' });
    const { user, transport, WebSocket: given, EventSource: source } = this._options;
    if (user) query.set('user', user);
    const resume = this.connected?.resume;
    if (resume) query.set('resume', resume);
    const Class = (given ?? globalThis.WebSocket) as (new (url: string) => Socket) | undefined;
    const Source = (source ?? globalThis.EventSource) as SourceClass | undefined;
    const asksForEvents = transport === 'sse' || (transport !== 'websocket' && (this._blocked >= BLOCKED || !Class));
    const url = `${this._url}?${query}`;
    let socket: Socket;
    if (asksForEvents && Source) {
      socket = new EventSocket(url, Source, () => (this._failures > 1 ? [] : this._missing(new Set()))) as unknown as Socket;
    } else if (Class && transport !== 'sse') socket = new Class(url);
    else {
      const missing = transport === 'sse' ? 'EventSource' : 'WebSocket';
      throw new TypeError(`There is no ${missing} here: give one as the option ${missing}.`);
    }
    this._socket = socket;
    this._hasOpened = false;
    this._lastError = undefined;
    let receivedAt = Date.now();
    // Whether there was something to receive since: a tab in the background pings once a minute.
    let asked = true;
    const every = this._options.ping ?? 15_000;
    clearInterval(this._pings);
    this._pings = setInterval(() => {
      if (asked && Date.now() - receivedAt > 2 * every) return this._lost(socket, 1006, '');
      asked = true;
      if (!this._ready) return;
      this.ping().catch(() => {});
      this._follow();
    }, every);
    socket.onopen = () => {
      this._hasOpened = true;
      if (!(socket instanceof EventSocket)) this._blocked = 0;
      void this._authenticate(socket);
    };
    socket.onmessage = (event: MessageEvent<string>) => {
      if (socket !== this._socket) return;
      receivedAt = Date.now();
      asked = false;
      try {
        this._receive(JSON.parse(event.data) as Message<never>);
      } catch {
        this._lost(socket, 1002, '');
      }
    };
    socket.onerror = () => {};
    socket.onclose = (event: CloseEvent) => this._lost(socket, event.code, event.reason);
  }

  /** The first frame shows the token, if there is one: it never stands in an address. */
  private async _authenticate(socket: Socket): Promise<void> {
    const { token } = this._options;
    const renews = this._ready;
    try {
      const value = typeof token === 'function' ? await token() : token;
      if (socket !== this._socket) return;
      // Where a token is needed, a ping is refused at once; else it is the first round trip.
      if (value == null) await this.ping(true);
      else await this._ask('auth', { token: value }, true);
      if (renews) this._failures = 0;
    } catch (error) {
      const refused = (error as RealtimeError).code === 'UNAUTHORIZED';
      if (socket !== this._socket || (token === undefined && !refused)) return;
      const said = error instanceof RealtimeError ? error : new RealtimeError('TOKEN', String(error));
      if (this._ready && refused !== renews) {
        this._emit('error', said);
        // A service that asks for no token refuses one, and goes on without it; the old one is valid for a while.
        if (renews && socket === this._socket) this._retry = setTimeout(() => this._authenticate(socket), this._pause());
      } else {
        this._lastError = said;
        this._lost(socket, refused ? 4401 : 1006, '');
      }
    }
  }

  private _ask(action: string, payload: unknown, now: boolean): Promise<Message> {
    const id = `c${++ids}`;
    const frame = JSON.stringify({ id, action, payload, timestamp: Date.now() });
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this._pending.delete(id);
        this._queue = this._queue.filter((waiting) => waiting.id !== id);
        reject(new RealtimeError('TIMEOUT', `No answer to '${action}'.`));
      }, REQUEST_TIMEOUT);
      const settle = <A extends unknown[]>(call: (...values: A) => void) => (...values: A) => {
        clearTimeout(timer);
        call(...values);
      };
      this._pending.set(id, { resolve: settle(resolve), reject: settle(reject) });
      if (now) this._socket?.send(frame);
      else this._queue.push({ frame, id });
    });
  }

  private _wanted(): Set<string> {
    const types = new Set(this._listeners.flatMap((entry) => entry.types));
    if (!types.delete('all')) return types;
    return new Set(this.connected?.supportedTypes ?? types);
  }

  /** Subscriptions to what listeners want and does not flow. */
  private _missing(flowing: ReadonlySet<string>): Subscribe[] {
    const supported = this.connected?.supportedTypes;
    const requests = new Map<unknown, Subscribe>();
    for (const type of this._wanted()) {
      if (flowing.has(type)) continue;
      // A list is refused as one: what the service may refuse is asked for alone.
      const alone = supported && !supported.includes(type);
      const place = alone ? undefined : this._positions.get(type);
      const asking = this._listeners.filter((entry) => wants(entry.types, type));
      const history = Math.max(...asking.map((entry) => entry.history ?? this._options.history ?? 1));
      const key = alone ? type : place ? 'recover' : history;
      const request = requests.get(key) ?? { types: [] };
      requests.set(key, request);
      request.types.push(type);
      if (place) (request.recover ??= {})[type] = place;
      else if (history) request.history = history;
    }
    return [...requests.values()];
  }

  /** Ask for what is wanted and does not flow, and end what flows and is not wanted any more. */
  private _follow(): void {
    const wanted = this._wanted();
    const types: string[] = [];
    for (const type of this._flowing) {
      if (wanted.has(type)) continue;
      this._flowing.delete(type);
      this._positions.delete(type);
      this._newest.delete(type);
      if (this.connected?.supportedTypes.includes(type)) types.push(type);
    }
    if (!this._ready) return;
    if (types.length) {
      this._ask('unsubscribe', { types }, true).catch(() => {});
      for (const type of types) this._ended.set(type, `c${ids}`);
    }
    for (const payload of this._missing(this._flowing)) {
      for (const type of payload.types) this._flowing.add(type);
      this._ask('subscribe', payload, true).catch((error: RealtimeError) => {
        if (!this._ready) return;
        // It is asked for again with the next ping.
        if (PASSING.test(error.code)) for (const type of payload.types) this._flowing.delete(type);
        this._emit('error', error);
      });
    }
  }

  private _receive(message: Message<never>): void {
    const data = message.data as Record<string, never>;
    const pending = this._pending.get(message.replyTo ?? '');
    const stale = (type: string) => this._pending.has(this._ended.get(type) ?? '');
    switch (message.event) {
      case 'connected':
        this.connected = data as unknown as Connected;
        this.clockOffset = Number(data.serverTime) - Date.now();
        this._ready = true;
        this._failures = 0;
        this._tokenTried = false;
        this._flowing.clear();
        this._become({ name: 'open' });
        if (!this._ready) return;
        this._follow();
        for (const { frame } of this._queue.splice(0)) this._socket?.send(frame);
        break;
      case 'subscribed':
        for (const [type, place] of Object.entries((data as unknown as Subscribed).types)) {
          if (stale(type)) continue;
          this._liveFrom.set(type, place.seq);
          if (!this._positions.has(type)) this._positions.set(type, { epoch: place.epoch, seq: place.from - 1 });
        }
        break;
      case 'history_data':
        // An answer to `history()` is for its caller; what follows a subscription is for the listeners.
        if (!pending && this._flowing.has(message.type) && !stale(message.type)) {
          for (const past of data.messages as unknown as Message<never>[]) this._take(past, 'history');
        }
        break;
      case 'batch_update':
        for (const one of data.messages as unknown as Message<never>[]) this._receive(one);
        return;
      case 'gap': {
        if (stale(message.type)) break;
        const gap = { ...(data as unknown as Gap), type: message.type };
        if (gap.reason !== 'latest') {
          this.counts.gaps++;
          if (gap.reason === 'history') this.counts.missed += gap.last - gap.first + 1;
        }
        this._positions.set(gap.type, { epoch: gap.epoch, seq: gap.last });
        this._emit('gap', gap);
        break;
      }
      case 'token_expiring':
        if (this._socket && typeof this._options.token === 'function') void this._authenticate(this._socket);
        break;
      case 'error': {
        const error = new RealtimeError(String(data.code), String(data.message));
        if (pending) pending.reject(error);
        else {
          this._lastError = error;
          this._emit('error', error);
        }
        break;
      }
    }
    if (message.seq !== undefined && !stale(message.type)) {
      const known = this._positions.get(message.type);
      const fresh = !known || message.epoch !== known.epoch || message.seq > known.seq;
      const recovered = message.seq <= (this._liveFrom.get(message.type) ?? 0);
      if (fresh) this._take(message, recovered ? 'recovered' : 'live');
    }
    if (pending) {
      this._pending.delete(message.replyTo as string);
      pending.resolve(message);
    }
  }

  private _take(message: Message<never>, origin: Origin): void {
    const { type, seq = 0, epoch = '' } = message;
    const known = this._positions.get(type);
    if (!known || known.epoch !== epoch || seq >= known.seq) {
      this._positions.set(type, { epoch, seq });
      this._newest.set(type, message);
    }
    if (origin === 'recovered' && this.counts.reconnects) this.counts.recovered++;
    if (origin !== 'history') this.counts.received++;
    this._emit('message', message);
    for (const entry of this._listeners) tell(entry, message, origin);
  }

  private _lost(socket: Socket, code: number, reason: string): void {
    if (socket !== this._socket) return;
    if (!this._hasOpened && this._options.transport !== 'websocket') void this._lookForHttp();
    const said = this._lastError;
    let cause = CAUSES[code] ?? 'network';
    // An address that was right is so again: a proxy may answer 404 while the service restarts.
    let back = !FINAL.includes(code) || (code === 404 && !!this.connected);
    if (code === 1013 && said?.code === 'SERVICE_UNAVAILABLE') cause = 'restart';
    if (code === 1008 && said && said.code !== 'MAX_CONNECTIONS_EXCEEDED') cause = 'protocol';
    // A token that the service refuses may be old: one that is got anew has another chance.
    if (cause === 'token' && typeof this._options.token === 'function' && !this._tokenTried) {
      this._tokenTried = back = true;
    }
    this._end(code, cause, back, said?.message);
    if (!back) return;
    if (code === 4429) this._failures = 99;
    const pause = this._pause();
    const wait = retryAfter(reason) ?? pause;
    this.counts.reconnects++;
    this._retry = setTimeout(() => this._open(), wait);
    this._become({ ...this.state, name: 'waiting', retryAt: Date.now() + wait });
  }

  /** Milliseconds before what has failed is tried again: longer each time, and at random. */
  private _pause(): number {
    const [least, most] = this._options.pause ?? [500, 15_000];
    return Math.min(most, least * 2 ** this._failures++) * (0.5 + Math.random());
  }

  /** Whether it is WebSockets alone that do not pass, or the address is wrong: a service that is down answers nothing. */
  private async _lookForHttp(): Promise<void> {
    const ask = async (path: string) =>
      (await fetch(beside(this._url, path), { method: 'HEAD', cache: 'no-store' })).status;
    try {
      const status = await ask('/events');
      // 401: a token is asked for, which is not shown here. Another refusal is one of WebSockets as well.
      if (status === 200 || status === 401) this._blocked++;
      // A proxy may pass WebSockets alone to the service.
      else if (status === 404 && (await ask('/ws/realtime')) === 404 && !this.connected && this.state.name === 'waiting') {
        this._end(404, 'network', false);
      }
    } catch {
      this._blocked = 0;
    }
  }

  private _end(code: number, cause: Cause, back: boolean, message?: string): void {
    if (code === 404) message ??= `No service answers at ${this._url}.`;
    const socket = this._socket;
    this._socket = undefined;
    this._ready = false;
    clearInterval(this._pings);
    clearTimeout(this._retry);
    if (socket) {
      socket.onopen = socket.onmessage = socket.onclose = null;
      try {
        socket.close();
      } catch {
        // It was closed already.
      }
    }
    if (!back) this._queue = [];
    for (const [id, pending] of this._pending) {
      if (this._queue.some((waiting) => waiting.id === id)) continue;
      this._pending.delete(id);
      pending.reject(new RealtimeError('CLOSED', message ?? 'The connection has ended.'));
    }
    const state: State = { name: back ? 'waiting' : 'closed', cause, code, message };
    if (back) this.state = state;
    else this._become(state);
  }
}

/** What a function of the application throws is reported, and keeps nothing from the others. */
function run<A extends unknown[]>(call: (...values: A) => void, ...values: A): void {
  try {
    call(...values);
  } catch (error) {
    queueMicrotask(() => {
      throw error;
    });
  }
}

const tell = ({ types, call }: Entry, message: Message<never>, origin: Origin): void => {
  if (wants(types, message.type)) run(call, message, origin);
};

const wants = (types: string[], type: string): boolean =>
  types.includes(type) || types.includes('all');

/** The pause that the service asks for in the reason of a close frame, in milliseconds. */
function retryAfter(reason: string): number | undefined {
  try {
    const asked = (JSON.parse(reason) as { retryAfter?: unknown }).retryAfter;
    return typeof asked === 'number' && asked >= 0 ? Math.min(asked, 60_000) : undefined;
  } catch {
    return undefined;
  }
}
