import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { connect, type Gap, type Message, type Options, type Realtime, RealtimeError } from '../src/index.js';

/** The other end of a connection, as the test plays it. */
class FakeSocket {
  static all: FakeSocket[] = [];
  readyState = 0;
  closed = false;
  sent: { id: string; action: string; payload: Record<string, unknown> }[] = [];
  onopen: (() => void) | null = null;
  onmessage: ((event: { data: string }) => void) | null = null;
  onclose: ((event: { code: number; reason: string }) => void) | null = null;
  onerror: (() => void) | null = null;

  constructor(readonly url: string) {
    FakeSocket.all.push(this);
  }

  send(text: string): void {
    this.sent.push(JSON.parse(text));
  }

  close(): void {
    this.closed = true;
  }

  say(message: object): void {
    this.onmessage?.({ data: JSON.stringify(message) });
  }

  reply(action: string, event: string, data: object, type = 'config'): void {
    const request = [...this.sent].reverse().find((one) => one.action === action);
    this.say({ event, type, data, replyTo: request?.id });
  }

  /** Open, and greet as the service does. */
  greet(): void {
    this.onopen?.();
    this.say({
      event: 'connected',
      type: 'system',
      data: { resume: 'r.1', serverTime: Date.now() + 5000, supportedTypes: ['status', 'stats', 'health'] },
    });
  }

  fail(code: number, reason = ''): void {
    this.onclose?.({ code, reason });
  }

  of(action: string) {
    return this.sent.filter((one) => one.action === action).map((one) => one.payload);
  }
}

const socket = (): FakeSocket => {
  const last = FakeSocket.all[FakeSocket.all.length - 1];
  if (!last) throw new Error('no connection');
  return last;
};
const message = (seq: number, type = 'status', epoch = 'e1'): Message => ({
  id: `m${seq}`,
  type,
  event: 'tick',
  timestamp: 1,
  data: seq,
  seq,
  epoch,
});
const subscribed = (seq: number, from = seq + 1, epoch = 'e1') => ({
  types: { status: { epoch, seq, from, recovered: true } },
});

let client: Realtime;
const start = (options: Options = {}): Realtime => {
  client = connect('http://lab.example', { WebSocket: FakeSocket, ...options });
  return client;
};

beforeEach(() => {
  vi.useFakeTimers();
  vi.spyOn(Math, 'random').mockReturnValue(0.5);
  FakeSocket.all = [];
});
afterEach(() => {
  client.close();
  vi.useRealTimers();
  vi.restoreAllMocks();
  vi.unstubAllGlobals();
});

describe('connecting', () => {
  it('asks for no default subscriptions and turns http into ws', () => {
    start({ user: 'ann' });
    expect(socket().url).toBe('ws://lab.example/ws/realtime?types=&user=ann');
  });

  it.each([
    ['http://lab.example/', 'ws://lab.example'],
    ['https://lab.example/deep', 'wss://lab.example/deep'],
    ['https://lab.example/deep/', 'wss://lab.example/deep'],
    ['wss://lab.example/deep/ws/realtime', 'wss://lab.example/deep'],
    ['wss://lab.example/ws/realtime/?types=status#x', 'wss://lab.example'],
  ])('finds the service that is served under a path: %s', (url, base) => {
    client = connect(url, { WebSocket: FakeSocket });
    expect(socket().url).toBe(`${base}/ws/realtime?types=`);
  });

  it('says that no service answers at an address', async () => {
    const answer = vi.fn(async (_: URL) => ({ status: 404 }));
    vi.stubGlobal('fetch', answer);
    client = connect('http://lab.example/wrong', { WebSocket: FakeSocket });
    socket().fail(1006);
    await vi.advanceTimersByTimeAsync(0);
    expect(answer.mock.calls.map(([url]) => String(url))).toEqual([
      'http://lab.example/wrong/events',
      'http://lab.example/wrong/ws/realtime',
    ]);
    const message = 'No service answers at ws://lab.example/wrong/ws/realtime.';
    expect(client.state).toEqual({ name: 'closed', cause: 'network', code: 404, message });
    expect(vi.getTimerCount()).toBe(0);
    await expect(client.request('ping')).rejects.toMatchObject({ message });
  });

  it('comes back where a proxy passes WebSockets alone to the service', async () => {
    vi.stubGlobal('fetch', async ({ pathname }: URL) => ({ status: pathname === '/events' ? 404 : 502 }));
    start();
    socket().fail(1006);
    await vi.advanceTimersByTimeAsync(5000);
    expect(client.state.name).toBe('connecting');
  });

  it('comes back where a proxy answers 404 for a service that was there', async () => {
    vi.stubGlobal('fetch', async () => ({ status: 404 }));
    start();
    socket().greet();
    for (let n = 0; n < 3; n++) {
      socket().fail(1006);
      await vi.advanceTimersByTimeAsync(5000);
      expect(client.state.name).toBe('connecting');
    }
  });

  it('tells its state and the offset of the clock', () => {
    start();
    const states: string[] = [];
    client.on('state', ({ name }) => states.push(name));
    expect(client.state.name).toBe('connecting');
    socket().greet();
    expect(states).toEqual(['open']);
    expect(client.clockOffset).toBe(5000);
  });

  it('says what is missing where there is no WebSocket', () => {
    vi.stubGlobal('WebSocket', undefined);
    expect(() => connect('ws://lab.example')).toThrow(/option WebSocket/);
    vi.unstubAllGlobals();
    start();
  });
});

