import { memo, useMemo, useState } from 'react';
import { formatTime } from '../format';
import { useWords } from '../i18n';
import type { FeedItem, Snapshot, Store } from '../store';
import { tell } from '../summary';

const PAGE = 15;

/** All messages, with filter by type, search and pause. */
export function Feed({ store, data }: { store: Store; data: Snapshot }) {
  const { t } = useWords();
  const [hidden, setHidden] = useState<ReadonlySet<string>>(new Set());
  const [search, setSearch] = useState('');
  const [paused, setPaused] = useState<FeedItem[] | undefined>();
  const [count, setCount] = useState(PAGE);

  const source = paused ?? data.feed;
  const fresh = paused ? countNew(data.feed, paused[0]) : 0;
  const found = useMemo(() => select(source, hidden, search), [source, hidden, search]);
  const types = data.types.length ? data.types : [...new Set(data.feed.map((item) => item.type))];

  function toggle(type: string) {
    const next = new Set(hidden);
    if (!next.delete(type)) next.add(type);
    setHidden(next);
  }

  return (
    <section className="card feed" aria-labelledby="feed-title">
      <header className="head">
        <h2 id="feed-title">{t.feed}</h2>
        <span className="aside" role="status">
          {paused && t.paused(fresh)}
        </span>
        <button type="button" aria-pressed={paused !== undefined} onClick={() => setPaused(paused ? undefined : data.feed)}>
          {paused ? t.resume : t.pause}
        </button>
      </header>
      <div className="tools">
        <label className="search">
          <span className="unseen">{t.search}</span>
          <input type="search" placeholder={t.search} value={search} onChange={(event) => setSearch(event.target.value)} />
        </label>
        <fieldset className="chips">
          <legend className="unseen">{t.filter}</legend>
          {types.map((type) => (
            <label key={type} data-type={type}>
              <input type="checkbox" checked={!hidden.has(type)} onChange={() => toggle(type)} />
              <span>{type}</span>
            </label>
          ))}
        </fieldset>
      </div>
      {found.length === 0 ? (
        <p className="hint">{data.feed.length ? t.noMatch : t.noMessages}</p>
      ) : (
        <ol className="messages" data-testid="feed">
          {found.slice(0, count).map((item) => (
            <Row key={item.key} item={item} now={store.now()} />
          ))}
        </ol>
      )}
      {found.length > count && (
        <button type="button" className="more" onClick={() => setCount(count + PAGE)}>
          {t.more(Math.min(PAGE, found.length - count))}
        </button>
      )}
    </section>
  );
}

const Row = memo(
  function Row({ item, now }: { item: FeedItem; now: number }) {
    const { lang, t } = useWords();
    return (
      <li data-type={item.type}>
        <details>
          <summary>
            <time dateTime={new Date(item.timestamp).toISOString()}>{formatTime(item.timestamp, now, lang, true)}</time>
            <b className="type">{item.type}</b>
            <span className="event">{item.event}</span>
            {item.origin === 'recovered' && <span className="badge">{t.wasRecovered}</span>}
            {item.summary ? (
              <span className="preview">{tell(item.summary, t, lang)}</span>
            ) : (
              <code className="preview">{item.text.slice(0, 160)}</code>
            )}
          </summary>
          <pre tabIndex={0}>
            {pretty(item)}
            {item.cut && `\n… ${t.cut}`}
          </pre>
          <p className="aside">seq {item.seq}</p>
        </details>
      </li>
    );
  },
  (before, after) => before.item === after.item,
);

function pretty(item: FeedItem): string {
  if (item.cut) return item.text;
  return JSON.stringify(JSON.parse(item.text), null, 2);
}

export function select(items: FeedItem[], hidden: ReadonlySet<string>, search: string): FeedItem[] {
  const words = search.toLowerCase().split(/\s+/).filter(Boolean);
  return items.filter((item) => {
    if (hidden.has(item.type)) return false;
    if (words.length === 0) return true;
    const text = `${item.type} ${item.event} ${item.text}`.toLowerCase();
    return words.every((word) => text.includes(word));
  });
}

export function countNew(feed: FeedItem[], newest: FeedItem | undefined): number {
  if (!newest) return feed.length;
  const index = feed.findIndex((item) => item.key === newest.key);
  return index === -1 ? feed.length : index;
}
