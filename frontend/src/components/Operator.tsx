import { type FormEvent, useState } from 'react';
import { useWords } from '../i18n';
import type { Snapshot, Store } from '../store';
import { explain, type Outcome, Result } from './Result';
import { Roster } from './Roster';

export { explain };

/** For operators, by the publish token: set state and task, publish a message, see and close connections. */
export function Operator({ store, data }: { store: Store; data: Snapshot }) {
  const { t } = useWords();
  const [token, setToken] = useState('');
  const [state, setState] = useState('working');
  const [task, setTask] = useState('');
  const [type, setType] = useState('status');
  const [event, setEvent] = useState('announcement');
  const [body, setBody] = useState('{"text": "…"}');
  const [saved, setSaved] = useState<Outcome | undefined>();
  const [sent, setSent] = useState<Outcome | undefined>();
  const [busy, setBusy] = useState(false);
  const types = data.types.length ? data.types : ['status'];

  async function run(action: () => Promise<string>, show: (outcome: Outcome) => void) {
    if (!token.trim()) return show({ good: false, text: t.noToken });
    setBusy(true);
    try {
      show({ good: true, text: await action() });
    } catch (error) {
      show({ good: false, text: explain(error, t) });
    } finally {
      setBusy(false);
    }
  }

  function save(submitted: FormEvent) {
    submitted.preventDefault();
    void run(async () => {
      await store.service.setPresence(token.trim(), state, task.trim());
      return t.saved;
    }, setSaved);
  }

  function publish(submitted: FormEvent) {
    submitted.preventDefault();
    let value: unknown;
    try {
      value = JSON.parse(body);
    } catch {
      setSent({ good: false, text: t.badJson });
      return;
    }
    void run(async () => {
      const stored = await store.service.publish(token.trim(), { type, event, data: value });
      return t.sent(stored.type, stored.seq);
    }, setSent);
  }

  return (
    <details className="card operator">
      <summary>
        <h2>{t.operator}</h2>
      </summary>
      <p className="hint">{t.operatorIntro}</p>
      <label className="field token">
        <span>{t.publishToken}</span>
        <input type="password" autoComplete="off" value={token} onChange={(change) => setToken(change.target.value)} />
      </label>
      <div className="forms">
        <form onSubmit={save} aria-labelledby="set-state">
          <h3 id="set-state">{t.setState}</h3>
          <label className="field">
            <span>{t.stateLabel}</span>
            <select value={state} onChange={(change) => setState(change.target.value)}>
              {['working', 'idle', 'offline'].map((name) => (
                <option key={name} value={name}>
                  {t.stateName[name]}
                </option>
              ))}
            </select>
          </label>
          <label className="field">
            <span>{t.task}</span>
            <input value={task} maxLength={500} onChange={(change) => setTask(change.target.value)} />
          </label>
          <button type="submit" className="primary" disabled={busy}>
            {t.save}
          </button>
          <Result outcome={saved} id="saved" />
        </form>
        <form onSubmit={publish} aria-labelledby="publish-message">
          <h3 id="publish-message">{t.publish}</h3>
          <div className="two">
            <label className="field">
              <span>{t.type}</span>
              <select value={type} onChange={(change) => setType(change.target.value)}>
                {types.map((name) => (
                  <option key={name}>{name}</option>
                ))}
              </select>
            </label>
            <label className="field">
              <span>{t.event}</span>
              <input value={event} required pattern="[A-Za-z][A-Za-z0-9_.:\/\-]{0,63}" onChange={(change) => setEvent(change.target.value)} />
            </label>
          </div>
          <label className="field">
            <span>{t.data}</span>
            <textarea rows={4} spellCheck={false} value={body} onChange={(change) => setBody(change.target.value)} />
          </label>
          <button type="submit" className="primary" disabled={busy}>
            {t.send}
          </button>
          <Result outcome={sent} id="sent" />
        </form>
      </div>
      <Roster store={store} data={data} token={token.trim()} />
    </details>
  );
}
