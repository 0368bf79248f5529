import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { connect, type Message, type Options, type Realtime } from '../src/index.js';

/** A WebSocket that never opens, as behind a proxy that lets none through. */
class Blocked {
  static all: Blocked[] = [];
  readyState = 0;
  onopen: (() => void) | null = null;
  onmessage: ((event: { data: string }) => void) | null = null;
  onclose: ((event: { code: number; reason: string }) => void) | null = null;
  onerror: (() => void) | null = null;

  constructor(readonly url: string) {
    Blocked.all.push(this);
  }

  send(): void {}

  close(): void {}
}

/** A stream, as the test plays it. */
class Source {
  static all: Source[] = [];
  closed = false;
  onmessage: ((event: { data: string; lastEventId: string }) => void) | null = null;
  onerror: (() => void) | null = null;

  constructor(readonly url: string) {
    Source.all.push(this);
  }

  get query(): Record<string, string> {
    return Object.fromEntries(new URL(this.url).searchParams);
  }

  say(message: object, lastEventId = ''): void {
    this.onmessage?.({ data: JSON.stringify(message), lastEventId });
  }

  greet(offset = ''): void {
    const data = { serverTime: Date.now(), supportedTypes: ['status', 'stats', 'health'] };
    this.say({ event: 'connected', type: 'system', data }, offset);
  }

  close(): void {
    this.closed = true;
  }
}

const stream = (): Source => {
  const last = Source.all[Source.all.length - 1];
  if (!last) throw new Error('no stream');
  return last;
};
const message = (seq: number, type = 'status'): Message => ({
  id: `m${seq}`,
  type,
  event: 'tick',
  timestamp: 1,
  data: seq,
  seq,
  epoch: 'e1',
});

let client: Realtime;
let calls: string[];
let answers: (url: URL, method: string) => { status?: number; body?: object };
const start = (options: Options = {}): Realtime => {
  client = connect('http://lab.example', { WebSocket: Blocked, EventSource: Source, ...options });
  return client;
};
const turn = () => vi.advanceTimersByTimeAsync(1);

beforeEach(() => {
  vi.useFakeTimers();
  vi.spyOn(Math, 'random').mockReturnValue(0.5);
  Blocked.all = [];
  Source.all = [];
  calls = [];
  answers = () => ({ body: { messages: [], more: false } });
  vi.stubGlobal('fetch', async (url: URL, { method = 'GET' }: RequestInit = {}) => {
    calls.push(`${method} ${url.pathname}${url.search}`);
    const { status = 200, body = {} } = answers(url, method);
    return { ok: status < 400, status, json: async () => body };
  });
});
afterEach(() => {
  client.close();
  vi.unstubAllGlobals();
  vi.useRealTimers();
  vi.restoreAllMocks();
});

