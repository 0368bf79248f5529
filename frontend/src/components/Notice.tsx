import { type FormEvent, useEffect, useState } from 'react';
import { useNow } from '../clock';
import { useWords } from '../i18n';
import type { Snapshot, Store } from '../store';

const RECOVERED_SHOWN = 8000;

/** Why there is no connection, and what happens next; or that it is back. */
export function Notice({ store, data }: { store: Store; data: Snapshot }) {
  const { t } = useWords();
  const now = useNow();
  const [token, setToken] = useState('');
  const [tried, setTried] = useState(false);
  const [shown, setShown] = useState(false);
  const { link, lastRecovered } = data;

  useEffect(() => {
    if (lastRecovered === undefined) return;
    setShown(true);
    const timer = setTimeout(() => setShown(false), RECOVERED_SHOWN);
    return () => clearTimeout(timer);
  }, [lastRecovered]);

  if (link.name === 'open') {
    return (
      <div role="status" className="notices">
        {shown && lastRecovered !== undefined && (
          <p className="notice" data-kind="good" data-testid="recovered">
            {t.recovered(lastRecovered)}
          </p>
        )}
      </div>
    );
  }
  const cause = causeOf(data);
  // The first attempt is no news, and neither is a pause that is over before it can be read.
  if (!cause) return <div role="status" className="notices" />;
  const [title, text] = t.cause[cause] ?? t.cause.network ?? ['', ''];
  const left = Math.max(0, Math.ceil(((link.retryAt ?? now) - now) / 1000));

  function submit(event: FormEvent) {
    event.preventDefault();
    setTried(true);
    store.useToken(token.trim());
  }

  return (
    <div role="status" className="notices">
      <div className="notice" data-kind={link.name === 'closed' ? 'bad' : 'wait'} data-cause={cause} data-testid="notice">
        <div>
          <h2>{title}</h2>
          <p>{text}</p>
          {cause === 'token' && tried && link.message && <p className="said">{link.message}</p>}
        </div>
        {cause === 'token' ? (
          <form onSubmit={submit} className="row">
            <label className="field">
              <span>{t.tokenLabel}</span>
              <input
                type="password"
                autoComplete="off"
                required
                value={token}
                onChange={(event) => setToken(event.target.value)}
                aria-describedby="token-kept"
              />
            </label>
            <button type="submit" className="primary">
              {t.tokenUse}
            </button>
            <small id="token-kept">{t.tokenKept}</small>
          </form>
        ) : (
          <div className="row">
            {link.name !== 'closed' && <small aria-hidden="true">{t.retryIn(link.name === 'connecting' ? 0 : left)}</small>}
            <button type="button" onClick={() => store.client.reconnect()}>
              {t.retryNow}
            </button>
          </div>
        )}
      </div>
    </div>
  );
}

/** What to say: HTTP may know more than a connection that a browser shows as 1006 only. */
export function causeOf({ link, verdict }: Pick<Snapshot, 'link' | 'verdict'>): string | undefined {
  if (link.name === 'open' || !link.cause) return verdict === 'offline' ? 'offline' : undefined;
  if (verdict === 'offline') return 'offline';
  if (link.cause !== 'network') return link.cause;
  return verdict ?? 'network';
}