describe('messages', () => {
  it('come with the newest state first, then live, each once and in order', () => {
    const got: [number | undefined, string][] = [];
    start().subscribe('status', ({ seq }, origin) => got.push([seq, origin]));
    socket().greet();
    expect(socket().of('subscribe')).toEqual([{ types: ['status'], history: 1 }]);
    socket().reply('subscribe', 'subscribed', subscribed(4));
    socket().say({ event: 'history_data', type: 'status', data: { messages: [message(4)], more: true } });
    socket().say(message(5));
    socket().say(message(5));
    socket().say({ event: 'batch_update', type: 'system', data: { messages: [message(6), message(7)] } });
    expect(got).toEqual([[4, 'history'], [5, 'live'], [6, 'live'], [7, 'live']]);
    expect(client.counts).toMatchObject({ received: 3, recovered: 0, missed: 0 });
  });

  it('of all types are asked for when it is known which there are', () => {
    start({ history: 0 }).subscribe('all', () => {});
    socket().greet();
    expect(socket().of('subscribe')).toEqual([{ types: ['status', 'stats', 'health'] }]);
  });

  it('take the largest history that a listener wants of a type', () => {
    start().subscribe('all', () => {}, { history: 5 });
    client.subscribe('health', () => {}, { history: 100 });
    socket().greet();
    expect(socket().of('subscribe')).toEqual([
      { types: ['status', 'stats'], history: 5 },
      { types: ['health'], history: 100 },
    ]);
  });

  it('are known to a listener that comes later', async () => {
    start().subscribe('status', () => {});
    socket().greet();
    socket().reply('subscribe', 'subscribed', subscribed(0));
    socket().say(message(1));
    const late = vi.fn();
    client.subscribe('status', late);
    await vi.advanceTimersByTimeAsync(0);
    expect(late).toHaveBeenCalledWith(expect.objectContaining({ seq: 1 }), 'history');
    expect(socket().of('subscribe')).toHaveLength(1);
  });

  it('go on for the other types where one is refused, and the service says why', async () => {
    const errors: RealtimeError[] = [];
    start().subscribe(['status', 'gone', 'stats'], () => {});
    client.on('error', (error) => errors.push(error));
    socket().greet();
    // A list is refused as one.
    expect(socket().of('subscribe')).toEqual([
      { types: ['status', 'stats'], history: 1 },
      { types: ['gone'], history: 1 },
    ]);
    socket().reply('subscribe', 'error', { code: 'INVALID_TYPE', message: "Unknown type 'gone'." }, 'error');
    await vi.advanceTimersByTimeAsync(0);
    expect(errors).toMatchObject([{ code: 'INVALID_TYPE' }]);
    client.subscribe('health', () => {});
    expect(socket().of('subscribe')).toHaveLength(3);
  });

  it.each([
    ['BACKPLANE_UNAVAILABLE', 2],
    ['RATE_LIMITED', 2],
    ['INVALID_TYPE', 1],
  ])('that are refused with %s are asked for %i times', async (code, times) => {
    const errors = vi.fn();
    start({ ping: 1000 }).subscribe('status', () => {});
    client.on('error', errors);
    socket().greet();
    socket().reply('subscribe', 'error', { code, message: 'Why.' });
    await vi.advanceTimersByTimeAsync(1000);
    expect(errors).toHaveBeenCalledOnce();
    expect(socket().of('subscribe')).toEqual(Array(times).fill({ types: ['status'], history: 1 }));
    socket().reply('subscribe', 'subscribed', subscribed(4));
    socket().reply('ping', 'pong', {});
    await vi.advanceTimersByTimeAsync(1000);
    expect(socket().of('subscribe')).toHaveLength(times);
  });

  it('stop for a type that the service has no more, and the others are taken back', () => {
    const stop = start().subscribe(['status', 'gone'], () => {});
    socket().greet();
    stop();
    expect(socket().of('unsubscribe')).toEqual([{ types: ['status'] }]);
  });

  it('reach every listener, also where the function of another one throws', async () => {
    const thrown: unknown[] = [];
    vi.stubGlobal('queueMicrotask', (call: () => void) => {
      try {
        call();
      } catch (error) {
        thrown.push(error);
      }
    });
    const got: [number | undefined, string][] = [];
    const fault = new Error('a fault of the application');
    start().on('state', () => {
      throw fault;
    });
    client.subscribe('status', () => {
      throw fault;
    });
    client.subscribe('status', ({ seq }, origin) => got.push([seq, origin]));
    socket().greet();
    expect(socket().of('subscribe')).toHaveLength(1);
    socket().reply('subscribe', 'subscribed', subscribed(0));
    socket().say({ event: 'batch_update', type: 'system', data: { messages: [message(1), message(2)] } });
    expect(got).toEqual([[1, 'live'], [2, 'live']]);
    expect(thrown).toEqual([fault, fault, fault]);
    expect(client.state.name).toBe('open');
  });

  it('that cannot be read end the connection, which comes back', () => {
    start();
    for (const text of ['<html>', 'null', '{"event":"subscribed"}']) {
      socket().greet();
      socket().onmessage?.({ data: text });
      expect(client.state).toMatchObject({ name: 'waiting', cause: 'protocol' });
      vi.advanceTimersByTime(1000);
    }
    expect(FakeSocket.all).toHaveLength(4);
  });

  it('stop with the last listener', () => {
    const listener = vi.fn();
    const stop = start().subscribe('status', listener);
    const other = client.subscribe('status', () => {});
    socket().greet();
    socket().reply('subscribe', 'subscribed', subscribed(0));
    stop();
    expect(socket().of('unsubscribe')).toEqual([]);
    other();
    expect(socket().of('unsubscribe')).toEqual([{ types: ['status'] }]);
    socket().say(message(1));
    expect(listener).not.toHaveBeenCalled();
  });
});