describe('server-sent events', () => {
  it('bring the newest message first, then live ones, in place of a WebSocket', async () => {
    answers = () => ({ body: { messages: [message(7)], more: true } });
    start({ transport: 'sse', user: 'ann' });
    const got: [unknown, string][] = [];
    client.subscribe('status', ({ seq }, origin) => got.push([seq, origin]));
    await turn();
    expect(stream().query).toEqual({ types: '', user: 'ann' });
    expect(new URL(stream().url).pathname).toBe('/events');
    stream().greet();
    expect(client.state.name).toBe('open');
    await turn();
    expect(calls).toEqual(['GET /history?type=status&limit=1']);
    expect(Source.all[0]?.closed).toBe(true);
    expect(stream().query).toEqual({ types: 'status', user: 'ann', lastEventId: 'yj1;status,e1,7' });
    stream().greet('yj1;status,e1,7');
    stream().say(message(8), 'yj1;status,e1,8');
    expect(got).toEqual([
      [7, 'history'],
      [8, 'live'],
    ]);
    expect(Blocked.all).toEqual([]);
  });

  it('go on where each type stood when another one is added, taken away, or the stream is cut', async () => {
    start({ transport: 'sse' });
    const got: unknown[] = [];
    const gaps: unknown[] = [];
    client.on('gap', ({ first, last }) => gaps.push([first, last]));
    client.subscribe('status', ({ seq }) => got.push(seq), { history: 0 });
    await turn();
    stream().greet();
    await turn();
    stream().greet('yj1;status,e1,4');
    const end = client.subscribe('stats', () => {}, { history: 0 });
    await turn();
    expect(stream().query).toEqual({ types: 'status,stats', lastEventId: 'yj1;status,e1,4' });
    stream().say(message(5), 'yj1;stats,s,2;status,e1,5');
    end();
    await turn();
    expect(stream().query).toEqual({ types: 'status', lastEventId: 'yj1;status,e1,5' });
    stream().onerror?.();
    await turn();
    expect(client.state).toMatchObject({ name: 'waiting', cause: 'network' });
    await vi.advanceTimersByTimeAsync(1000);
    stream().greet();
    await turn();
    expect(stream().query).toEqual({ types: 'status', lastEventId: 'yj1;status,e1,5' });
    const data = { first: 6, last: 7, epoch: 'e1', reason: 'history' };
    stream().say({ event: 'gap', type: 'status', data }, 'yj1;status,e1,7');
    stream().say(message(8), 'yj1;status,e1,8');
    expect(got).toEqual([5, 8]);
    expect(gaps).toEqual([[6, 7]]);
  });

  it('bring the newest message once to a subscription that ends and begins again', async () => {
    answers = () => ({ body: { messages: [message(7)], more: true } });
    start({ transport: 'sse' });
    const got: [unknown, string][] = [];
    const stop = client.subscribe('status', () => {});
    await turn();
    stream().greet();
    stop();
    client.subscribe('status', ({ seq }, origin) => got.push([seq, origin]));
    await turn();
    expect(stream().query).toMatchObject({ types: 'status', lastEventId: 'yj1;status,e1,7' });
    stream().greet('yj1;status,e1,7');
    stream().say(message(8), 'yj1;status,e1,8');
    await turn();
    expect(got).toEqual([[7, 'history'], [8, 'live']]);
    expect(Source.all).toHaveLength(2);
  });

  it('are one stream with all types where it comes back', async () => {
    start({ transport: 'sse' });
    const got: unknown[] = [];
    client.subscribe(['status', 'stats'], ({ seq }) => got.push(seq), { history: 0 });
    await turn();
    stream().greet();
    await turn();
    stream().greet('yj1;stats,s,0;status,e1,4');
    stream().say(message(5), 'yj1;stats,s,0;status,e1,5');
    await turn();
    stream().onerror?.();
    await turn();
    const before = Source.all.length;
    await vi.advanceTimersByTimeAsync(1000);
    const lastEventId = 'yj1;stats,s,0;status,e1,5';
    stream().greet(lastEventId);
    stream().say(message(6), 'yj1;stats,s,0;status,e1,6');
    await turn();
    expect(stream().query).toEqual({ types: 'status,stats', lastEventId });
    expect(Source.all).toHaveLength(before + 1);
    client.subscribe('health', () => {}, { history: 0 });
    await turn();
    expect(stream().query.types).toBe('status,stats,health');
    expect(got).toEqual([5, 6]);
  });

  it('go on without a type that the service has no more', async () => {
    const errors: string[] = [];
    start({ transport: 'sse' }).on('error', ({ code }) => errors.push(code));
    client.subscribe(['status', 'stats'], () => {}, { history: 0 });
    await turn();
    stream().greet();
    await turn();
    stream().greet('yj1;stats,s,3;status,e1,4');
    await turn();
    stream().onerror?.();
    await turn();
    await vi.advanceTimersByTimeAsync(1000);
    expect(stream().query.types).toBe('status,stats');
    // INVALID_TYPE, which a page does not see.
    stream().onerror?.();
    await vi.advanceTimersByTimeAsync(2000);
    expect(stream().query.types).toBe('');
    const data = { serverTime: Date.now(), supportedTypes: ['status'] };
    stream().say({ event: 'connected', type: 'system', data });
    await turn();
    const lastEventId = 'yj1;status,e1,4';
    expect(stream().query).toEqual({ types: 'status', lastEventId });
    expect(errors).toEqual(['INVALID_TYPE']);
    stream().greet(lastEventId);
    await turn();
    stream().onerror?.();
    await vi.advanceTimersByTimeAsync(1000);
    expect(stream().query).toEqual({ types: 'status', lastEventId });
  });

  it('know what all types are', async () => {
    start({ transport: 'sse' });
    await turn();
    stream().greet();
    await turn();
    const asked = client.request('subscribe', { types: ['all'] });
    await turn();
    expect(stream().query.types).toBe('status,stats,health');
    stream().greet('yj1;stats,s,3;status,e1,4');
    expect((await asked).data.types).toMatchObject({ status: { seq: 4 }, stats: { seq: 3 } });
  });

  it('recover a type that had no message yet', async () => {
    start({ transport: 'sse' });
    client.subscribe('status', () => {});
    await turn();
    stream().greet();
    await turn();
    stream().greet('yj1;status,e1,0');
    await turn();
    stream().onerror?.();
    await turn();
    await vi.advanceTimersByTimeAsync(1000);
    stream().greet();
    await turn();
    expect(stream().query.lastEventId).toBe('yj1;status,e1,0');
    expect(calls).toHaveLength(2);
  });

  it('miss nothing that is stored between an empty history and the beginning of the stream', async () => {
    start({ transport: 'sse' });
    const got: unknown[] = [];
    client.subscribe('status', ({ seq }) => got.push(seq));
    await turn();
    stream().greet();
    await turn();
    answers = () => ({ body: { messages: [message(1)], more: false } });
    stream().greet('yj1;status,e1,1');
    await turn();
    stream().say(message(2), 'yj1;status,e1,2');
    expect(got).toEqual([1, 2]);
  });

  it('wait as long as the service says', async () => {
    start({ transport: 'sse' });
    await turn();
    stream().greet();
    const data = { code: 1012, reason: '', retryAfter: 4000 };
    stream().say({ event: 'connection_closing', type: 'system', data });
    stream().onerror?.();
    await turn();
    expect(client.state).toMatchObject({ name: 'waiting', cause: 'restart', code: 1012 });
    await vi.advanceTimersByTimeAsync(3900);
    expect(Source.all).toHaveLength(1);
    await vi.advanceTimersByTimeAsync(200);
    expect(Source.all).toHaveLength(2);
  });

  it('show a token, and get another one where it is refused', async () => {
    const tokens = ['old', 'new'];
    answers = (_, method) => ({ status: method === 'HEAD' ? 401 : 200 });
    start({ transport: 'sse', token: () => tokens.shift() ?? 'none' });
    await turn();
    expect(stream().query.token).toBe('old');
    stream().onerror?.();
    await turn();
    expect(client.state).toMatchObject({ name: 'waiting', cause: 'token', code: 4401 });
    await vi.advanceTimersByTimeAsync(1000);
    expect(stream().query.token).toBe('new');
  });

  it.each([
    [403, 403, 'origin'],
    [400, 400, 'protocol'],
    [404, 404, 'network'],
  ])('stay away where HTTP answers %i', async (status, code, cause) => {
    answers = (_, method) => ({ status: method === 'HEAD' ? status : 200 });
    start({ transport: 'sse' });
    await turn();
    stream().onerror?.();
    await turn();
    expect(client.state).toMatchObject({ name: 'closed', cause, code });
  });

  it('stay away where an operator has closed them', async () => {
    start({ transport: 'sse' });
    await turn();
    stream().greet();
    stream().say({ event: 'connection_closing', type: 'system', data: { code: 4403, reason: '' } });
    stream().onerror?.();
    await turn();
    expect(client.state).toMatchObject({ name: 'closed', cause: 'operator', code: 4403 });
  });

  it('answer what HTTP can answer, and refuse the rest', async () => {
    answers = (url) => ({ body: url.pathname === '/history' ? { messages: [message(3)], more: true } : {} });
    start({ transport: 'sse' });
    await turn();
    stream().greet();
    expect(await client.history('status', 2, 9)).toMatchObject({ more: true });
    expect(calls).toContain('GET /history?type=status&limit=2&before=9');
    await expect(client.presence('status')).rejects.toMatchObject({ code: 'INVALID_ACTION' });
    answers = () => ({ status: 400, body: { code: 'INVALID_TYPE', error: 'no' } });
    await expect(client.history('nope')).rejects.toMatchObject({ code: 'INVALID_TYPE', message: 'no' });
  });
});

