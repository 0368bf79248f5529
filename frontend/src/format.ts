/** Numbers, sizes and times in units for people, in the language of the page. */

export type Lang = 'en' | 'zh';

const LOCALES: Record<Lang, string> = { en: 'en-GB', zh: 'zh-CN' };
const cache = new Map<string, Intl.NumberFormat | Intl.DateTimeFormat | Intl.RelativeTimeFormat>();

function kept<T extends Intl.NumberFormat | Intl.DateTimeFormat | Intl.RelativeTimeFormat>(
  key: string,
  make: () => T,
): T {
  let found = cache.get(key);
  if (!found) cache.set(key, (found = make()));
  return found as T;
}

/** `1 234`, `12.4k`, `3.1M`: at most four digits. */
export function formatCount(value: number, lang: Lang): string {
  if (Math.abs(value) < 10_000) {
    return kept(`n${lang}`, () => new Intl.NumberFormat(LOCALES[lang], { maximumFractionDigits: 1 })).format(value);
  }
  const options: Intl.NumberFormatOptions = { notation: 'compact', maximumFractionDigits: 1 };
  return kept(`c${lang}`, () => new Intl.NumberFormat(LOCALES[lang], options)).format(value);
}

export function formatPercent(value: number): string {
  return value < 10 ? value.toFixed(1) : String(Math.round(value));
}

const SIZES = ['B', 'KB', 'MB', 'GB', 'TB', 'PB'];

/** Bytes as `2.4 GB`, of 1024 each. */
export function formatBytes(bytes: number): string {
  let value = Math.max(bytes, 0);
  let unit = 0;
  while (value >= 999.5 && unit < SIZES.length - 1) {
    value /= 1024;
    unit++;
  }
  const digits = unit === 0 || value >= 99.95 ? 0 : 1;
  return `${value.toFixed(digits)} ${SIZES[unit]}`;
}

const UNITS: Record<Lang, [string, string, string, string]> = {
  en: [' d', ' h', ' min', ' s'],
  zh: [' 天', ' 小时', ' 分钟', ' 秒'],
};

/** Seconds as the two largest units: `3 d 4 h`, `12 min`, `8 s`. */
export function formatDuration(seconds: number, lang: Lang): string {
  const left = Math.max(0, Math.round(seconds));
  const parts = [Math.floor(left / 86_400), Math.floor(left / 3600) % 24, Math.floor(left / 60) % 60, left % 60];
  const first = parts.findIndex((part) => part > 0);
  if (first === -1) return `0${UNITS[lang][3]}`;
  return [first, first + 1]
    .filter((index) => (parts[index] ?? 0) > 0)
    .map((index) => `${parts[index]}${UNITS[lang][index] ?? ''}`)
    .join(' ');
}

/** Milliseconds as `0.8 ms`, `12 ms`, `1.2 s`. */
export function formatMs(ms: number | null | undefined): string {
  if (ms === null || ms === undefined) return '–';
  if (ms >= 1000) return `${(ms / 1000).toFixed(ms >= 10_000 ? 0 : 1)} s`;
  return `${ms.toFixed(ms < 10 ? 1 : 0)} ms`;
}

const STEPS: [number, Intl.RelativeTimeFormatUnit][] = [
  [86_400, 'day'],
  [3600, 'hour'],
  [60, 'minute'],
  [1, 'second'],
];

/** `12 minutes ago`. */
export function formatAgo(then: number, now: number, lang: Lang): string {
  const seconds = Math.min(0, Math.round((then - now) / 1000));
  const [size, unit] = STEPS.find(([size]) => -seconds >= size) ?? [1, 'second' as const];
  const format = kept(`r${lang}`, () => new Intl.RelativeTimeFormat(LOCALES[lang], { numeric: 'auto' }));
  return format.format(Math.trunc(seconds / size), unit);
}

/** Time of the day; with the date where it is not today. */
export function formatTime(at: number, now: number, lang: Lang, seconds = false): string {
  const today = new Date(at).toDateString() === new Date(now).toDateString();
  const options: Intl.DateTimeFormatOptions = {
    hour: '2-digit',
    minute: '2-digit',
    hourCycle: 'h23',
    ...(seconds ? { second: '2-digit' } : {}),
    ...(today ? {} : { month: 'short', day: 'numeric' }),
  };
  const key = `t${lang}${seconds}${today}`;
  return kept(key, () => new Intl.DateTimeFormat(LOCALES[lang], options)).format(at);
}