describe('subscriptions that end and begin again', () => {
  const past = (seq: number) => ({ event: 'history_data', type: 'status', data: { messages: [message(seq)], more: true } });
  const answer = (n: number, event: string, data: object) =>
    socket().say({ event, type: 'config', data, replyTo: socket().sent.filter(({ action }) => action !== 'ping')[n]?.id });

  it.each([
    ['before the first answer', false],
    ['when messages flow', true],
  ])('%s have each message once, in order', (_, flows) => {
    const got: [number | undefined, string][] = [];
    const gaps = vi.fn();
    const stop = start().subscribe('status', () => {});
    client.on('gap', gaps);
    socket().greet();
    if (flows) answer(0, 'subscribed', subscribed(4));
    stop();
    client.subscribe('status', ({ seq }, origin) => got.push([seq, origin]), { history: 5 });
    expect(socket().sent.map(({ action, payload }) => [action, payload]).slice(1)).toEqual([
      ['subscribe', { types: ['status'], history: 1 }],
      ['unsubscribe', { types: ['status'] }],
      ['subscribe', { types: ['status'], history: 5 }],
    ]);
    // All this was on its way for the first one.
    if (!flows) answer(0, 'subscribed', subscribed(4));
    socket().say(past(4));
    socket().say(message(5));
    socket().say({ event: 'gap', type: 'status', data: { first: 1, last: 3, epoch: 'e1', reason: 'history' } });
    expect(got).toEqual([]);
    expect(gaps).not.toHaveBeenCalled();
    answer(1, 'unsubscribed', { types: ['status'] });
    answer(2, 'subscribed', subscribed(5));
    socket().say(past(5));
    socket().say(message(6));
    expect(got).toEqual([[5, 'history'], [6, 'live']]);
  });

  it('get what is newest, not what was missed, also when the first answer came late', () => {
    const stop = start().subscribe('status', () => {});
    socket().greet();
    stop();
    answer(0, 'subscribed', subscribed(4));
    answer(1, 'unsubscribed', { types: ['status'] });
    client.subscribe('status', () => {});
    expect(socket().of('subscribe')[1]).toEqual({ types: ['status'], history: 1 });
  });
});

