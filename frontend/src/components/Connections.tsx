import { formatCount } from '../format';
import { useWords } from '../i18n';
import type { Snapshot } from '../store';
import { NoFigures } from './NoFigures';

/** Connections: by worker, by type, by protocol. */
export function Connections({ data }: { data: Snapshot }) {
  const { lang, t } = useWords();
  const status = data.hosts[data.host];
  const stats = data.connections[data.host];
  const total = status?.connections ?? stats?.totalConnections;
  const users = stats?.uniqueUsers ?? status?.users;
  return (
    <section className="card connections" aria-labelledby="connections-title">
      <header className="head">
        <h2 id="connections-title">{t.connections}</h2>
      </header>
      <dl className="pair">
        <div>
          <dt>{t.total}</dt>
          <dd data-testid="connections">{total === undefined ? '–' : formatCount(total, lang)}</dd>
        </div>
        <div>
          <dt>{t.users}</dt>
          <dd>{users === undefined ? '–' : formatCount(users, lang)}</dd>
        </div>
      </dl>
      {stats ? (
        <div className="three">
          <Bars
            title={t.byWorker}
            rows={stats.workers.map((worker, number) => {
              const state = worker.deaf ? 'deaf' : worker.state;
              const name = t.worker(worker.pid ?? number + 1);
              return [state === 'ready' ? name : `${name} · ${t.workerState[state] ?? state}`, worker.connections];
            })}
          />
          <Bars title={t.byType} rows={Object.entries(stats.subscriptions)} />
          <Bars
            title={t.byProtocol}
            rows={Object.entries(stats.protocols).map(([name, count]) => [t.protocol[name] ?? name, count])}
          />
        </div>
      ) : (
        <NoFigures data={data} />
      )}
    </section>
  );
}

function Bars({ title, rows }: { title: string; rows: [string, number][] }) {
  const { lang } = useWords();
  const most = Math.max(1, ...rows.map(([, count]) => count));
  return (
    <div className="bars">
      <h3>{title}</h3>
      <dl>
        {rows.map(([name, count]) => (
          <div key={name}>
            <dt>{name}</dt>
            <dd>
              <span className="bar-track" aria-hidden="true">
                <i style={{ width: `${(count / most) * 100}%` }} />
              </span>
              {formatCount(count, lang)}
            </dd>
          </div>
        ))}
      </dl>
    </div>
  );
}
