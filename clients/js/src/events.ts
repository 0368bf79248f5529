/** Server-sent events behind the interface of a WebSocket: for networks that let no WebSocket through. */

import type { Subscribe } from './protocol';

type Handler = ((event: never) => void) | null;
type Place = { epoch: string; seq: number };
interface Request {
  id: string;
  action: string;
  payload: {
    types?: string[];
    history?: number;
    recover?: Record<string, Place>;
    type?: string;
    limit?: number;
    before?: number;
    token?: string;
  };
}
type Source = Pick<EventSource, 'close' | 'onmessage' | 'onerror'>;
export type SourceClass = new (url: string) => Source;

/** What an HTTP status says, as the code of a close frame where there is one. */
const CODES: Record<number, number> = { 400: 400, 401: 4401, 403: 403, 429: 1013, 503: 1013 };

/** The address of a call, beside that of the WebSocket. */
export function beside(url: string, path: string): URL {
  const made = new URL(url.replace(/^ws/, 'http'));
  const socket = /\/ws\/realtime\/?$/;
  made.pathname = socket.test(made.pathname) ? made.pathname.replace(socket, path) : path;
  made.search = '';
  return made;
}

const failure = (message: string, code?: string, status?: number) =>
  Object.assign(new Error(message), { code, status });

/**
 * Requests are answered here: a subscription opens the stream anew, the past and pings are HTTP calls.
 * What the service alone could answer (`presence`) is refused.
 */
export class EventSocket {
  readyState = 0;
  onopen: Handler = null;
  onmessage: Handler = null;
  onclose: Handler = null;
  onerror: Handler = null;

  private source: Source | undefined;
  private types = new Set<string>();
  /** Types that the first stream begins with, until they are subscribed to. */
  private first = new Set<string>();
  private places = new Map<string, Place>();
  private user: string | null;
  private token = '';
  /** None before the stream has begun. */
  private supported: string[] | undefined;
  /** Requests that are waited for before the stream is opened anew. */
  private busy = 0;
  /** Called when the stream has said where it goes on. */
  private begun: (() => void)[] = [];
  private last: { code: number; retryAfter?: number } | undefined;

  constructor(
    private url: string,
    private Class: SourceClass,
    /** Subscriptions that will be asked for at once. */
    private wanted: () => Subscribe[],
  ) {
    this.user = new URL(url).searchParams.get('user');
    queueMicrotask(() => {
      if (this.readyState) return;
      this.readyState = 1;
      (this.onopen as (() => void) | null)?.();
    });
  }

  send(frame: string): void {
    const request = JSON.parse(frame) as Request;
    this.answer(request).catch((error: unknown) => {
      const { code = 'NETWORK', message } = error as { code?: string; message: string };
      this.say({ event: 'error', type: 'error', data: { code, message }, replyTo: request.id });
    });
  }

  close(): void {
    this.readyState = 3;
    this.source?.close();
    this.source = undefined;
  }

  private async answer({ id, action, payload }: Request): Promise<void> {
    const reply = (event: string, data: object) => this.say({ event, type: 'config', data, replyTo: id });
    switch (action) {
      case 'auth':
        this.token = payload.token ?? '';
        this.begin();
        return reply('authenticated', {});
      case 'ping':
        if (!this.supported && !this.source) this.begin();
        else await this.fetch('/events', {}, 'HEAD');
        return reply('pong', {});
      case 'subscribe':
        return reply('subscribed', { types: await this.subscribe(payload) });
      case 'unsubscribe':
        for (const type of payload.types ?? []) {
          this.types.delete(type);
          this.places.delete(type);
        }
        this.open();
        return reply('unsubscribed', { types: [...this.types] });
      case 'get_history': {
        const { type = '', limit, before } = payload;
        await this.page({ type, limit, before }, id);
        return;
      }
    }
    throw failure(`'${action}' needs a WebSocket.`, 'INVALID_ACTION');
  }

  /** Let more types flow; gives where each of them goes on, which a cut is recovered from. */
  private async subscribe({ types: named = [], history, recover = {} }: Request['payload']): Promise<object> {
    const types = named.includes('all') ? (this.supported ?? []) : named;
    // The service would refuse the stream, with all other types.
    const unknown = types.find((type) => !this.supported?.includes(type));
    if (unknown) throw failure(`Unknown type '${unknown}'.`, 'INVALID_TYPE');
    const added = types.filter((type) => !this.first.delete(type));
    if (added.length) await this.add(added, recover, history);
    const flows: Record<string, object> = {};
    for (const type of types) {
      const place = this.places.get(type);
      if (place) flows[type] = { ...place, from: place.seq + 1, recovered: type in recover };
    }
    return flows;
  }

