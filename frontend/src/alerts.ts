/** Alerts out of the messages of the type `health`: which are open, and how long others were. */

import type { Message } from '@yujian/realtime';

export type Level = 'critical' | 'warning' | 'info';

export interface Alert {
  key: string;
  metric: string;
  level: Level;
  text: string;
  /** Unix times in milliseconds. */
  since: number;
  until?: number;
  source: string;
  /** Of an alarm of the collector, to be put in the language of the page. */
  value?: number;
  threshold?: number;
}

interface HealthData {
  value?: unknown;
  threshold?: unknown;
  metric?: unknown;
  level?: unknown;
  message?: unknown;
  since?: unknown;
  host?: unknown;
  labels?: unknown;
  source?: unknown;
}

const KEPT_OVER = 50;
const KEPT_OPEN = 200;

/** A message applied to a list of alerts. */
export function applyHealth(alerts: Alert[], message: Message): Alert[] {
  if (message.event !== 'health_alert' && message.event !== 'health_recovery') return alerts;
  const data = (message.data ?? {}) as HealthData;
  const metric = typeof data.metric === 'string' ? data.metric : 'health';
  const source = typeof data.source === 'string' ? data.source : typeof data.host === 'string' ? data.host : '';
  const labels = data.labels && typeof data.labels === 'object' ? JSON.stringify(data.labels) : '';
  const key = `${metric} ${source} ${labels}`;
  const open = alerts.find((alert) => alert.key === key && alert.until === undefined);
  // One that is said again goes on.
  const since = typeof data.since === 'number' ? data.since : (open?.since ?? message.timestamp);
  const others = alerts.filter((alert) => alert !== open);
  if (message.event === 'health_recovery') {
    const text = String(data.message ?? '');
    const over: Alert = {
      ...(open ?? { key, metric, source, level: 'warning', text, since }),
      until: message.timestamp,
    };
    return limit([over, ...others]);
  }
  const level = data.level === 'critical' || data.level === 'info' ? data.level : 'warning';
  const alert: Alert = { key, metric, source, level, text: String(data.message ?? ''), since };
  if (typeof data.value === 'number' && typeof data.threshold === 'number') {
    alert.value = data.value;
    alert.threshold = data.threshold;
  }
  return limit([alert, ...others]);
}

const RANK: Record<Level, number> = { critical: 0, warning: 1, info: 2 };

/** The worst of those that are open first; of the same level, and of those that are over, the newest. */
function limit(alerts: Alert[]): Alert[] {
  const open = alerts.filter((alert) => alert.until === undefined);
  open.sort((a, b) => RANK[a.level] - RANK[b.level] || b.since - a.since);
  open.splice(KEPT_OPEN);
  const over = alerts.filter((alert) => alert.until !== undefined);
  over.sort((a, b) => (b.until ?? 0) - (a.until ?? 0));
  return [...open, ...over.slice(0, KEPT_OVER)];
}
