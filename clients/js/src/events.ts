/** Server-sent events behind the interface of a WebSocket: for networks that let no WebSocket through. */

import type { Subscribe } from './protocol.js';

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
const CODES: Record<number, number> = { 400: 400, 401: 4401, 403: 403, 404: 404, 429: 1013, 503: 1013 };

/** The address of a call, beside that of the WebSocket. */
export function beside(url: string, path: string): URL {
  const made = new URL(url.replace(/^ws/, 'http'));
  made.pathname = made.pathname.replace(/\/ws\/realtime$/, path);
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

  private _source: Source | undefined;
  /** What flows or will, each with the request that it began with. */
  private _types = new Map<string, object>();
  /** Types that the first stream begins with, until they are subscribed to. */
  private _first = new Set<string>();
  private _places = new Map<string, Place>();
  private _user: string | null;
  private _token = '';
  /** None before the stream has begun. */
  private _supported: string[] | undefined;
  /** Requests that are waited for before the stream is opened anew. */
  private _busy = 0;
  /** Called when the stream has said where it goes on. */
  private _begun: (() => void)[] = [];
  private _last: { code: number; retryAfter?: number } | undefined;

  constructor(
    private _url: string,
    private _Class: SourceClass,
    /** Subscriptions that will be asked for at once. */
    private _wanted: () => Subscribe[],
  ) {
    this._user = new URL(this._url).searchParams.get('user');
    queueMicrotask(() => {
      if (this.readyState) return;
      this.readyState = 1;
      (this.onopen as (() => void) | null)?.();
    });
  }

  send(frame: string): void {
    const request = JSON.parse(frame) as Request;
    this._answer(request).catch((error: unknown) => {
      const { code = 'NETWORK', message } = error as { code?: string; message: string };
      this._say({ event: 'error', type: 'error', data: { code, message }, replyTo: request.id });
    });
  }

  close(): void {
    this.readyState = 3;
    this._source?.close();
    this._source = undefined;
  }

  private async _answer({ id, action, payload }: Request): Promise<void> {
    const reply = (event: string, data: object, type = 'config') => this._say({ event, type, data, replyTo: id });
    switch (action) {
      case 'auth':
        this._token = payload.token ?? '';
        this._begin();
        return reply('authenticated', {});
      case 'ping':
        if (!this._supported && !this._source) this._begin();
        else await this._fetch('/events', {}, 'HEAD');
        return reply('pong', {});
      case 'subscribe':
        return reply('subscribed', { types: await this._subscribe(payload) });
      case 'unsubscribe':
        for (const type of payload.types ?? []) {
          this._types.delete(type);
          this._places.delete(type);
        }
        if (!this._busy) this._open();
        return reply('unsubscribed', { types: payload.types ?? [] });
      case 'get_history': {
        const { type = '', limit, before } = payload;
        reply('history_data', await this._page({ type, limit, before }), type);
        return;
      }
    }
    throw failure(`'${action}' needs a WebSocket.`, 'INVALID_ACTION');
  }

  /** Let more types flow; gives where each of them goes on, which a cut is recovered from. */
  private async _subscribe({ types: named = [], history, recover = {} }: Request['payload']): Promise<object> {
    const types = named.includes('all') ? (this._supported ?? []) : named;
    // The service would refuse the stream, with all other types.
    const unknown = types.find((type) => !this._supported?.includes(type));
    if (unknown) throw failure(`Unknown type '${unknown}'.`, 'INVALID_TYPE');
    const added = types.filter((type) => !this._first.delete(type));
    if (added.length) await this._add(added, recover, history);
    const flows: Record<string, object> = {};
    for (const type of types) {
      const place = this._places.get(type);
      if (place) flows[type] = { ...place, from: place.seq + 1, recovered: type in recover };
    }
    return flows;
  }

  private async _add(types: string[], recover: Record<string, Place>, history?: number): Promise<void> {
    this._busy++;
    const begun = new Promise<void>((done) => this._begun.push(done));
    const empty: string[] = [];
    const bring = async (type: string, limit: number) => {
      const data = await this._page({ type, limit });
      const newest = data.messages.at(-1);
      // It may have been ended meanwhile, and begun again.
      if (this._types.get(type) !== types) return;
      this._say({ event: 'history_data', type, data });
      if (!newest) empty.push(type);
      else if (!this._places.has(type)) this._places.set(type, { epoch: newest.epoch, seq: newest.seq });
    };
    for (const type of types) this._types.set(type, types);
    try {
      for (const type of types) {
        const known = recover[type];
        if (known) this._places.set(type, known);
        else if (history) await bring(type, history);
      }
    } finally {
      if (!--this._busy) this._open();
    }
    await begun;
    // What was stored since its history was read comes before the place where the stream goes on.
    for (const type of empty.splice(0)) if (this._places.get(type)?.seq) await bring(type, history ?? 1);
  }

  private async _page(query: Record<string, unknown>): Promise<{ messages: Place[] }> {
    return (await (await this._fetch('/history', query)).json()) as { messages: Place[] };
  }

  /** The address of a call; what is null or undefined is left out. */
  private _address(path: string, query: Record<string, unknown>): URL {
    const url = beside(this._url, path);
    for (const [name, value] of Object.entries(query)) {
      if (value != null) url.searchParams.set(name, value as string);
    }
    return url;
  }

  private async _fetch(path: string, query: Record<string, unknown>, method = 'GET'): Promise<Response> {
    const headers: Record<string, string> = this._token ? { Authorization: `Bearer ${this._token}` } : {};
    const answer = await fetch(this._address(path, query), { method, headers, cache: 'no-store' });
    if (answer.ok) return answer;
    const body = (await answer.json().catch(() => ({}))) as { code?: string; error?: string };
    throw failure(body.error ?? `HTTP ${answer.status}`, body.code, answer.status);
  }

  /** Open the first stream: of a client that comes back, with all its types where they were. */
  private _begin(): void {
    for (const { recover } of this._source ? [] : this._wanted()) {
      for (const [type, place] of Object.entries(recover ?? {})) {
        this._types.set(type, place);
        this._first.add(type);
        this._places.set(type, place);
      }
    }
    this._open();
  }

  /** Open the stream, in place of the one that there is. */
  private _open(): void {
    if (this.readyState !== 1) return;
    this._source?.close();
    let known = '';
    for (const type of [...this._types.keys()].sort()) {
      const place = this._places.get(type);
      if (place) known += `;${type},${place.epoch},${place.seq}`;
    }
    const url = this._address('/events', {
      types: [...this._types.keys()].join(','),
      user: this._user,
      token: this._token || null,
      lastEventId: known ? `yj1${known}` : null,
    });
    const source = new this._Class(url.href);
    this._source = source;
    this._last = undefined;
    source.onmessage = ({ data, lastEventId }: MessageEvent<string>) => {
      if (source !== this._source) return;
      this._take(data, lastEventId);
      // What was taken may have opened another one.
      if (source === this._source && !this._busy) for (const done of this._begun.splice(0)) done();
    };
    source.onerror = () => {
      if (source === this._source) void this._failed();
    };
  }

  private _take(text: string, offset: string): void {
    for (const place of offset.split(';').slice(1)) {
      const [type, epoch, seq] = place.split(',') as [string, string, string];
      if (this._types.has(type)) this._places.set(type, { epoch, seq: Number(seq) });
    }
    const { event, data } = JSON.parse(text) as {
      event: string;
      data: { code: number; retryAfter?: number; supportedTypes: string[] };
    };
    if (event === 'connection_closing') {
      this._last = data;
      return;
    }
    const again = event === 'connected' && this._supported;
    if (event === 'connected') this._supported = data.supportedTypes;
    if (!again) (this.onmessage as ((event: { data: string }) => void) | null)?.({ data: text });
  }

  /** The stream has ended. A page does not see why it is refused, but another call may. */
  private async _failed(): Promise<void> {
    this._source?.close();
    this._source = undefined;
    let code = this._last?.code;
    if (code === undefined) {
      try {
        await this._fetch('/events', {}, 'HEAD');
      } catch (error) {
        code = CODES[(error as { status?: number }).status ?? 0];
      }
    }
    if (this.readyState !== 1) return;
    this.readyState = 3;
    const reason = JSON.stringify({ retryAfter: this._last?.retryAfter });
    (this.onclose as ((event: object) => void) | null)?.({ code: code ?? 1006, reason });
  }

  private _say(message: object): void {
    if (this.readyState !== 1) return;
    (this.onmessage as ((event: { data: string }) => void) | null)?.({ data: JSON.stringify(message) });
  }
}
