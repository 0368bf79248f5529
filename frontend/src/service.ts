/** Where the service is, what it answers over HTTP, and why it does not. */

import type { ClosedConnections, ConnectionList, Connections, ServiceStatus } from '@yujian/realtime';
import type { Range, SeriesAnswer } from './series';

export type { Connection, ConnectionList, Connections, Presence, ServiceStatus, WorkerStatus } from '@yujian/realtime';

/** Why there is no connection, as far as HTTP can tell. */
export type Verdict = 'offline' | 'unreachable' | 'origin' | 'full' | 'starting' | 'reachable';

export class Refusal extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    message: string,
  ) {
    super(message);
  }
}

/** Milliseconds that the page's own host may take to say where the service is. */
const CONFIG_TIMEOUT = 5000;

/** Base address of the service: Caddy's site of the page names it, the service itself does not. */
export async function findService(): Promise<string> {
  try {
    const answer = await fetch('/config.json', { signal: AbortSignal.timeout(CONFIG_TIMEOUT) });
    const { api } = (await answer.json()) as { api?: unknown };
    if (typeof api === 'string' && api) return api;
  } catch {
    // Offline, or served by something that has no such file.
  }
  return location.origin;
}

async function call<T>(url: string, init: RequestInit = {}): Promise<T> {
  const answer = await fetch(url, { cache: 'no-store', signal: AbortSignal.timeout(15_000), ...init });
  const body: unknown = await answer.json().catch(() => ({}));
  if (!answer.ok) {
    const { code, error } = body as { code?: string; error?: string };
    throw new Refusal(answer.status, code ?? '', error ?? answer.statusText);
  }
  return body as T;
}

/** Which connections an operator wants to see; empty: all. */
export interface Filter {
  user: string;
  type: string;
}

/** Connections on a page of the list. */
export const ROWS = 20;

export class Service {
  /** Of the reader, where the service asks for one. */
  token = '';

  constructor(readonly base: string) {}

  private get bearer(): HeadersInit {
    return this.token ? { Authorization: `Bearer ${this.token}` } : {};
  }

  status(): Promise<ServiceStatus> {
    return call(`${this.base}/status`, { headers: this.bearer });
  }

  connections(): Promise<Connections> {
    return call(`${this.base}/ws/stats`, { headers: this.bearer });
  }

  series(range: Range): Promise<SeriesAnswer> {
    return call(`${this.base}/stats/series?range=${range}`, { headers: this.bearer });
  }

  setPresence(token: string, state: string, task: string): Promise<unknown> {
    return this.write('/status', token, { state, task: task || null });
  }

  publish(token: string, message: object): Promise<{ seq: number; type: string }> {
    return this.write('/ws/broadcast', token, message);
  }

  /** A page of the open connections of all workers, the oldest first. */
  openConnections(token: string, filter: Filter, after: string): Promise<ConnectionList> {
    const query = new URLSearchParams({ ...filter, after, limit: String(ROWS) });
    return this.operate('GET', `/connections?${query}`, token);
  }

  closeConnection(token: string, id: string): Promise<ClosedConnections> {
    return this.operate('DELETE', `/connections/${encodeURIComponent(id)}`, token);
  }

  closeUser(token: string, user: string): Promise<ClosedConnections> {
    return this.operate('DELETE', `/connections?${new URLSearchParams({ user })}`, token);
  }

  private write<T>(path: string, token: string, body: object): Promise<T> {
    return this.operate('POST', path, token, {
      headers: { 'Content-Type': 'application/json' },
      body: JSON.stringify(body),
    });
  }

  private operate<T>(method: string, path: string, token: string, { headers, ...init }: RequestInit = {}): Promise<T> {
    return call(`${this.base}${path}`, {
      ...init,
      method,
      headers: { ...headers, Authorization: `Bearer ${token}` },
    });
  }

  /** Look for the cause of a connection that a browser shows as 1006 only. */
  async probe(): Promise<Verdict> {
    if (navigator.onLine === false) return 'offline';
    const signal = AbortSignal.timeout(5000);
    try {
      const answer = await fetch(`${this.base}/status`, { cache: 'no-store', signal });
      if (!answer.ok) return 'starting';
      const status = (await answer.json()) as ServiceStatus;
      return status.connections >= status.maxConnections ? 'full' : 'reachable';
    } catch {
      if (this.base === location.origin) return 'unreachable';
    }
    try {
      // No answer that can be read, but it tells a foreign origin from a service that is away.
      await fetch(`${this.base}/status`, { mode: 'no-cors', cache: 'no-store', signal });
      return 'origin';
    } catch {
      return 'unreachable';
    }
  }
}
