import { expect, it } from 'vitest';
import { countNew, select } from '../src/components/Feed';
import { causeOf } from '../src/components/Notice';
import { nearest } from '../src/components/Chart';
import { explain } from '../src/components/Operator';
import { firstLang, WORDS } from '../src/i18n';
import { Refusal } from '../src/service';
import type { FeedItem } from '../src/store';
import { summarize, tell } from '../src/summary';

const paths = (value: unknown, path = ''): string[] =>
  value !== null && typeof value === 'object'
    ? Object.entries(value).flatMap(([name, inner]) => paths(inner, `${path}.${name}`))
    : [path];

it('both languages have the same words, none empty', () => {
  expect(paths(WORDS.zh)).toEqual(paths(WORDS.en));
  expect(Object.values(WORDS.zh).filter((word) => word === '')).toEqual([]);
});

it.each([
  ['zh', ['en-GB'], 'zh'],
  [null, ['zh-TW', 'en'], 'zh'],
  [null, ['fr', 'zh-CN'], 'zh'],
  [null, ['en-US', 'zh'], 'en'],
  [null, ['fr'], 'en'],
  ['xx', [], 'en'],
] as const)('the language of %s and %j is %s', (chosen, preferred, lang) => {
  expect(firstLang(chosen, preferred)).toBe(lang);
});

it('the cause of a lost connection is what HTTP knows better', () => {
  const link = { name: 'waiting', cause: 'network' } as const;
  expect(causeOf({ link, verdict: undefined })).toBe('network');
  expect(causeOf({ link, verdict: 'full' })).toBe('full');
  expect(causeOf({ link: { name: 'waiting', cause: 'restart' }, verdict: 'unreachable' })).toBe('restart');
  expect(causeOf({ link: { name: 'closed', cause: 'origin' }, verdict: undefined })).toBe('origin');
  expect(causeOf({ link: { name: 'closed', cause: 'token' }, verdict: 'offline' })).toBe('offline');
  expect(causeOf({ link: { name: 'connecting' }, verdict: undefined })).toBeUndefined();
});

it('every cause has words', () => {
  for (const cause of ['offline', 'unreachable', 'starting', 'full', 'origin', 'operator', 'token', 'user-limit', 'replaced', 'restart', 'silent', 'slow', 'flood', 'protocol', 'network', 'reachable', 'left']) {
    expect(WORDS.en.cause[cause], cause).toHaveLength(2);
  }
});

const item = (key: string, type = 'status', text = '{}'): FeedItem => ({
  key,
  type,
  event: 'tick',
  timestamp: 0,
  seq: 1,
  origin: 'live',
  summary: undefined,
  text,
  cut: false,
});

it('the feed is searched by words in any order and filtered by type', () => {
  const items = [item('1', 'status', '{"a":"Hello"}'), item('2', 'stats', '{"a":"hello world"}'), item('3')];
  expect(select(items, new Set(), '').length).toBe(3);
  expect(select(items, new Set(['stats']), 'HELLO').map(({ key }) => key)).toEqual(['1']);
  expect(select(items, new Set(), 'world  tick').map(({ key }) => key)).toEqual(['2']);
});

it('what is new since a pause is counted', () => {
  const feed = [item('3'), item('2'), item('1')];
  expect(countNew(feed, feed[1])).toBe(1);
  expect(countNew(feed, item('gone'))).toBe(3);
  expect(countNew(feed, undefined)).toBe(3);
});

it('the nearest point is found', () => {
  expect(nearest([{ t: 1 }, { t: 5 }, { t: 9 }], 6)).toBe(1);
  expect(nearest([], 6)).toBeUndefined();
});

it('refusals are put in words', () => {
  expect(explain(new Refusal(401, 'UNAUTHORIZED', ''), WORDS.en)).toBe('The publish token is wrong.');
  expect(explain(new Refusal(403, 'FORBIDDEN', ''), WORDS.zh)).toContain('没有设置发布令牌');
  expect(explain(new Refusal(503, 'QUEUE_OVERFLOW', 'Full.'), WORDS.en)).toBe('It failed: Full.');
  expect(explain(new TypeError('Failed to fetch'), WORDS.en)).toBe('The service does not answer.');
});

it('known events are summed up, others are not', () => {
  const message = (event: string, data: unknown) => ({ id: '', type: 'x', event, timestamp: 0, data });
  const status = summarize(message('status_update', { cpu: 12, memory: 5.2, connections: 3, presence: { state: 'idle' } }));
  expect(status && tell(status, WORDS.en, 'en')).toBe('Idle · CPU 12\u202f% · Memory 5.2\u202f% · Connections 3');
  const stats = summarize(message('stats_update', { period: '1m', requests: 10, deliveries: 20 }));
  expect(stats && tell(stats, WORDS.zh, 'zh')).toBe('1 分钟 · 请求 10 · 投递 20');
  for (const data of [null, 5, [], {}, { cpu: 'x' }]) expect(summarize(message('status_update', data))).toBeUndefined();
});
