/** Messages of known events in a few words. */

import type { Message } from '@yujian/realtime';
import { formatCount, formatPercent, type Lang } from './format';
import type { Words } from './i18n';

export type Summary =
  | { kind: 'status'; cpu: number; memory: number; connections: number; state: string }
  | { kind: 'stats'; period: string; requests: number; deliveries: number }
  | { kind: 'text'; text: string };

const isNumber = (value: unknown): value is number => typeof value === 'number' && Number.isFinite(value);

export function summarize({ event, data }: Message): Summary | undefined {
  if (typeof data !== 'object' || data === null) return undefined;
  const fields = data as Record<string, unknown>;
  if (event === 'status_update') {
    const { cpu, memory, connections } = fields;
    const state = (fields.presence as { state?: unknown } | undefined)?.state;
    if (isNumber(cpu) && isNumber(memory) && isNumber(connections)) {
      return { kind: 'status', cpu, memory, connections, state: typeof state === 'string' ? state : '' };
    }
  } else if (event === 'stats_update') {
    const { period, requests, deliveries } = fields;
    if (typeof period === 'string' && isNumber(requests) && isNumber(deliveries)) {
      return { kind: 'stats', period, requests, deliveries };
    }
  } else if (event.startsWith('health_') && typeof fields.message === 'string') {
    return { kind: 'text', text: fields.message };
  }
  return undefined;
}

export function tell(summary: Summary, t: Words, lang: Lang): string {
  switch (summary.kind) {
    case 'status':
      return [
        t.stateName[summary.state],
        `${t.cpu} ${formatPercent(summary.cpu)} %`,
        `${t.memory} ${formatPercent(summary.memory)} %`,
        `${t.connections} ${formatCount(summary.connections, lang)}`,
      ]
        .filter(Boolean)
        .join(' · ');
    case 'stats':
      return [
        t.periods[summary.period] ?? summary.period,
        `${t.requests} ${formatCount(summary.requests, lang)}`,
        `${t.deliveries} ${formatCount(summary.deliveries, lang)}`,
      ].join(' · ');
    case 'text':
      return summary.text;
  }
}
