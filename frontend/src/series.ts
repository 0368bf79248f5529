/** Points over time: joined from history and live messages, thinned to what a chart can show. */

import type { Series } from '@yujian/realtime';

export type Metric = 'cpu' | 'memory' | 'disk';
export const RANGES = { '15m': 900, '1h': 3600, '6h': 21_600, '24h': 86_400 } as const;
export type Range = keyof typeof RANGES;

export interface Point {
  /** Unix time in milliseconds. */
  t: number;
  cpu: number;
  memory: number;
  disk: number;
}

/** The answer of `GET /stats/series`. */
export type SeriesAnswer = Series;

export function pointsOf(answer: SeriesAnswer, host: string): Point[] {
  const columns = answer.hosts[host];
  if (!columns) return [];
  return columns.t.map((t, index) => ({
    t: answer.start + t * 1000,
    cpu: columns.cpu[index] ?? 0,
    memory: columns.memory[index] ?? 0,
    disk: columns.disk[index] ?? 0,
  }));
}

/** The machine with the newest sample: others may be gone for good. Empty where there is none. */
export function newestHost(answer: SeriesAnswer): string {
  let [newest, latest] = ['', -Infinity];
  for (const [host, { t }] of Object.entries(answer.hosts)) {
    const last = t[t.length - 1] ?? -Infinity;
    if (last > latest || newest === '') [newest, latest] = [host, last];
  }
  return newest;
}

/** `past` up to where `live` begins, then `live`; both in order of time. */
export function join(past: Point[], live: Point[]): Point[] {
  const first = live[0]?.t ?? Infinity;
  return [...past.filter((point) => point.t < first), ...live];
}

/** At most `count` points: the mean of each stretch of time between `from` and `to`. */
export function thin(points: Point[], metric: Metric, from: number, to: number, count: number): { t: number; v: number }[] {
  const width = (to - from) / Math.max(count, 1);
  const thinned: { t: number; v: number }[] = [];
  let bucket = -1;
  let members = 0;
  for (const point of points) {
    if (point.t < from || point.t > to) continue;
    const index = Math.floor((point.t - from) / width);
    const last = thinned[thinned.length - 1];
    if (index === bucket && last) {
      members++;
      last.v += (point[metric] - last.v) / members;
      last.t += (point.t - last.t) / members;
    } else {
      thinned.push({ t: point.t, v: point[metric] });
      bucket = index;
      members = 1;
    }
  }
  return thinned;
}

/** Stretches without a hole longer than `hole` milliseconds. */
export function stretches<T extends { t: number }>(points: T[], hole: number): T[][] {
  const found: T[][] = [];
  for (const point of points) {
    const current = found[found.length - 1];
    const last = current?.[current.length - 1];
    if (current && last && point.t - last.t <= hole) current.push(point);
    else found.push([point]);
  }
  return found;
}