describe('a listener', () => {
  const batch = (...seqs: number[]) =>
    socket().say({ event: 'batch_update', type: 'system', data: { messages: seqs.map((seq) => message(seq)) } });

  it.each(['closes the client', 'ends another one'])('that %s in the middle of a batch is the last that is called', (what) => {
    const got: string[] = [];
    const stops: (() => void)[] = [];
    start().subscribe('status', ({ seq }) => {
      got.push(`first ${seq}`);
      if (what === 'closes the client') client.close();
      else stops.splice(0).forEach((stop) => stop());
    });
    stops.push(client.subscribe('status', ({ seq }) => got.push(`second ${seq}`)));
    client.on('message', ({ seq }) => got.push(`every ${seq}`));
    socket().greet();
    socket().reply('subscribe', 'subscribed', subscribed(0));
    batch(1, 2);
    const all = ['every 1', 'first 1'];
    expect(got).toEqual(what === 'closes the client' ? all : [...all, 'every 2', 'first 2']);
  });

  it('that is added in the middle of a batch gets no message behind a newer one', async () => {
    const got: (number | undefined)[] = [];
    start().subscribe('status', ({ seq }) => {
      if (seq === 1) client.subscribe('status', (late) => got.push(late.seq));
    });
    socket().greet();
    socket().reply('subscribe', 'subscribed', subscribed(0));
    batch(1, 2);
    await vi.advanceTimersByTimeAsync(0);
    expect(got).toEqual([2]);
  });
});

describe('recovery', () => {
  it('says where each type stood, and counts what it got', () => {
    const got: [number | undefined, string][] = [];
    start().subscribe('status', ({ seq }, origin) => got.push([seq, origin]));
    socket().greet();
    socket().reply('subscribe', 'subscribed', subscribed(0));
    socket().say(message(1));
    socket().fail(1006);
    expect(client.state).toMatchObject({ name: 'waiting', cause: 'network', code: 1006 });
    vi.advanceTimersByTime(500);
    expect(socket().url).toContain('resume=r.1');
    socket().greet();
    expect(socket().of('subscribe')).toEqual([{ types: ['status'], recover: { status: { epoch: 'e1', seq: 1 } } }]);
    socket().reply('subscribe', 'subscribed', subscribed(3, 2));
    for (const seq of [2, 3, 4]) socket().say(message(seq));
    expect(got).toEqual([[1, 'live'], [2, 'recovered'], [3, 'recovered'], [4, 'live']]);
    expect(client.counts).toEqual({ received: 4, recovered: 2, reconnects: 1, gaps: 0, missed: 0 });
  });

  it('works for a type of which nothing has come yet', () => {
    start().subscribe('status', () => {});
    socket().greet();
    socket().reply('subscribe', 'subscribed', subscribed(8));
    socket().fail(1001);
    vi.advanceTimersByTime(500);
    socket().greet();
    expect(socket().of('subscribe')[0]).toMatchObject({ recover: { status: { epoch: 'e1', seq: 8 } } });
  });

  it('goes on after a gap, and tells what is lost', () => {
    const gaps: Gap[] = [];
    start().subscribe('status', () => {});
    client.on('gap', (gap) => gaps.push(gap));
    socket().greet();
    socket().reply('subscribe', 'subscribed', subscribed(0));
    const gap = (first: number, last: number, reason: string, epoch = 'e1') =>
      socket().say({ event: 'gap', type: 'status', data: { first, last, epoch, reason } });
    gap(1, 10, 'history');
    gap(11, 12, 'latest');
    gap(1, 2, 'epoch', 'e2');
    socket().say(message(3, 'status', 'e2'));
    expect(gaps.map(({ reason, type }) => [reason, type])).toEqual([
      ['history', 'status'],
      ['latest', 'status'],
      ['epoch', 'status'],
    ]);
    expect(client.counts).toMatchObject({ gaps: 2, missed: 10, received: 1 });
  });
});

