import { formatCount, formatMs } from '../format';
import { useWords } from '../i18n';
import type { Snapshot } from '../store';
import { NoFigures } from './NoFigures';

const PERIODS = ['1m', '5m', '15m', '1h', '24h'];

/** Requests, deliveries and latency by period. */
export function Traffic({ data }: { data: Snapshot }) {
  const { lang, t } = useWords();
  const periods = data.stats[data.host]?.periods;
  return (
    <section className="card traffic" aria-labelledby="traffic-title">
      <header className="head">
        <h2 id="traffic-title">{t.traffic}</h2>
      </header>
      {periods ? (
        <table>
          <caption className="unseen">{t.traffic}</caption>
          <thead>
            <tr>
              {[t.period, t.requests, t.deliveries, t.errors, t.p50, t.p99].map((name) => (
                <th key={name} scope="col">
                  {name}
                </th>
              ))}
            </tr>
          </thead>
          <tbody>
            {PERIODS.map((name) => {
              const row = periods[name];
              if (!row) return null;
              return (
                <tr key={name}>
                  <th scope="row">{t.periods[name]}</th>
                  <td>{formatCount(row.requests, lang)}</td>
                  <td>{formatCount(row.deliveries, lang)}</td>
                  <td data-bad={row.errors > 0 || undefined}>{formatCount(row.errors, lang)}</td>
                  <td>{formatMs(row.latency.p50)}</td>
                  <td>{formatMs(row.latency.p99)}</td>
                </tr>
              );
            })}
          </tbody>
        </table>
      ) : (
        <NoFigures data={data} />
      )}
    </section>
  );
}