  private async add(types: string[], recover: Record<string, Place>, history?: number): Promise<void> {
    this.busy++;
    const begun = new Promise<void>((done) => this.begun.push(done));
    const empty: string[] = [];
    try {
      for (const type of types) {
        const known = recover[type];
        if (known) this.places.set(type, known);
        else if (history && !(await this.bring(type, history))) empty.push(type);
        this.types.add(type);
      }
    } finally {
      if (!--this.busy) this.open();
    }
    await begun;
    // What was stored since its history was read comes before the place where the stream goes on.
    for (const type of empty) if (this.places.get(type)?.seq) await this.bring(type, history ?? 1);
  }

  /** The newest messages of a type, behind which the stream goes on; false: it has none. */
  private async bring(type: string, limit: number): Promise<boolean> {
    const { messages } = await this.page({ type, limit });
    const newest = messages.at(-1);
    if (newest && !this.places.has(type)) this.places.set(type, { epoch: newest.epoch, seq: newest.seq });
    return Boolean(newest);
  }

  private async page(query: Record<string, unknown>, replyTo?: string): Promise<{ messages: Place[] }> {
    const data = (await (await this.fetch('/history', query)).json()) as { messages: Place[] };
    this.say({ event: 'history_data', type: query.type, data, replyTo });
    return data;
  }

  /** The address of a call; what is null or undefined is left out. */
  private address(path: string, query: Record<string, unknown>): URL {
    const url = beside(this.url, path);
    for (const [name, value] of Object.entries(query)) {
      if (value != null) url.searchParams.set(name, value as string);
    }
    return url;
  }

  private async fetch(path: string, query: Record<string, unknown>, method = 'GET'): Promise<Response> {
    const headers: Record<string, string> = this.token ? { Authorization: `Bearer ${this.token}` } : {};
    const answer = await fetch(this.address(path, query), { method, headers, cache: 'no-store' });
    if (answer.ok) return answer;
    const body = (await answer.json().catch(() => ({}))) as { code?: string; error?: string };
    throw failure(body.error ?? `HTTP ${answer.status}`, body.code, answer.status);
  }

  /** Open the first stream: of a client that comes back, with all its types where they were. */
  private begin(): void {
    for (const { recover } of this.source ? [] : this.wanted()) {
      for (const [type, place] of Object.entries(recover ?? {})) {
        this.types.add(type);
        this.first.add(type);
        this.places.set(type, place);
      }
    }
    this.open();
  }

  /** Open the stream, in place of the one that there is. */
  private open(): void {
    if (this.readyState !== 1) return;
    this.source?.close();
    let known = '';
    for (const type of [...this.types].sort()) {
      const place = this.places.get(type);
      if (place) known += `;${type},${place.epoch},${place.seq}`;
    }
    const url = this.address('/events', {
      types: [...this.types].join(','),
      user: this.user,
      token: this.token || null,
      lastEventId: known ? `yj1${known}` : null,
    });
    const source = new this.Class(url.href);
    this.source = source;
    this.last = undefined;
    source.onmessage = ({ data, lastEventId }: MessageEvent<string>) => {
      if (source !== this.source) return;
      this.take(data, lastEventId);
      // What was taken may have opened another one.
      if (source === this.source && !this.busy) for (const done of this.begun.splice(0)) done();
    };
    source.onerror = () => {
      if (source === this.source) void this.failed();
    };
  }

  private take(text: string, offset: string): void {
    for (const place of offset.split(';').slice(1)) {
      const [type, epoch, seq] = place.split(',') as [string, string, string];
      if (this.types.has(type)) this.places.set(type, { epoch, seq: Number(seq) });
    }
    const { event, data } = JSON.parse(text) as {
      event: string;
      data: { code: number; retryAfter?: number; supportedTypes: string[] };
    };
    if (event === 'connection_closing') {
      this.last = data;
      return;
    }
    const again = event === 'connected' && this.supported;
    if (event === 'connected') this.supported = data.supportedTypes;
    if (!again) (this.onmessage as ((event: { data: string }) => void) | null)?.({ data: text });
  }

  /** The stream has ended. A page does not see why it is refused, but another call may. */
  private async failed(): Promise<void> {
    this.source?.close();
    this.source = undefined;
    let code = this.last?.code;
    if (code === undefined) {
      try {
        await this.fetch('/events', {}, 'HEAD');
      } catch (error) {
        code = CODES[(error as { status?: number }).status ?? 0];
      }
    }
    if (this.readyState !== 1) return;
    this.readyState = 3;
    const reason = JSON.stringify({ retryAfter: this.last?.retryAfter });
    (this.onclose as ((event: object) => void) | null)?.({ code: code ?? 1006, reason });
  }

  private say(message: object): void {
    if (this.readyState !== 1) return;
    (this.onmessage as ((event: { data: string }) => void) | null)?.({ data: JSON.stringify(message) });
  }
}
