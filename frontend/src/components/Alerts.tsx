import { useState } from 'react';
import type { Alert } from '../alerts';
import { useNow } from '../clock';
import { formatDuration, formatPercent, formatTime } from '../format';
import { useWords, type Words } from '../i18n';
import type { Snapshot, Store } from '../store';

/** Of those that are over, until more are asked for. */
const PAST_SHOWN = 3;

/** Alerts that are open, and those that are over with their length. */
export function Alerts({ store, data }: { store: Store; data: Snapshot }) {
  const { t } = useWords();
  const now = useNow() + store.client.clockOffset;
  const [shown, setShown] = useState(PAST_SHOWN);
  const open = data.alerts.filter((alert) => alert.until === undefined);
  const over = data.alerts.filter((alert) => alert.until !== undefined);
  const worst = open.some((alert) => alert.level === 'critical') ? 'critical' : open.length ? 'warning' : undefined;
  return (
    <section className="card alerts" aria-labelledby="alerts-title" data-worst={worst} data-testid="alerts">
      <header className="head">
        <h2 id="alerts-title">{t.alerts}</h2>
        {open.length > 0 && <span className="count">{open.length}</span>}
      </header>
      <div role="alert">
        {open.length > 0 && (
          <ul className="list">
            {open.map((alert) => (
              <Row key={alert.key} alert={alert} now={now} />
            ))}
          </ul>
        )}
      </div>
      {open.length === 0 && data.openSince === undefined && <p className="hint">{t.unknown}</p>}
      {open.length === 0 && data.openSince !== undefined && (
        <p className="quiet">
          <svg viewBox="0 0 16 16" className="mark" aria-hidden="true">
            <path d="m3 8.5 3.2 3.2L13 5" fill="none" stroke="currentColor" strokeWidth="2" strokeLinecap="round" strokeLinejoin="round" />
          </svg>
          {t.noAlerts}
        </p>
      )}
      {over.length > 0 && (
        <>
          <h3>{t.over}</h3>
          <ul className="list past">
            {over.slice(0, shown).map((alert) => (
              <Row key={`${alert.key} ${alert.until}`} alert={alert} now={now} />
            ))}
          </ul>
          {over.length > shown && (
            <button type="button" className="more" onClick={() => setShown(over.length)}>
              {t.more(over.length - shown)}
            </button>
          )}
        </>
      )}
    </section>
  );
}

function words({ metric, value, threshold, text }: Alert, t: Words): string {
  if (value !== undefined && threshold !== undefined && (metric === 'cpu' || metric === 'memory' || metric === 'disk')) {
    return t.above(t[metric], formatPercent(value), formatPercent(threshold));
  }
  return text || metric;
}

function Row({ alert, now }: { alert: Alert; now: number }) {
  const { lang, t } = useWords();
  const isOpen = alert.until === undefined;
  const length = formatDuration(((alert.until ?? now) - alert.since) / 1000, lang);
  return (
    <li data-level={alert.level} data-open={isOpen || undefined}>
      <strong className="level">{t.level[alert.level]}</strong>
      <span className="what">
        {words(alert, t)}
        {alert.source && <small> {alert.source}</small>}
      </span>
      <span className="when">
        {formatTime(alert.since, now, lang)} · {isOpen ? t.openFor(length) : t.lasted(length)}
      </span>
    </li>
  );
}
