import type { Connection } from '@yujian/realtime';
import { act } from 'react';
import { createRoot, type Root } from 'react-dom/client';
import { afterEach, beforeEach, expect, it, vi } from 'vitest';
import { Roster } from '../src/components/Roster';
import { LangContext } from '../src/i18n';
import { Refusal, Service } from '../src/service';
import type { Snapshot, Store } from '../src/store';

const NOW = vi.hoisted(() => new Date('2026-03-02T10:20:00').getTime());
vi.mock('../src/clock', () => ({ useNow: () => NOW }));
const connection = (id: string, change: Partial<Connection> = {}): Connection => ({
  id,
  user: 'ann',
  protocol: 'plain',
  types: ['status'],
  host: 'lab',
  worker: 7,
  since: NOW - 90_000,
  ...change,
});
const page = (connections: Connection[], change: object = {}) => ({
  connections,
  total: connections.length,
  more: false,
  workers: 2,
  complete: true,
  ...change,
});

let root: Root;
let box: HTMLElement;
let service: { openConnections: ReturnType<typeof vi.fn>; closeConnection: ReturnType<typeof vi.fn>; closeUser: ReturnType<typeof vi.fn> };

beforeEach(() => {
  (globalThis as { IS_REACT_ACT_ENVIRONMENT?: boolean }).IS_REACT_ACT_ENVIRONMENT = true;
  box = document.body.appendChild(document.createElement('div'));
  root = createRoot(box);
  const closed = { closed: 1, workers: 2, complete: true };
  service = {
    openConnections: vi.fn(async () => page([connection('a')])),
    closeConnection: vi.fn(async () => closed),
    closeUser: vi.fn(async () => ({ ...closed, closed: 3 })),
  };
});
afterEach(() => {
  act(() => root.unmount());
  box.remove();
});

function show(token = 'secret') {
  const store = { service, client: { clockOffset: 0, connected: { connectionId: 'own' } } } as unknown as Store;
  const data = { types: ['status', 'stats'] } as unknown as Snapshot;
  act(() =>
    root.render(
      <LangContext value="en">
        <Roster store={store} data={data} token={token} />
      </LangContext>,
    ),
  );
}
const button = (text: string) =>
  [...box.querySelectorAll('button')].find(({ textContent }) => textContent === text) as HTMLButtonElement;
const click = (text: string) => act(async () => button(text).click());
const list = () => click('List');
const rows = () => [...box.querySelectorAll('.rows li')].map((row) => row.textContent);
const result = () => box.querySelector('[data-testid=roster-result]')?.textContent;
function type(text: string) {
  const input = box.querySelector('input') as HTMLInputElement;
  act(() => {
    Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value')?.set?.call(input, text);
    input.dispatchEvent(new Event('input', { bubbles: true }));
  });
}

it('rows say user, protocol, worker, since when and types', async () => {
  service.openConnections.mockResolvedValue(
    page([connection('own'), connection('b', { user: null, protocol: 'sse', types: [], since: null })], { complete: false }),
  );
  show();
  await list();
  expect(service.openConnections).toHaveBeenCalledWith('secret', { user: '', type: '' }, '');
  expect(rows()[0]).toBe('annthis pagePlain JSON · Worker 7since 10:18 · 1 minute agostatusownClose');
  expect(rows()[1]).toBe('No nameServer-sent events · Worker 7No typesbClose');
  expect(box.querySelector('.pages')?.textContent).toBe('1–2 of 2 · Workers on other machines may have more.');
});

it('the machine is named where there are several', async () => {
  service.openConnections.mockResolvedValue(page([connection('a'), connection('b', { host: 'annex' })]));
  show();
  await list();
  expect(rows()[0]).toContain('Worker 7 on lab');
  expect(rows()[1]).toContain('Worker 7 on annex');
});

