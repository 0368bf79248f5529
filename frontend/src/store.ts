/** All that the page shows, fed by messages; components read it through `useStore`. */

import { connect, type Counts, type Message, type Origin, type PeriodFigures, type Realtime, type State } from '@yujian/realtime';
import { useSyncExternalStore } from 'react';
import { type Alert, applyHealth } from './alerts';
import { newestHost, type Point, type Range, RANGES, type SeriesAnswer } from './series';
import { type Connections, type Presence, Refusal, Service, type ServiceStatus, type Verdict } from './service';
import { summarize, type Summary } from './summary';

export interface HostStatus {
  host: string;
  cpu: number;
  cpus: number;
  load: number[];
  memory: number;
  memoryUsed: number;
  memoryTotal: number;
  disk: number;
  diskUsed: number;
  diskTotal: number;
  uptime: number;
  connections: number;
  users: number;
  workers: number;
  queue: number;
}

export interface Stats {
  host: string;
  periods: Record<string, PeriodFigures>;
  connections?: Connections;
}

export interface FeedItem {
  key: string;
  type: string;
  event: string;
  timestamp: number;
  seq: number;
  origin: Origin;
  /** In words where the event is known, in the language of the page. */
  summary: Summary | undefined;
  /** Data as JSON, cut to what is worth searching. */
  text: string;
  cut: boolean;
}

export interface Snapshot {
  link: State;
  verdict: Verdict | undefined;
  counts: Counts;
  /** Messages that the last reconnect brought back; undefined where there is nothing to say. */
  lastRecovered: number | undefined;
  rtt: number | undefined;
  openSince: number | undefined;
  presence: Presence | undefined;
  /** Unix time in milliseconds from which on the lab does this, where that is known. */
  since: number | undefined;
  hosts: Record<string, HostStatus>;
  statusAt: Record<string, number>;
  host: string;
  stats: Record<string, Stats>;
  alerts: Alert[];
  feed: FeedItem[];
  ticks: { t: number; type: string }[];
  types: string[];
  range: Range;
  series: SeriesAnswer | undefined;
  seriesFailed: boolean;
  live: Record<string, Point[]>;
  service: ServiceStatus | undefined;
  /** By machine, newer than what `stats` has. */
  connections: Record<string, Connections>;
  needsToken: boolean;
}

/** Milliseconds between renderings in the long run: more of them cannot be read, and take all of the processor. */
const RENDER_PAUSE = 250;
/** Milliseconds of such pauses that are saved up while nothing comes, so that what comes then is shown at once. */
const RENDER_BURST = 2000;
const FEED_KEPT = 500;
const TEXT_KEPT = 4000;
const TICKS_SPAN = 60_000;
const ROWS_AFTER = 1200;
const ROWS_EVERY = 10_000;
const DAY = 86_400_000;
const HISTORY: Record<string, number> = { health: 100, status: 20, stats: 1 };

const isNumber = (value: unknown): value is number => typeof value === 'number' && Number.isFinite(value);

function isHostStatus(data: unknown): data is HostStatus & { presence?: Presence } {
  const fields = data as Record<string, unknown> | null;
  return (
    typeof fields === 'object' &&
    fields !== null &&
    typeof fields.host === 'string' &&
    (['cpu', 'memory', 'disk', 'memoryUsed', 'memoryTotal', 'diskUsed', 'diskTotal'] as const).every((name) =>
      isNumber(fields[name]),
    )
  );
}

function isPresence(value: unknown): value is Presence {
  const state = (value as Presence | null)?.state;
  return state === 'idle' || state === 'working' || state === 'offline';
}

function isStats(data: unknown): data is Stats {
  const fields = data as Stats | null;
  return typeof fields === 'object' && fields !== null && typeof fields.host === 'string' && typeof fields.periods === 'object';
}

export class Store {
  readonly service: Service;
  readonly client: Realtime;
  private snapshot: Snapshot;
  private listeners = new Set<() => void>();
  private scheduled = false;
  private timer: ReturnType<typeof setTimeout> | undefined;
  /** When the next rendering may be (milliseconds of `performance`). */
  private due = 0;
  private wasOpen = false;
  private recoveredBefore = 0;
  private seriesFrom = 0;
  private asking = false;
  private askingAgain: ReturnType<typeof setTimeout> | undefined;
  private hostIsChosen = false;

