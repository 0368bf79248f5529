import { afterEach, expect, it, vi } from 'vitest';
import { newestHost } from '../src/series';
import { Store } from '../src/store';

class FakeSocket {
  static last: FakeSocket;
  onopen: (() => void) | null = null;
  onmessage: ((event: { data: string }) => void) | null = null;

  constructor() {
    FakeSocket.last = this;
  }

  send(): void {}
  close(): void {}
  say(message: object): void {
    this.onmessage?.({ data: JSON.stringify(message) });
  }
}

const samples = (...t: number[]) => ({ t, cpu: t, memory: t, disk: t });
const series = (hosts: Record<string, ReturnType<typeof samples>>) => ({ range: '15m' as const, step: 5, start: 0, end: 900_000, hosts });
const status = (host: string, seq: number) => ({
  type: 'status',
  event: 'status_update',
  timestamp: 1000 * seq,
  seq,
  epoch: 'e',
  data: { host, cpu: 1, memory: 2, disk: 3, memoryUsed: 1, memoryTotal: 2, diskUsed: 1, diskTotal: 2, connections: 1 },
});

let store: Store | undefined;
async function start(answer: object): Promise<Store> {
  vi.stubGlobal('WebSocket', FakeSocket);
  vi.stubGlobal('fetch', async (url: string) => new Response(JSON.stringify(url.includes('series') ? answer : {})));
  store = new Store('http://lab.example');
  FakeSocket.last.onopen?.();
  const data = { connectionId: 'c', serverTime: Date.now(), supportedTypes: ['status'] };
  FakeSocket.last.say({ type: 'system', event: 'connected', data });
  await vi.waitUntil(() => store?.get().series);
  return store;
}
afterEach(() => {
  store?.client.close();
  vi.useRealTimers();
  vi.unstubAllGlobals();
});

it('the machine with the newest sample is shown', () => {
  expect(newestHost(series({ gone: samples(1, 2), here: samples(1, 9), idle: samples() }))).toBe('here');
  expect(newestHost(series({ idle: samples() }))).toBe('idle');
  expect(newestHost(series({}))).toBe('');
});

it('a machine that is only in the past gives way to one that reports, one that is chosen does not', async () => {
  const page = await start(series({ gone: samples(5) }));
  expect(page.get().host).toBe('gone');
  FakeSocket.last.say(status('here', 1));
  expect(page.get().host).toBe('here');
  FakeSocket.last.say(status('another', 2));
  expect(page.get().host).toBe('here');
  page.setHost('gone');
  FakeSocket.last.say(status('another', 3));
  expect(page.get().host).toBe('gone');
});

it('a stream of messages is rendered a few times a second, what a reader chooses at once', async () => {
  vi.useFakeTimers();
  const page = await start(series({ one: samples(1), two: samples(2) }));
  vi.advanceTimersByTime(3000);
  const rendered = vi.fn();
  page.listen(rendered);
  for (let n = 1; n <= 5000; n++) {
    FakeSocket.last.say({ ...status('one', n), data: { n } });
    vi.advanceTimersByTime(1);
  }
  // Eight at once, then four a second.
  expect(rendered.mock.calls.length).toBeGreaterThan(20);
  expect(rendered.mock.calls.length).toBeLessThan(30);
  rendered.mockClear();
  page.setHost('two');
  expect(rendered).toHaveBeenCalledOnce();
  FakeSocket.last.say(status('one', 5001));
  vi.advanceTimersByTime(1000);
  expect(rendered).toHaveBeenCalledTimes(2);
});

it('with a token it asks anew for what strangers are not shown', async () => {
  const page = await start(series({}));
  const answer = async (_: string, init: RequestInit) =>
    new Response(JSON.stringify('Authorization' in (init.headers ?? {}) ? { version: '7.0' } : {}));
  vi.stubGlobal('fetch', answer);
  page.useToken('token');
  await vi.waitUntil(() => page.get().service?.version === '7.0');
});
