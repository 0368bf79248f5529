import { act } from 'react';
import { createRoot } from 'react-dom/client';
import { expect, it } from 'vitest';
import type { Alert } from '../src/alerts';
import { Alerts } from '../src/components/Alerts';
import { NoFigures } from '../src/components/NoFigures';
import { LangContext, WORDS } from '../src/i18n';
import type { Snapshot, Store } from '../src/store';

it('three alerts that are over are shown, the others when they are asked for', () => {
  (globalThis as { IS_REACT_ACT_ENVIRONMENT?: boolean }).IS_REACT_ACT_ENVIRONMENT = true;
  const box = document.body.appendChild(document.createElement('div'));
  const root = createRoot(box);
  const alerts = Array.from({ length: 5 }, (_, n): Alert => {
    return { key: `m${n}`, metric: `m${n}`, level: 'warning', text: `Alert ${n}`, since: 0, until: 60_000, source: '' };
  });
  const store = { client: { clockOffset: 0 } } as unknown as Store;
  const show = (some: Alert[]) =>
    act(() =>
      root.render(
        <LangContext value="en">
          <Alerts store={store} data={{ alerts: some, openSince: 1 } as unknown as Snapshot} />
        </LangContext>,
      ),
    );
  show(alerts.slice(0, 3));
  expect(box.querySelectorAll('li')).toHaveLength(3);
  expect(box.querySelector('button')).toBeNull();
  show(alerts);
  expect(box.querySelectorAll('li')).toHaveLength(3);
  const more = box.querySelector('button') as HTMLButtonElement;
  expect(more.textContent).toBe('Show 2 more');
  act(() => more.click());
  expect([...box.querySelectorAll('.what')].map(({ textContent }) => textContent)).toEqual(alerts.map(({ text }) => text));
  expect(box.querySelector('button')).toBeNull();
  act(() => root.unmount());
  box.remove();
});

it('why there are no statistics is said, also where none will come', () => {
  const box = document.body.appendChild(document.createElement('div'));
  const root = createRoot(box);
  const said = (openSince: number | undefined) => {
    act(() => root.render(<NoFigures data={{ openSince }} />));
    return box.textContent;
  };
  expect(said(undefined)).toBe(WORDS.en.unknown);
  expect(said(Date.now())).toBe(WORDS.en.noFigures);
  expect(said(Date.now() - 60_000)).toBe(WORDS.en.noCollector);
  act(() => root.unmount());
  box.remove();
});