describe('the choice', () => {
  const fail = async () => {
    Blocked.all[Blocked.all.length - 1]?.onclose?.({ code: 1006, reason: '' });
    await vi.advanceTimersByTimeAsync(20_000);
  };

  it('is server-sent events once two WebSockets have not opened although HTTP works', async () => {
    start();
    await fail();
    expect(Source.all).toHaveLength(0);
    await fail();
    expect(Blocked.all).toHaveLength(2);
    stream().greet();
    expect(client.state.name).toBe('open');
  });

  it('stays WebSockets while the service is down', async () => {
    vi.stubGlobal('fetch', () => Promise.reject(new TypeError('refused')));
    start();
    for (let n = 0; n < 4; n++) await fail();
    expect(Blocked.all).toHaveLength(5);
    expect(Source.all).toHaveLength(0);
  });

  it.each([403, 429, 503])('stays WebSockets where HTTP answers %i', async (status) => {
    answers = () => ({ status });
    start();
    for (let n = 0; n < 4; n++) await fail();
    expect(Source.all).toHaveLength(0);
  });

  it('stays WebSockets where that is asked for', async () => {
    start({ transport: 'websocket' });
    for (let n = 0; n < 4; n++) await fail();
    expect(Source.all).toHaveLength(0);
    expect(calls).toEqual([]);
  });
});
