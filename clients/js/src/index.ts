/** Client of the plain protocol of Yujian Presence: newest state first, recovery, no dependency. */

import { beside, EventSocket, type SourceClass } from './events';
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
} from './protocol';

export type * from './protocol';

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
  /** Close code of the last connection; 403 where HTTP refuses the page's origin, 400 the query. */
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
  /** A token, or a function that gets one: called for each connection and before one expires. */
  token?: string | (() => string | Promise<string>);
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
const FINAL = [400, 403, 1008, 4401, 4403, 4409];
const REQUEST_TIMEOUT = 15_000;
/** WebSockets that do not open while HTTP works, in a row, before server-sent events are tried. */
const BLOCKED = 2;

let ids = 0;

/** Begin to connect. `url` is the service's, `http(s)` or `ws(s)`; in a browser by default the page's. */
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

  private url: string;
  private socket: Socket | undefined;
  private listeners: { types: string[]; history: number | undefined; call: Listener }[] = [];
  private handlers = new Map<keyof Events, Set<(value: never) => void>>();
  private positions = new Map<string, Position>();
  /** The newest message of each type that flows, for listeners that come later. */
  private newest = new Map<string, Message<never>>();
  private liveFrom = new Map<string, number>();
  /** Types that flow or were asked for on this connection. */
  private flowing = new Set<string>();
  private pending = new Map<string, Pending>();
  private queue: { frame: string; id: string }[] = [];
  private ready = false;
  private failures = 0;
  private blocked = 0;
  private hasOpened = false;
  private hasLeft = false;
  private receivedAt = 0;
  private lastError: RealtimeError | undefined;
  private tokenTried = false;
  private retry: ReturnType<typeof setTimeout> | undefined;
  private pings: ReturnType<typeof setInterval> | undefined;
  private wake = () => {
    if (this.state.name === 'waiting') this.open();
    // An attempt that began without the network may fail yet: the next one comes soon.
    else this.failures = 0;
  };
  /** A browser that knows of no network is right; waiting for the heartbeat would only hide it. */
  private cut = () => {
    if (this.socket) this.lost(this.socket, 1006, '');
  };

  constructor(
    url = '',
    private options: Options = {},
  ) {
    const base = url || globalThis.location?.origin || '';
    const full = new URL(base.replace(/^http/, 'ws'));
    if (full.pathname === '/') full.pathname = '/ws/realtime';
    this.url = full.href;
    globalThis.addEventListener?.('online', this.wake);
    globalThis.addEventListener?.('offline', this.cut);
    this.open();
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
    const entry = {
      types: ([] as string[]).concat(types),
      history,
      call: listener as unknown as Listener,
    };
    this.listeners.push(entry);
    const held = [...this.newest.values()].filter(({ type }) => wants(entry.types, type));
    queueMicrotask(() => {
      if (this.listeners.includes(entry)) for (const message of held) run(entry.call, message, 'history');
    });
    if (this.ready) this.follow();
    return () => {
      this.listeners = this.listeners.filter((other) => other !== entry);
      const wanted = this.wanted();
      const types: string[] = [];
      for (const type of this.flowing) {
        if (wanted.has(type)) continue;
        this.flowing.delete(type);
        this.positions.delete(type);
        this.newest.delete(type);
        if (this.connected?.supportedTypes.includes(type)) types.push(type);
      }
      if (this.ready && types.length) this.request('unsubscribe', { types }).catch(() => {});
    };
  }

  /** Listen to `state`, `message`, `gap`, `error` or `rtt`. Returns what ends it. */
  on<E extends keyof Events>(event: E, handler: (value: Events[E]) => void): () => void {
    const handlers = this.handlers.get(event) ?? new Set();
    this.handlers.set(event, handlers.add(handler));
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
    return this.ask(action, payload, this.ready);
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
  async ping(now = this.ready): Promise<number> {
    const began = performance.now();
    await this.ask('ping', {}, now);
    this.rtt = performance.now() - began;
    this.emit('rtt', this.rtt);
    return this.rtt;
  }

  /** Come back now, also after what is final: with another token, say. */
  reconnect(options: Partial<Options> = {}): void {
    if (this.hasLeft) return;
    Object.assign(this.options, options);
    this.tokenTried = false;
    this.failures = this.blocked = 0;
    if (this.socket) this.end(1000, 'left', true);
    this.open();
  }

  /** Leave for good. */
  close(): void {
    if (this.hasLeft) return;
    this.hasLeft = true;
    globalThis.removeEventListener?.('online', this.wake);
    globalThis.removeEventListener?.('offline', this.cut);
    this.end(1000, 'left', false);
  }

  private emit<E extends keyof Events>(event: E, value: Events[E]): void {
    for (const handler of this.handlers.get(event) ?? []) run(handler, value as never);
  }

  private become(state: State): void {
    this.state = state;
    this.emit('state', state);
  }

  private open(): void {
    clearTimeout(this.retry);
    this.become({ ...this.state, name: 'connecting' });
    if (this.hasLeft) return;
    const query = new URLSearchParams({ types: '' });
    const { user, transport, WebSocket: given, EventSource: source } = this.options;
    if (user) query.set('user', user);
    const resume = this.connected?.resume;
    if (resume) query.set('resume', resume);
    const Class = (given ?? globalThis.WebSocket) as (new (url: string) => Socket) | undefined;
    const Source = (source ?? globalThis.EventSource) as SourceClass | undefined;
    const asksForEvents = transport === 'sse' || (transport !== 'websocket' && (this.blocked >= BLOCKED || !Class));
    const url = `${this.url}?${query}`;
    let socket: Socket;
    if (asksForEvents && Source) {
      socket = new EventSocket(url, Source, () => (this.failures > 1 ? [] : this.missing(new Set()))) as unknown as Socket;
    } else if (Class && transport !== 'sse') socket = new Class(url);
    else {
      const missing = transport === 'sse' ? 'EventSource' : 'WebSocket';
      throw new TypeError(`There is no ${missing} here: give one as the option ${missing}.`);
    }
    this.socket = socket;
    this.hasOpened = false;
    this.lastError = undefined;
    this.receivedAt = Date.now();
    const every = this.options.ping ?? 15_000;
    clearInterval(this.pings);
    this.pings = setInterval(() => {
      if (Date.now() - this.receivedAt > 2 * every) this.lost(socket, 1006, '');
      else if (this.ready) this.ping().catch(() => {});
    }, every);
    socket.onopen = () => {
      this.hasOpened = true;
      if (!(socket instanceof EventSocket)) this.blocked = 0;
      void this.authenticate(socket);
    };
    socket.onmessage = (event: MessageEvent<string>) => {
      if (socket !== this.socket) return;
      this.receivedAt = Date.now();
      try {
        this.receive(JSON.parse(event.data) as Message<never>);
      } catch {
        this.lost(socket, 1002, '');
      }
    };
    socket.onerror = () => {};
    socket.onclose = (event: CloseEvent) => this.lost(socket, event.code, event.reason);
  }

  /** The first frame shows the token, if there is one: it never stands in an address. */
  private async authenticate(socket: Socket): Promise<void> {
    const { token } = this.options;
    const wasReady = this.ready;
    try {
      // Where a token is needed, a ping is refused at once; else it is the first round trip.
      if (token === undefined) await this.ping(true);
      else {
        const value = typeof token === 'function' ? await token() : token;
        if (socket === this.socket) await this.ask('auth', { token: value }, true);
      }
    } catch (error) {
      const refused = (error as RealtimeError).code === 'UNAUTHORIZED';
      if (socket !== this.socket || (token === undefined && !refused)) return;
      const said = error instanceof RealtimeError ? error : new RealtimeError('TOKEN', String(error));
      // A service that asks for no token refuses one, and goes on without it.
      if (refused && token !== undefined && this.ready && !wasReady) this.emit('error', said);
      else {
        this.lastError = said;
        this.lost(socket, refused ? 4401 : 1006, '');
      }
    }
  }

  private ask(action: string, payload: unknown, now: boolean): Promise<Message> {
    const id = `c${++ids}`;
    const frame = JSON.stringify({ id, action, payload, timestamp: Date.now() });
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.pending.delete(id);
        this.queue = this.queue.filter((waiting) => waiting.id !== id);
        reject(new RealtimeError('TIMEOUT', `No answer to '${action}'.`));
      }, REQUEST_TIMEOUT);
      const settle = <A extends unknown[]>(call: (...values: A) => void) => (...values: A) => {
        clearTimeout(timer);
        call(...values);
      };
      this.pending.set(id, { resolve: settle(resolve), reject: settle(reject) });
      if (now) this.socket?.send(frame);
      else this.queue.push({ frame, id });
    });
  }

  private wanted(): Set<string> {
    const types = new Set(this.listeners.flatMap((entry) => entry.types));
    if (!types.delete('all')) return types;
    return new Set(this.connected?.supportedTypes ?? types);
  }

  /** Subscriptions to what listeners want and does not flow. */
  private missing(flowing: ReadonlySet<string>): Subscribe[] {
    const supported = this.connected?.supportedTypes;
    const requests = new Map<unknown, Subscribe>();
    for (const type of this.wanted()) {
      if (flowing.has(type)) continue;
      // A list is refused as one: what the service may refuse is asked for alone.
      const alone = supported && !supported.includes(type);
      const place = alone ? undefined : this.positions.get(type);
      const asking = this.listeners.filter((entry) => wants(entry.types, type));
      const history = Math.max(...asking.map((entry) => entry.history ?? this.options.history ?? 1));
      const key = alone ? type : place ? 'recover' : history;
      const request = requests.get(key) ?? { types: [] };
      requests.set(key, request);
      request.types.push(type);
      if (place) (request.recover ??= {})[type] = place;
      else if (history) request.history = history;
    }
    return [...requests.values()];
  }

  private follow(): void {
    for (const payload of this.missing(this.flowing)) {
      for (const type of payload.types) this.flowing.add(type);
      this.ask('subscribe', payload, true).catch((error: RealtimeError) => {
        if (this.ready) this.emit('error', error);
      });
    }
  }

  private receive(message: Message<never>): void {
    const data = message.data as Record<string, never>;
    const pending = message.replyTo === undefined ? undefined : this.pending.get(message.replyTo);
    switch (message.event) {
      case 'connected':
        this.connected = data as unknown as Connected;
        this.clockOffset = Number(data.serverTime) - Date.now();
        this.ready = true;
        this.failures = 0;
        this.tokenTried = false;
        this.flowing.clear();
        this.become({ name: 'open' });
        if (!this.ready) return;
        this.follow();
        for (const { frame } of this.queue.splice(0)) this.socket?.send(frame);
        break;
      case 'subscribed':
        for (const [type, place] of Object.entries((data as unknown as Subscribed).types)) {
          this.liveFrom.set(type, place.seq);
          if (!this.positions.has(type)) this.positions.set(type, { epoch: place.epoch, seq: place.from - 1 });
        }
        break;
      case 'history_data':
        // An answer to `history()` is for its caller; what follows a subscription is for the listeners.
        if (!pending && this.flowing.has(message.type)) {
          for (const past of data.messages as unknown as Message<never>[]) this.take(past, 'history');
        }
        break;
      case 'batch_update':
        for (const one of data.messages as unknown as Message<never>[]) this.receive(one);
        return;
      case 'gap': {
        const gap = { ...(data as unknown as Gap), type: message.type };
        if (gap.reason !== 'latest') {
          this.counts.gaps++;
          if (gap.reason === 'history') this.counts.missed += gap.last - gap.first + 1;
        }
        this.positions.set(gap.type, { epoch: gap.epoch, seq: gap.last });
        this.emit('gap', gap);
        break;
      }
      case 'token_expiring':
        if (this.socket && typeof this.options.token === 'function') void this.authenticate(this.socket);
        break;
      case 'error': {
        const error = new RealtimeError(String(data.code), String(data.message));
        if (pending) pending.reject(error);
        else {
          this.lastError = error;
          this.emit('error', error);
        }
        break;
      }
    }
    if (message.seq !== undefined) {
      const known = this.positions.get(message.type);
      const fresh = !known || message.epoch !== known.epoch || message.seq > known.seq;
      const recovered = message.seq <= (this.liveFrom.get(message.type) ?? 0);
      if (fresh) this.take(message, recovered ? 'recovered' : 'live');
    }
    if (pending) {
      this.pending.delete(message.replyTo as string);
      pending.resolve(message);
    }
  }

  private take(message: Message<never>, origin: Origin): void {
    const { type, seq = 0, epoch = '' } = message;
    const known = this.positions.get(type);
    if (!known || known.epoch !== epoch || seq >= known.seq) {
      this.positions.set(type, { epoch, seq });
      this.newest.set(type, message);
    }
    if (origin === 'recovered' && this.counts.reconnects) this.counts.recovered++;
    if (origin !== 'history') this.counts.received++;
    this.emit('message', message);
    for (const { types, call } of [...this.listeners]) {
      if (wants(types, type)) run(call, message, origin);
    }
  }

  private lost(socket: Socket, code: number, reason: string): void {
    if (socket !== this.socket) return;
    if (!this.hasOpened && this.options.transport !== 'websocket') void this.lookForHttp();
    const said = this.lastError;
    let cause = CAUSES[code] ?? 'network';
    let back = !FINAL.includes(code);
    if (code === 1013 && said?.code === 'SERVICE_UNAVAILABLE') cause = 'restart';
    if (code === 1008 && said && said.code !== 'MAX_CONNECTIONS_EXCEEDED') cause = 'protocol';
    // A token that the service refuses may be old: one that is got anew has another chance.
    if (cause === 'token' && typeof this.options.token === 'function' && !this.tokenTried) {
      this.tokenTried = back = true;
    }
    this.end(code, cause, back, said?.message);
    if (!back) return;
    const [least, most] = this.options.pause ?? [500, 15_000];
    const grown = Math.min(most, least * 2 ** Math.min(this.failures++, 10));
    const wait = retryAfter(reason) ?? (code === 4429 ? most : grown) * (0.5 + Math.random());
    this.counts.reconnects++;
    this.retry = setTimeout(() => this.open(), wait);
    this.become({ ...this.state, name: 'waiting', retryAt: Date.now() + wait });
  }

  /** Whether it is WebSockets alone that do not pass: a service that is down answers nothing. */
  private async lookForHttp(): Promise<void> {
    try {
      const { status } = await fetch(beside(this.url, '/events'), { method: 'HEAD', cache: 'no-store' });
      // 401: a token is asked for, which is not shown here. Another refusal is one of WebSockets as well.
      if (status === 200 || status === 401) this.blocked++;
    } catch {
      this.blocked = 0;
    }
  }

  private end(code: number, cause: Cause, back: boolean, message?: string): void {
    const socket = this.socket;
    this.socket = undefined;
    this.ready = false;
    clearInterval(this.pings);
    clearTimeout(this.retry);
    if (socket) {
      socket.onopen = socket.onmessage = socket.onclose = null;
      try {
        socket.close();
      } catch {
        // It was closed already.
      }
    }
    if (!back) this.queue = [];
    for (const [id, pending] of this.pending) {
      if (this.queue.some((waiting) => waiting.id === id)) continue;
      this.pending.delete(id);
      pending.reject(new RealtimeError('CLOSED', message ?? 'The connection has ended.'));
    }
    const state: State = { name: back ? 'waiting' : 'closed', cause, code, message };
    if (back) this.state = state;
    else this.become(state);
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