  constructor(base: string) {
    this.service = new Service(base);
    this.client = connect(base, { history: 5 });
    this.snapshot = {
      link: this.client.state,
      verdict: undefined,
      counts: { ...this.client.counts },
      lastRecovered: undefined,
      rtt: undefined,
      openSince: undefined,
      presence: undefined,
      since: undefined,
      hosts: {},
      statusAt: {},
      host: '',
      stats: {},
      alerts: [],
      feed: [],
      ticks: [],
      types: [],
      range: '15m',
      series: undefined,
      seriesFailed: false,
      live: {},
      service: undefined,
      connections: {},
      needsToken: false,
    };
    this.client.on('state', (state) => this.linkChanged(state));
    this.client.on('rtt', (rtt) => this.set({ rtt }));
    this.client.on('gap', () => this.set({ counts: { ...this.client.counts } }));
    for (const [type, history] of Object.entries(HISTORY)) {
      this.client.subscribe(type, () => {}, { history });
    }
    this.client.subscribe('all', (message, origin) => this.take(message, origin));
    addEventListener('offline', () => this.set({ verdict: 'offline' }));
    addEventListener('online', () => this.set({ verdict: undefined }));
    void this.loadSeries();
    void this.loadStatus();
  }

  get = (): Snapshot => this.snapshot;

  listen = (listener: () => void): (() => void) => {
    this.listeners.add(listener);
    return () => void this.listeners.delete(listener);
  };

  /** Unix time in milliseconds by the service's clock. */
  now(): number {
    return Date.now() + this.client.clockOffset;
  }

  setRange(range: Range): void {
    this.set({ range, series: undefined, seriesFailed: false });
    this.tell();
    void this.loadSeries();
  }

  setHost(host: string): void {
    this.hostIsChosen = true;
    this.set({ host });
    this.tell();
  }

  useToken(token: string): void {
    this.service.token = token;
    this.set({ needsToken: false, verdict: undefined });
    this.client.reconnect({ token });
    void this.loadSeries();
    void this.loadStatus(); // without a token it says less
  }

  private set(change: Partial<Snapshot>): void {
    this.snapshot = { ...this.snapshot, ...change };
    if (this.scheduled) return;
    this.scheduled = true;
    const pause = this.due - performance.now();
    // One rendering for a burst; a tab in the background gets no frames.
    if (pause <= 0) requestAnimationFrame(this.tell);
    this.timer = setTimeout(this.tell, pause > 0 ? pause : 100);
  }

  private tell = (): void => {
    if (!this.scheduled) return;
    this.scheduled = false;
    clearTimeout(this.timer);
    this.due = Math.max(this.due, performance.now() - RENDER_BURST) + RENDER_PAUSE;
    for (const listener of this.listeners) listener();
  };

  private linkChanged(link: State): void {
    const change: Partial<Snapshot> = { link, counts: { ...this.client.counts } };
    if (link.name === 'open') {
      change.verdict = undefined;
      change.openSince = Date.now();
      change.needsToken = false;
      change.types = this.client.connected?.supportedTypes ?? [];
      if (this.wasOpen) {
        this.recoveredBefore = this.client.counts.recovered;
        setTimeout(() => {
          this.set({ lastRecovered: this.client.counts.recovered - this.recoveredBefore });
        }, 400);
        if (Date.now() - this.seriesFrom > 60_000) void this.loadSeries();
        void this.loadStatus(); // of another version, perhaps
      }
      this.wasOpen = true;
      this.askConnections();
    } else if (link.name === 'waiting') {
      change.lastRecovered = undefined;
      if (link.cause === 'network') void this.diagnose();
    } else if (link.name === 'closed') {
      change.needsToken = link.cause === 'token';
    }
    this.set(change);
  }

  private async diagnose(): Promise<void> {
    const verdict = await this.service.probe();
    if (this.client.state.name !== 'open') this.set({ verdict });
  }

  private async loadStatus(): Promise<void> {
    try {
      const service = await this.service.status();
      this.set({ service, presence: this.snapshot.presence ?? service.presence });
    } catch {
      // The connection tells what is wrong.
    }
  }

