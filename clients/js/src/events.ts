/** Server-sent events behind the interface of a WebSocket: for networks that let no WebSocket through. */

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
  private places = new Map<string, Place>();
  private user: string | null;
  private token = '';
  private greeted = false;
  /** Requests that are waited for before the stream is opened anew. */
  private busy = 0;
  /** Called when the stream has said where it goes on. */
  private begun: (() => void)[] = [];
  private last: { code: number; retryAfter?: number } | undefined;

  constructor(
    private url: string,
    private Class: SourceClass,
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
        this.open();
        return reply('authenticated', {});
      case 'ping':
        if (!this.greeted && !this.source) this.open();
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
        const page = (await (await this.fetch('/history', { type, limit, before })).json()) as object;
        return this.say({ event: 'history_data', type, data: page, replyTo: id });
      }
    }
    throw Object.assign(new Error(`'${action}' needs a WebSocket.`), { code: 'INVALID_ACTION' });
  }

  /** Open the stream with more types; gives where each of them goes on, which a cut is recovered from. */
  private async subscribe({ types = [], history, recover = {} }: Request['payload']): Promise<object> {
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
    const flows = types.flatMap((type) => {
      const place = this.places.get(type);
      return place ? [[type, { ...place, from: place.seq + 1, recovered: type in recover }]] : [];
    });
    return Object.fromEntries(flows) as object;
  }

  /** The newest messages of a type, behind which the stream goes on; false: it has none. */
  private async bring(type: string, limit: number): Promise<boolean> {
    const page = (await (await this.fetch('/history', { type, limit })).json()) as { messages: Place[] };
    const newest = page.messages[page.messages.length - 1];
    if (newest && !this.places.has(type)) this.places.set(type, { epoch: newest.epoch, seq: newest.seq });
    this.say({ event: 'history_data', type, data: page });
    return Boolean(newest);
  }

  private async fetch(path: string, query: Record<string, unknown>, method = 'GET'): Promise<Response> {
    const url = beside(this.url, path);
    for (const [name, value] of Object.entries(query)) {
      if (value !== undefined) url.searchParams.set(name, String(value));
    }
    const headers: Record<string, string> = this.token ? { Authorization: `Bearer ${this.token}` } : {};
    const answer = await fetch(url, { method, headers, cache: 'no-store' });
    if (answer.ok) return answer;
    const body = (await answer.json().catch(() => ({}))) as { code?: string; error?: string };
    throw Object.assign(new Error(body.error ?? `HTTP ${answer.status}`), {
      code: body.code,
      status: answer.status,
    });
  }

  /** Open the stream, in place of the one that there is. */
  private open(): void {
    if (this.readyState !== 1) return;
    this.source?.close();
    const url = beside(this.url, '/events');
    url.searchParams.set('types', [...this.types].join(','));
    if (this.user) url.searchParams.set('user', this.user);
    if (this.token) url.searchParams.set('token', this.token);
    const known = [...this.types].sort().flatMap((type) => {
      const place = this.places.get(type);
      return place ? [`${type},${place.epoch},${place.seq}`] : [];
    });
    if (known.length) url.searchParams.set('lastEventId', `yj1;${known.join(';')}`);
    const source = new this.Class(url.href);
    this.source = source;
    this.last = undefined;
    source.onmessage = ({ data, lastEventId }: MessageEvent<string>) => {
      if (source === this.source) this.take(data, lastEventId);
    };
    source.onerror = () => {
      if (source === this.source) void this.failed();
    };
  }

  private take(text: string, offset: string): void {
    for (const place of offset.split(';').slice(1)) {
      const [type = '', epoch = '', seq] = place.split(',');
      if (this.types.has(type)) this.places.set(type, { epoch, seq: Number(seq) });
    }
    const { event, data } = JSON.parse(text) as {
      event: string;
      data: { code: number; retryAfter?: number };
    };
    if (event === 'connection_closing') {
      this.last = data;
      return;
    }
    const again = event === 'connected' && this.greeted;
    this.greeted ||= event === 'connected';
    if (!again) (this.onmessage as ((event: { data: string }) => void) | null)?.({ data: text });
    if (!this.busy) for (const done of this.begun.splice(0)) done();
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
    const retryAfter = this.last?.retryAfter;
    const reason = retryAfter === undefined ? '' : JSON.stringify({ retryAfter });
    (this.onclose as ((event: object) => void) | null)?.({ code: code ?? 1006, reason });
  }

  private say(message: object): void {
    if (this.readyState !== 1) return;
    (this.onmessage as ((event: { data: string }) => void) | null)?.({ data: JSON.stringify(message) });
  }
}