it('pages follow one another and go back', async () => {
  service.openConnections.mockImplementation(async (_, __, after: string) =>
    page([connection(after ? 'c' : 'a'), connection(after ? 'd' : 'b')], { total: 22, more: after === '' }),
  );
  show();
  await list();
  expect(button('Previous').disabled).toBe(true);
  await click('Next');
  expect(service.openConnections).toHaveBeenLastCalledWith('secret', { user: '', type: '' }, 'b');
  expect(box.querySelector('.pages p')?.textContent).toBe('21–22 of 22');
  expect(document.activeElement?.id).toBe('roster-title');
  expect(button('Next').disabled).toBe(true);
  await click('Previous');
  expect(service.openConnections).toHaveBeenLastCalledWith('secret', { user: '', type: '' }, '');
});

it('closing asks once more, and the focus is never lost', async () => {
  show();
  await list();
  await click('Close');
  expect(document.activeElement).toBe(button('Yes, close'));
  await click('Keep');
  expect(document.activeElement).toBe(button('Close'));
  expect(service.closeConnection).not.toHaveBeenCalled();
  await click('Close');
  const escape = new KeyboardEvent('keydown', { key: 'Escape', bubbles: true });
  await act(async () => button('Yes, close').dispatchEvent(escape));
  expect(document.activeElement).toBe(button('Close'));
  await click('Close');
  service.openConnections.mockResolvedValue(page([]));
  await click('Yes, close');
  expect(service.closeConnection).toHaveBeenCalledWith('secret', 'a');
  expect(result()).toBe('1 connection is closed.');
  expect(box.textContent).toContain('No connection matches.');
  expect(document.activeElement?.id).toBe('roster-title');
});

it('one row asks at a time', async () => {
  service.openConnections.mockResolvedValue(page([connection('a'), connection('b')]));
  show();
  await list();
  await click('Close');
  await click('Close');
  expect(box.querySelectorAll('.confirm')).toHaveLength(1);
  expect(box.querySelector('li:nth-child(2) .confirm')).not.toBeNull();
  expect(document.activeElement).toBe(button('Yes, close'));
});

it('all connections of a user are closed together', async () => {
  service.openConnections.mockResolvedValue(page([connection('a'), connection('b'), connection('c')]));
  show();
  await list();
  expect(box.querySelector('.all')).toBeNull();
  type(' ann ');
  await list();
  expect(service.openConnections).toHaveBeenLastCalledWith('secret', { user: 'ann', type: '' }, '');
  await click('Close all 3 connections of ann');
  await click('Yes, close');
  expect(service.closeUser).toHaveBeenCalledWith('secret', 'ann');
  expect(result()).toBe('3 connections are closed.');
});

it('what goes wrong is said', async () => {
  show('');
  await list();
  expect(result()).toBe('Enter the publish token first.');
  show();
  service.openConnections.mockRejectedValueOnce(new Refusal(401, 'UNAUTHORIZED', ''));
  await list();
  expect(result()).toBe('The publish token is wrong.');
  await list();
  service.closeConnection.mockRejectedValueOnce(new Refusal(404, 'NOT_FOUND', ''));
  await click('Close');
  await click('Yes, close');
  expect(result()).toBe('This connection is closed already.');
  service.closeConnection.mockRejectedValueOnce(new TypeError('Failed to fetch'));
  await click('Close');
  await click('Yes, close');
  expect(result()).toBe('The service does not answer.');
});

it('the calls name what they mean', async () => {
  const fetched = vi.fn(async () => new Response('{}'));
  vi.stubGlobal('fetch', fetched);
  const real = new Service('https://api.example');
  await real.openConnections('t', { user: 'a&b', type: 'status' }, 'x y');
  await real.closeConnection('t', 'a/b');
  await real.closeUser('t', '观测');
  const calls = fetched.mock.calls as unknown as [string, RequestInit][];
  expect(calls.map(([url, { method }]) => [method, url])).toEqual([
    ['GET', 'https://api.example/connections?user=a%26b&type=status&after=x+y&limit=20'],
    ['DELETE', 'https://api.example/connections/a%2Fb'],
    ['DELETE', 'https://api.example/connections?user=%E8%A7%82%E6%B5%8B'],
  ]);
  for (const [, { headers }] of calls) expect(headers).toMatchObject({ Authorization: 'Bearer t' });
  vi.unstubAllGlobals();
});
