import { type FormEvent, type KeyboardEvent, type RefObject, useEffect, useRef, useState } from 'react';
import { useNow } from '../clock';
import { formatAgo, formatTime } from '../format';
import { useWords } from '../i18n';
import { type Connection, type ConnectionList, type Filter, Refusal, ROWS } from '../service';
import type { Snapshot, Store } from '../store';
import { explain, type Outcome, Result } from './Result';

interface Shown {
  list: ConnectionList;
  filter: Filter;
  /** The last ids of the pages before this one. */
  before: string[];
}

/** `all`, or the id of a connection. */
type Target = string;
const ALL = 'all';

/** The open connections of all workers, for operators: by user and type, a page at a time, with a way to close them. */
export function Roster({ store, data, token }: { store: Store; data: Snapshot; token: string }) {
  const { t } = useWords();
  const [user, setUser] = useState('');
  const [type, setType] = useState('');
  const [shown, setShown] = useState<Shown | undefined>();
  const [outcome, setOutcome] = useState<Outcome | undefined>();
  const [asked, setAsked] = useState<Target | undefined>();
  const [busy, setBusy] = useState(false);
  const heading = useRef<HTMLHeadingElement>(null);

  async function run(action: () => Promise<Outcome | undefined>) {
    if (!token) return setOutcome({ good: false, text: t.noToken });
    setBusy(true);
    try {
      setOutcome(await action());
    } catch (error) {
      setOutcome({ good: false, text: explain(error, t) });
    } finally {
      setBusy(false);
    }
  }

  async function load(filter: Filter, before: string[]) {
    const list = await store.service.openConnections(token, filter, before[before.length - 1] ?? '');
    setShown({ list, filter, before });
    setAsked(undefined);
  }

  function submit(event: FormEvent) {
    event.preventDefault();
    void run(async () => {
      await load({ user: user.trim(), type }, []);
      return undefined;
    });
  }

  function turn(before: string[]) {
    if (!shown) return;
    void run(async () => {
      await load(shown.filter, before);
      heading.current?.focus();
      return undefined;
    });
  }

  function close(target: Target) {
    if (!shown) return;
    const { filter, before } = shown;
    void run(async () => {
      const closed = await end(target, filter.user);
      // The button that had the focus is gone.
      heading.current?.focus();
      await load(filter, before);
      return closed;
    });
  }

  async function end(target: Target, of: string): Promise<Outcome> {
    try {
      const { service } = store;
      const { closed } = await (target === ALL ? service.closeUser(token, of) : service.closeConnection(token, target));
      return { good: true, text: t.closed(closed) };
    } catch (error) {
      if (error instanceof Refusal && error.status === 404) return { good: true, text: t.goneAlready };
      throw error;
    }
  }

  const { list, filter, before } = shown ?? {};
  const rows = list?.connections ?? [];
  const first = (before?.length ?? 0) * ROWS + 1;
  return (
    <section className="roster" aria-labelledby="roster-title" data-testid="roster">
      <h3 id="roster-title" ref={heading} tabIndex={-1}>
        {t.roster}
      </h3>
      <form onSubmit={submit} className="filter">
        <label className="field">
          <span>{t.user}</span>
          <input
            value={user}
            placeholder={t.userExact}
            autoComplete="off"
            autoCapitalize="none"
            spellCheck={false}
            maxLength={1024}
            onChange={(change) => setUser(change.target.value)}
          />
        </label>
        <label className="field">
          <span>{t.type}</span>
          <select value={type} onChange={(change) => setType(change.target.value)}>
            <option value="">{t.allTypes}</option>
            {data.types.map((name) => (
              <option key={name}>{name}</option>
            ))}
          </select>
        </label>
        <button type="submit" className="primary" disabled={busy}>
          {t.list}
        </button>
      </form>
      <Result outcome={outcome} id="roster-result" />
      {list && rows.length === 0 && <p className="hint">{t.noneOpen}</p>}
      {list && filter && rows.length > 0 && (
        <>
          <ul className="rows" aria-busy={busy}>
            {rows.map((row) => (
              <Row
                key={row.id}
                row={row}
                isOwn={row.id === store.client.connected?.connectionId}
                // Where there is one machine its name says nothing.
                host={rows.some(({ host }) => host !== row.host) ? row.host : ''}
                offset={store.client.clockOffset}
                asked={asked === row.id}
                busy={busy}
                onAsk={(on) => setAsked(on ? row.id : undefined)}
                onClose={() => close(row.id)}
              />
            ))}
          </ul>
          <div className="row pages">
            <p className="aside">
              {t.rows(first, first + rows.length - 1, list.total)}
              {!list.complete && ` · ${t.incomplete}`}
            </p>
            {(before?.length || list.more) && (
              <>
                <button type="button" disabled={busy || !before?.length} onClick={() => turn((before ?? []).slice(0, -1))}>
                  {t.previous}
                </button>
                <button
                  type="button"
                  disabled={busy || !list.more}
                  onClick={() => turn([...(before ?? []), rows[rows.length - 1]?.id ?? ''])}
                >
                  {t.next}
                </button>
              </>
            )}
          </div>
          {filter.user && !filter.type && (
            <div className="all">
              <Confirm
                label={t.closeAll(list.total, filter.user)}
                name={t.closeAll(list.total, filter.user)}
                question={t.confirmAll}
                asked={asked === ALL}
                busy={busy}
                onAsk={(on) => setAsked(on ? ALL : undefined)}
                onConfirm={() => close(ALL)}
              />
            </div>
          )}
        </>
      )}
    </section>
  );
}