describe('coming back', () => {
  it('comes back soon when the network does, even where an attempt is under way', async () => {
    const device = new EventTarget();
    vi.stubGlobal('addEventListener', device.addEventListener.bind(device));
    start({ pause: [100, 60_000] });
    socket().greet();
    device.dispatchEvent(new Event('offline'));
    for (let attempt = 0; attempt < 9; attempt++) {
      await vi.advanceTimersByTimeAsync(100 * 2 ** attempt);
      expect(client.state.name).toBe('connecting');
      if (attempt < 8) socket().fail(1006);
    }
    device.dispatchEvent(new Event('online'));
    socket().fail(1006);
    await vi.advanceTimersByTimeAsync(100);
    expect(client.state.name).toBe('connecting');
  });

  it('waits longer each time, up to the longest pause, and anew after a success', () => {
    start({ pause: [100, 800] });
    const waits: number[] = [];
    for (let n = 0; n < 6; n++) {
      const before = Date.now();
      socket().fail(1006);
      waits.push((client.state.retryAt ?? 0) - before);
      vi.advanceTimersByTime(2000);
    }
    expect(waits).toEqual([100, 200, 400, 800, 800, 800]);
    socket().greet();
    socket().fail(1006);
    expect((client.state.retryAt ?? 0) - Date.now()).toBe(100);
  });

  it('does so as late as the service asks', () => {
    start();
    socket().greet();
    socket().fail(1012, '{"retryAfter": 4321}');
    expect(client.state).toMatchObject({ name: 'waiting', cause: 'restart' });
    vi.advanceTimersByTime(4320);
    expect(FakeSocket.all).toHaveLength(1);
    vi.advanceTimersByTime(1);
    expect(FakeSocket.all).toHaveLength(2);
  });

  it.each([
    [1001, 'restart'],
    [1012, 'restart'],
    [1013, 'full'],
    [4408, 'silent'],
    [4429, 'flood'],
    [4413, 'slow'],
    [1006, 'network'],
    [1011, 'network'],
  ])('happens after %i: %s', (code, cause) => {
    start();
    socket().fail(code);
    expect(client.state).toMatchObject({ name: 'waiting', cause, code });
  });

  it.each([
    [1008, 'user-limit'],
    [4401, 'token'],
    [4403, 'operator'],
    [4409, 'replaced'],
  ])('does not happen after %i: %s', (code, cause) => {
    start();
    socket().greet();
    const said = code === 1008 ? 'MAX_CONNECTIONS_EXCEEDED' : 'X';
    socket().say({ event: 'error', type: 'error', data: { code: said, message: 'Why.' } });
    socket().fail(code);
    expect(client.state).toMatchObject({ name: 'closed', cause, code, message: 'Why.' });
    vi.advanceTimersByTime(600_000);
    expect(FakeSocket.all).toHaveLength(1);
    client.reconnect();
    expect(FakeSocket.all).toHaveLength(2);
  });

  it.each([
    [1013, 'SERVICE_UNAVAILABLE', 'waiting', 'restart'],
    [1013, 'MAX_CONNECTIONS_EXCEEDED', 'waiting', 'full'],
    [1008, 'INVALID_TYPE', 'closed', 'protocol'],
  ])('after %i with %s it is %s: %s', (code, said, name, cause) => {
    start();
    socket().say({ event: 'error', type: 'error', data: { code: said, message: 'Why.' } });
    socket().fail(code);
    expect(client.state).toMatchObject({ name, cause });
  });

  it('happens when nothing is received for two pings', () => {
    start({ ping: 1000 });
    socket().greet();
    vi.advanceTimersByTime(3000);
    expect(client.state).toMatchObject({ name: 'waiting', code: 1006 });
    expect(FakeSocket.all[0]?.closed).toBe(true);
  });

  it('does not happen where timers come late, as in a tab in the background', () => {
    start({ ping: 1000 });
    socket().greet();
    for (let minute = 0; minute < 3; minute++) {
      vi.setSystemTime(Date.now() + 60_000);
      vi.advanceTimersByTime(1000);
      socket().reply('ping', 'pong', {});
    }
    expect(client.state.name).toBe('open');
    vi.setSystemTime(Date.now() + 60_000);
    vi.advanceTimersByTime(2000);
    expect(client.state).toMatchObject({ name: 'waiting', code: 1006 });
  });

  it('does not happen after close', () => {
    const states: string[] = [];
    start().on('state', ({ name }) => states.push(name));
    socket().greet();
    client.close();
    client.close();
    client.reconnect();
    expect(client.state).toMatchObject({ name: 'closed', cause: 'left' });
    expect(states).toEqual(['open', 'closed']);
    vi.advanceTimersByTime(60_000);
    expect(FakeSocket.all).toHaveLength(1);
  });
});

