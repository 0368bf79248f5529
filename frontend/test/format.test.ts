import { describe, expect, it } from 'vitest';
import { formatAgo, formatBytes, formatCount, formatDuration, formatMs, formatPercent, formatTime } from '../src/format';

describe('units for people', () => {
  it.each([
    [0, '0 B'],
    [999, '999 B'],
    [1000, '1.0 KB'],
    [2_576_980_378, '2.4 GB'],
    [107_374_182_400, '100 GB'],
    [1_099_511_627_775, '1.0 TB'],
    [-5, '0 B'],
  ])('%d bytes are %s', (bytes, text) => expect(formatBytes(bytes)).toBe(text));

  it.each([
    [0, '0 s', '0 秒'],
    [8.4, '8 s', '8 秒'],
    [60, '1 min', '1 分钟'],
    [725, '12 min 5 s', '12 分钟 5 秒'],
    [3600, '1 h', '1 小时'],
    [273_600, '3 d 4 h', '3 天 4 小时'],
    [86_400 + 59, '1 d', '1 天'],
    [-3, '0 s', '0 秒'],
  ])('%d seconds are %s or %s', (seconds, en, zh) => {
    expect(formatDuration(seconds, 'en')).toBe(en);
    expect(formatDuration(seconds, 'zh')).toBe(zh);
  });

  it.each([
    [0, 'now', '现在'],
    [5, '5 seconds ago', '5秒钟前'],
    [720, '12 minutes ago', '12分钟前'],
    [90_000, 'yesterday', '昨天'],
    [-30, 'now', '现在'],
  ])('%d seconds back', (seconds, en, zh) => {
    expect(formatAgo(1_000_000_000 - seconds * 1000, 1_000_000_000, 'en')).toBe(en);
    expect(formatAgo(1_000_000_000 - seconds * 1000, 1_000_000_000, 'zh')).toBe(zh);
  });

  it.each([
    [null, '–'],
    [undefined, '–'],
    [0.83, '0.8 ms'],
    [12.4, '12 ms'],
    [1234, '1.2 s'],
    [45_678, '46 s'],
  ])('%s ms are %s', (ms, text) => expect(formatMs(ms)).toBe(text));

  it('counts have at most four digits', () => {
    expect(formatCount(9999, 'en')).toBe('9,999');
    expect(formatCount(12_345, 'en')).toBe('12.3k');
    expect(formatCount(12_345, 'zh')).toBe('1.2万');
    expect(formatPercent(7.84)).toBe('7.8');
    expect(formatPercent(78.4)).toBe('78');
  });

  it('times have a date where it is not today', () => {
    const now = new Date(2026, 10, 26, 14, 30).getTime();
    expect(formatTime(now, now, 'en')).toBe('14:30');
    expect(formatTime(now - 86_400_000, now, 'en')).toMatch(/25.*14:30/);
    expect(formatTime(now, now, 'zh', true)).toBe('14:30:00');
  });
});
