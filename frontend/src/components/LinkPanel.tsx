import { useNow } from '../clock';
import { formatCount, formatDuration, formatMs } from '../format';
import { useWords } from '../i18n';
import type { Snapshot } from '../store';

/** The connection of this page itself. */
export function LinkPanel({ data }: { data: Snapshot }) {
  const { lang, t } = useWords();
  const now = useNow();
  const { counts, link } = data;
  const rows: [string, string, string][] = [
    ['state', t.status, t.link[link.name] ?? ''],
    ['rtt', t.rtt, link.name === 'open' ? formatMs(data.rtt) : '–'],
    ['since', t.connectedFor, link.name === 'open' && data.openSince ? formatDuration((now - data.openSince) / 1000, lang) : '–'],
    ['received', t.received, formatCount(counts.received, lang)],
    ['reconnects', t.reconnects, formatCount(counts.reconnects, lang)],
    ['recovered', t.recoveredCount, formatCount(counts.recovered, lang)],
    ['missed', t.missed, formatCount(counts.missed, lang)],
    ['gaps', t.gaps, formatCount(counts.gaps, lang)],
  ];
  return (
    <section className="card link" aria-labelledby="link-title">
      <header className="head">
        <h2 id="link-title">{t.connection}</h2>
      </header>
      <dl className="facts">
        {rows.map(([id, name, value]) => (
          <div key={id}>
            <dt>{name}</dt>
            <dd data-testid={`link-${id}`} data-link={id === 'state' ? link.name : undefined} data-bad={(id === 'missed' || id === 'gaps') && value !== '0' ? true : undefined}>
              {value}
            </dd>
          </div>
        ))}
      </dl>
    </section>
  );
}