describe('closing', () => {
  it.each(['connecting', 'open', 'waiting'])('is for good also where the application does it when it is %s', async (name) => {
    start().subscribe('status', () => {});
    client.on('state', (state) => {
      if (state.name === name) client.close();
    });
    if (name === 'open') socket().greet();
    else {
      socket().fail(1006);
      await vi.advanceTimersByTimeAsync(500);
    }
    expect(client.state.name).toBe('closed');
    expect(FakeSocket.all).toHaveLength(1);
    expect(socket().of('subscribe')).toEqual([]);
    expect(vi.getTimerCount()).toBe(0);
  });

  it('does not come a second time where the application reconnects in place of the pause', async () => {
    start();
    const stop = client.on('state', ({ name }) => {
      if (name !== 'waiting') return;
      stop();
      client.reconnect();
    });
    socket().fail(1006);
    await vi.advanceTimersByTimeAsync(5000);
    expect(FakeSocket.all).toHaveLength(2);
    expect(client.state.name).toBe('connecting');
  });
});

describe('requests', () => {
  it('resolve with the answer', async () => {
    start();
    socket().greet();
    const asked = client.history('status', 2, 9);
    expect(socket().of('get_history')).toEqual([{ type: 'status', limit: 2, before: 9 }]);
    socket().reply('get_history', 'history_data', { messages: [message(7), message(8)], more: true }, 'status');
    await expect(asked).resolves.toMatchObject({ more: true });
  });

  it('for the past of a type that flows are answered to the caller only', async () => {
    const listener = vi.fn();
    start({ history: 0 }).subscribe('status', listener);
    socket().greet();
    socket().reply('subscribe', 'subscribed', subscribed(8));
    const asked = client.history('status', 2);
    socket().reply('get_history', 'history_data', { messages: [message(7), message(8)], more: true }, 'status');
    await expect(asked).resolves.toMatchObject({ more: true });
    expect(listener).not.toHaveBeenCalled();
  });

  it('that have timed out are not sent later', async () => {
    start({ pause: [20_000, 20_000] });
    const asked = expect(client.request('ack', { id: 'x' })).rejects.toMatchObject({ code: 'TIMEOUT' });
    await vi.advanceTimersByTimeAsync(15_000);
    await asked;
    socket().greet();
    expect(socket().of('ack')).toEqual([]);
  });

  it('reject with the code of an error', async () => {
    start();
    socket().greet();
    const asked = client.presence('nope');
    socket().reply('presence', 'error', { code: 'INVALID_TYPE', message: 'There is no such type.' });
    await expect(asked).rejects.toMatchObject({ name: 'RealtimeError', code: 'INVALID_TYPE' });
  });

  it('wait for a connection, also over a reconnect', async () => {
    start();
    const asked = client.presence('status');
    socket().fail(1006);
    vi.advanceTimersByTime(1000);
    socket().greet();
    socket().reply('presence', 'presence_data', { connections: 3, users: 2 });
    await expect(asked).resolves.toEqual({ connections: 3, users: 2 });
  });

  it('reject when their connection ends, and at once when there is none any more', async () => {
    start();
    socket().greet();
    const asked = client.presence('status');
    socket().fail(1006);
    await expect(asked).rejects.toMatchObject({ code: 'CLOSED' });
    client.close();
    await expect(client.request('ping')).rejects.toBeInstanceOf(RealtimeError);
  });

  it('reject when no answer comes', async () => {
    start({ ping: 60_000 });
    socket().greet();
    const asked = expect(client.presence('status')).rejects.toMatchObject({ code: 'TIMEOUT' });
    await vi.advanceTimersByTimeAsync(15_000);
    await asked;
  });
});

