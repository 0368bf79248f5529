import { useMemo, useState } from 'react';
import { useNow } from '../clock';
import { formatBytes, formatCount, formatDuration, formatPercent } from '../format';
import { useWords } from '../i18n';
import { join, type Metric, type Point, pointsOf, type Range, RANGES } from '../series';
import { type HostStatus, type Snapshot, spanOf, type Store } from '../store';
import { Chart } from './Chart';

const METRICS: Metric[] = ['cpu', 'memory', 'disk'];
/** Seconds after which a status no longer stands for the present; it is renewed every 30 s. */
const STALE = 45_000;

/** CPU, memory and disk: now, and over time. */
export function Vitals({ store, data }: { store: Store; data: Snapshot }) {
  const { lang, t } = useWords();
  const now = useNow() + store.client.clockOffset;
  const { range, series, host } = data;
  const hosts = [...new Set([...Object.keys(data.hosts), ...Object.keys(series?.hosts ?? {})])].sort();
  const status = data.hosts[host];
  const live = data.live[host];
  const points = useMemo(
    () => join(series ? pointsOf(series, host) : [], live ?? []),
    [series, host, live],
  );
  const held = hold(points, data.statusAt[host], now);
  const [at, setAt] = useState<number | undefined>();
  const hole = Math.max((series?.step ?? 5) * 3000, STALE);

  return (
    <section className="vitals" aria-labelledby="vitals-title">
      <header className="head">
        <h2 id="vitals-title">{t.vitals}</h2>
        {hosts.length > 1 ? (
          <label className="host">
            <span className="unseen">{t.host}</span>
            <select value={host} onChange={(event) => store.setHost(event.target.value)}>
              {hosts.map((name) => (
                <option key={name}>{name}</option>
              ))}
            </select>
          </label>
        ) : (
          <span className="aside">{[host, status?.uptime !== undefined && t.uptime(formatDuration(status.uptime, lang))].filter(Boolean).join(' · ')}</span>
        )}
        <fieldset className="segments" data-testid="range">
          <legend className="unseen">{t.range}</legend>
          {(Object.keys(RANGES) as Range[]).map((name) => (
            <label key={name}>
              <input type="radio" name="range" checked={range === name} onChange={() => store.setRange(name)} />
              <span>{t.ranges[name]}</span>
            </label>
          ))}
        </fieldset>
      </header>
      {data.seriesFailed && <p className="hint">{t.seriesFailed}</p>}
      <div className="trio">
        {METRICS.map((metric) => {
          const value = status?.[metric] ?? held[held.length - 1]?.[metric];
          return (
            <article key={metric} className="vital" data-metric={metric} data-testid={metric}>
              <h3>{t[metric]}</h3>
              <p className="figure">
                {value === undefined ? (
                  '–'
                ) : (
                  <>
                    {formatPercent(value)}
                    <small>%</small>
                  </>
                )}
              </p>
              <p className="aside">{status ? detail(metric, status) : '\u00a0'}</p>
              <Chart
                name={t[metric]}
                metric={metric}
                points={held}
                from={now - spanOf(range)}
                to={now}
                hole={hole}
                {...(series || data.openSince !== undefined ? {} : { empty: t.unknown })}
                at={at}
                onAt={setAt}
              />
            </article>
          );
        })}
      </div>
    </section>
  );

  function detail(metric: Metric, of: HostStatus): string {
    if (metric === 'cpu') return t.cores(formatCount(of.cpus, lang), (of.load?.[0] ?? 0).toFixed(2));
    if (metric === 'memory') return t.ofTotal(formatBytes(of.memoryUsed), formatBytes(of.memoryTotal));
    return t.ofTotal(formatBytes(of.diskUsed), formatBytes(of.diskTotal));
  }
}

/** The last status holds until the next: the collector publishes changes only. */
function hold(points: Point[], statusAt: number | undefined, now: number): Point[] {
  const last = points[points.length - 1];
  if (!last || statusAt === undefined || last.t >= now || now - statusAt > STALE) return points;
  return [...points, { ...last, t: now }];
}
