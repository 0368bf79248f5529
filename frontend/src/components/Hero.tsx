import { useNow } from '../clock';
import { formatAgo, formatTime } from '../format';
import { useWords } from '../i18n';
import type { Snapshot, Store } from '../store';

const MINUTE = 60_000;

/** What the lab does: large and first. */
export function Hero({ store, data }: { store: Store; data: Snapshot }) {
  const { lang, t } = useWords();
  const now = useNow() + store.client.clockOffset;
  const { presence } = data;
  if (!presence) {
    return (
      <section className="hero" data-state="unknown" aria-busy={!data.link.cause}>
        <h1>{t.lab}</h1>
        <p className="task">{data.link.cause ? t.unknown : t.loading}</p>
        <Pulse data={data} />
      </section>
    );
  }
  const { state, task, updatedAt } = presence;
  const words = lang === 'zh' ? [t.lab, t.state[state]] : [`${t.lab} `, t.state[state]];
  const at = state === 'offline' ? updatedAt : (data.since ?? updatedAt);
  const times = at === null ? undefined : ([formatTime(at, now, lang), formatAgo(at, now, lang)] as const);
  return (
    <section className="hero" data-state={state} data-testid="presence">
      <h1>
        {words[0]}
        <em>{words[1]}</em>
      </h1>
      <p className="task">{task ?? (times ? t.noTask[state] : t.never)}</p>
      <p className="since">{times && (state === 'offline' ? t.lastNews(...times) : t.since(...times))}</p>
      <Pulse data={data} />
    </section>
  );
}

/** A minute of messages as they came. */
function Pulse({ data }: { data: Snapshot }) {
  const { t } = useWords();
  const now = useNow();
  const recent = data.ticks.filter(({ t: at }) => at > now - MINUTE);
  return (
    <svg className="pulse" viewBox="0 0 600 40" preserveAspectRatio="none" role="img" aria-label={t.pulseSummary(recent.length)}>
      <line x1="0" y1="30" x2="600" y2="30" />
      {recent.map(({ t: at, type }, index) => {
        const x = Math.min(598, 600 - ((now - at) / MINUTE) * 600);
        return <path key={`${at} ${index}`} data-type={type} d={`M${x.toFixed(1)} 30v-${type === 'health' ? 28 : type === 'stats' ? 12 : 20}`} />;
      })}
    </svg>
  );
}