describe('tokens', () => {
  it('are shown in the first frame, never in the address', async () => {
    start({ token: 'secret' });
    socket().onopen?.();
    await vi.advanceTimersByTimeAsync(0);
    expect(socket().url).not.toContain('secret');
    expect(socket().sent.map(({ action, payload }) => [action, payload])).toEqual([['auth', { token: 'secret' }]]);
  });

  it('are asked for again before they expire', async () => {
    const token = vi.fn(async () => `t${token.mock.calls.length}`);
    start({ token });
    socket().greet();
    await vi.advanceTimersByTimeAsync(0);
    socket().reply('auth', 'authenticated', { user: 'ann', expiresAt: 1 });
    socket().say({ event: 'token_expiring', type: 'system', data: { expiresAt: 1 } });
    await vi.advanceTimersByTimeAsync(0);
    expect(socket().of('auth')).toEqual([{ token: 't1' }, { token: 't2' }]);
  });

  it('that cannot be renewed are asked for again while the old one is valid, less and less often', async () => {
    const asked: number[] = [];
    const token = () => {
      asked.push(Date.now());
      if (asked.length > 1 && asked.length < 5) throw new Error('no answer');
      return 'good';
    };
    const errors: RealtimeError[] = [];
    start({ token, pause: [1000, 60_000] }).on('error', (error) => errors.push(error));
    socket().greet();
    await vi.advanceTimersByTimeAsync(0);
    socket().reply('auth', 'authenticated', { user: 'ann', expiresAt: 1 });
    socket().say({ event: 'token_expiring', type: 'system', data: { expiresAt: 1 } });
    await vi.advanceTimersByTimeAsync(10_000);
    expect(asked.slice(1).map((time) => time - asked[0]!)).toEqual([0, 1000, 3000, 7000]);
    expect(errors.map(({ code, message }) => [code, message])).toEqual(Array(3).fill(['TOKEN', 'Error: no answer']));
    expect(socket().of('auth')).toHaveLength(2);
    expect(client.state.name).toBe('open');
    socket().say({ event: 'token_expiring', type: 'system', data: { expiresAt: 1 } });
    client.close();
    await vi.advanceTimersByTimeAsync(0);
    expect(vi.getTimerCount()).toBe(0);
  });

  it('that are refused have one more try where they come from a function', async () => {
    start({ token: () => 'old' });
    for (let n = 0; n < 2; n++) {
      socket().onopen?.();
      await vi.advanceTimersByTimeAsync(0);
      socket().reply('auth', 'error', { code: 'UNAUTHORIZED', message: 'The token has expired.' });
      await vi.advanceTimersByTimeAsync(1000);
    }
    expect(FakeSocket.all).toHaveLength(2);
    expect(client.state).toMatchObject({ name: 'closed', cause: 'token', message: 'The token has expired.' });
    client.reconnect({ token: 'new' });
    expect(FakeSocket.all).toHaveLength(3);
  });

  it('that are missing are noticed at once', async () => {
    start();
    socket().onopen?.();
    socket().reply('ping', 'error', { code: 'UNAUTHORIZED', message: 'Authenticate first.' });
    await vi.advanceTimersByTimeAsync(0);
    expect(client.state).toMatchObject({ name: 'closed', cause: 'token', code: 4401 });
  });

  it.each([null, undefined])('are not shown where the function has none: %s', async (none) => {
    start({ token: () => none });
    socket().greet();
    await vi.advanceTimersByTimeAsync(0);
    expect(socket().sent.map(({ action }) => action)).toEqual(['ping']);
    socket().reply('ping', 'pong', {});
    await vi.advanceTimersByTimeAsync(0);
    expect(client.state.name).toBe('open');
  });

  it('that cannot be had are tried again later', async () => {
    start({ token: () => Promise.reject(new Error('no answer')) });
    socket().onopen?.();
    await vi.advanceTimersByTimeAsync(0);
    expect(client.state).toMatchObject({ name: 'waiting', message: 'Error: no answer' });
  });
});