  private async loadSeries(): Promise<void> {
    const { range } = this.snapshot;
    try {
      const series = await this.service.series(range);
      this.seriesFrom = Date.now();
      if (this.snapshot.range !== range) return;
      this.set({ series, seriesFailed: false, host: this.snapshot.host || newestHost(series) });
    } catch (error) {
      if (this.snapshot.range !== range) return;
      const needsToken = error instanceof Refusal && error.status === 401;
      this.set({ seriesFailed: !needsToken });
    }
  }

  private take(message: Message, origin: Origin): void {
    const { snapshot } = this;
    const change: Partial<Snapshot> = { counts: { ...this.client.counts } };
    if (message.event === 'status_update') Object.assign(change, this.takeStatus(message));
    else if (message.type === 'stats' && isStats(message.data)) {
      const { host, connections } = message.data;
      change.stats = { ...snapshot.stats, [host]: message.data };
      if (connections) change.connections = { ...snapshot.connections, [host]: connections };
    } else if (message.type === 'health') change.alerts = applyHealth(snapshot.alerts, message);
    change.feed = this.addToFeed(message, origin);
    const from = Date.now() - TICKS_SPAN;
    const at = origin === 'history' ? message.timestamp - this.client.clockOffset : Date.now();
    if (at > from) {
      change.ticks = [...snapshot.ticks.filter(({ t }) => t > from), { t: at, type: message.type }].slice(-300);
    }
    this.set(change);
  }

  private takeStatus(message: Message): Partial<Snapshot> {
    const { snapshot } = this;
    const data = message.data as { presence?: unknown; since?: unknown } | null;
    const change: Partial<Snapshot> = {};
    if (isPresence(data?.presence)) {
      change.presence = data.presence;
      change.since = isNumber(data.since) ? data.since : undefined;
    }
    if (isHostStatus(data)) {
      const { host } = data;
      if (message.timestamp < (snapshot.statusAt[host] ?? 0)) return change;
      const point = { t: message.timestamp, cpu: data.cpu, memory: data.memory, disk: data.disk };
      const live = (snapshot.live[host] ?? []).filter(({ t }) => t > message.timestamp - DAY);
      change.hosts = { ...snapshot.hosts, [host]: data };
      change.statusAt = { ...snapshot.statusAt, [host]: message.timestamp };
      change.live = { ...snapshot.live, [host]: [...live, point] };
      // One that is only in the past gives way to one that reports.
      if (!this.hostIsChosen && !snapshot.hosts[snapshot.host]) change.host = host;
      if (data.connections !== snapshot.hosts[host]?.connections) this.askConnections();
    }
    return change;
  }

  /** The number of connections has changed: ask once the workers have published it, once a second. */
  private askConnections(): void {
    if (this.asking) return;
    this.asking = true;
    setTimeout(() => {
      this.asking = false;
      const hosts = Object.keys(this.snapshot.hosts);
      const [host = ''] = hosts;
      // Of several machines any may answer; theirs come with the statistics.
      if (hosts.length > 1 || this.client.state.name !== 'open') return;
      this.service.connections().then(
        (connections) => this.set({ connections: { ...this.snapshot.connections, [host]: connections } }),
        () => {},
      );
      // Without a collector no message says that the number has changed.
      clearTimeout(this.askingAgain);
      if (!host) this.askingAgain = setTimeout(() => this.askConnections(), ROWS_EVERY);
    }, ROWS_AFTER);
  }

  private addToFeed(message: Message, origin: Origin): FeedItem[] {
    const { type, event, timestamp, seq = 0, epoch = '' } = message;
    const text = JSON.stringify(message.data) ?? 'null';
    const item: FeedItem = {
      key: `${type} ${epoch} ${seq}`,
      type,
      event,
      timestamp,
      seq,
      origin,
      summary: summarize(message),
      text: text.slice(0, TEXT_KEPT),
      cut: text.length > TEXT_KEPT,
    };
    const { feed } = this.snapshot;
    let place = 0;
    // The histories of several types come one after the other.
    while (place < feed.length && (feed[place]?.timestamp ?? 0) > timestamp) place++;
    return [...feed.slice(0, place), item, ...feed.slice(place)].slice(0, FEED_KEPT);
  }
}

export function useStore(store: Store): Snapshot {
  return useSyncExternalStore(store.listen, store.get);
}

export const spanOf = (range: Range): number => RANGES[range] * 1000;