interface RowProps {
  row: Connection;
  isOwn: boolean;
  host: string;
  /** Milliseconds by which the service's clock is ahead. */
  offset: number;
  asked: boolean;
  busy: boolean;
  onAsk: (on: boolean) => void;
  onClose: () => void;
}

function Row({ row, isOwn, host, offset, asked, busy, onAsk, onClose }: RowProps) {
  const { lang, t } = useWords();
  const now = useNow() + offset;
  const { id, user, protocol, types, worker, since } = row;
  const name = user ?? t.noName;
  return (
    <li data-asked={asked || undefined}>
      <p className="name" data-anonymous={user === null || undefined}>
        <bdi>{name}</bdi>
        {isOwn && <span className="badge">{t.thisPage}</span>}
      </p>
      <p className="where">
        {t.protocol[protocol] ?? protocol} · {t.onWorker(worker, host)}
      </p>
      <p className="when">
        {since !== null && (
          <time dateTime={new Date(since).toISOString()}>
            {t.openSince(formatTime(since, now, lang))} · {formatAgo(since, now, lang)}
          </time>
        )}
      </p>
      <p className="types">{types.length ? types.join(', ') : t.noTypes}</p>
      <code className="id">{id}</code>
      <Confirm label={t.close} name={t.closeOf(name)} question={t.confirmClose} asked={asked} busy={busy} onAsk={onAsk} onConfirm={onClose} />
    </li>
  );
}

interface ConfirmProps {
  label: string;
  /** What a screen reader says for it. */
  name: string;
  question: string;
  asked: boolean;
  busy: boolean;
  onAsk: (on: boolean) => void;
  onConfirm: () => void;
}

/** A button that asks once more. The focus goes to the answer, and back where it is no. */
function Confirm({ label, name, question, asked, busy, onAsk, onConfirm }: ConfirmProps) {
  const { t } = useWords();
  const open = useRef<HTMLButtonElement>(null);
  const yes = useRef<HTMLButtonElement>(null);
  const wasAsked = useRef(false);

  useEffect(() => {
    if (asked !== wasAsked.current) focus(asked ? yes : open);
    wasAsked.current = asked;
  }, [asked]);

  function press(event: KeyboardEvent) {
    if (event.key !== 'Escape') return;
    event.stopPropagation();
    onAsk(false);
  }

  if (!asked) {
    return (
      <button type="button" ref={open} className="close" aria-label={name} onClick={() => onAsk(true)}>
        {label}
      </button>
    );
  }
  return (
    <div className="confirm" role="group" aria-label={name} onKeyDown={press}>
      <span>{question}</span>
      <button type="button" ref={yes} className="danger" disabled={busy} onClick={onConfirm} aria-description={question}>
        {t.confirm}
      </button>
      <button type="button" onClick={() => onAsk(false)}>
        {t.keep}
      </button>
    </div>
  );
}

/** Where another button was asked in the meantime, the focus stays there. */
function focus(button: RefObject<HTMLButtonElement | null>): void {
  const active = document.activeElement;
  if (!active || active === document.body || !active.closest('.confirm')) button.current?.focus();
}
