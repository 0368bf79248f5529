import type { Message, Realtime } from '@yujian/realtime';
import { act, StrictMode } from 'react';
import { createRoot, hydrateRoot, type Root } from 'react-dom/client';
import { renderToString } from 'react-dom/server';
import { afterEach, beforeEach, expect, it, vi } from 'vitest';
import { useConnection, useStream } from '../../clients/js/src/react';

/** A client whose messages the test says. */
class FakeClient {
  state = { name: 'open' };
  listeners = new Map<(message: Message<number>) => void, string>();
  subscribe(type: string, listener: (message: Message<number>) => void): () => void {
    this.listeners.set(listener, type);
    return () => void this.listeners.delete(listener);
  }
  on(): () => void {
    return () => {};
  }
  say(type: string, data: number): void {
    act(() => {
      for (const [listener, wanted] of this.listeners) if (wanted === type) listener({ type, data } as Message<number>);
    });
  }
}

let client: FakeClient;
let place: HTMLElement;
let root: Root;
beforeEach(() => {
  vi.stubGlobal('IS_REACT_ACT_ENVIRONMENT', true);
  client = new FakeClient();
  place = document.createElement('div');
  root = createRoot(place);
});
afterEach(() => act(() => root.unmount()));

function Newest({ of = client, type = 'status' }: { of?: FakeClient; type?: string }) {
  return <b>{useStream<number>(of as unknown as Realtime, type)?.data ?? '–'}</b>;
}

it('shows the newest message to each component, in StrictMode too, and leaves no listener behind', () => {
  const both = (
    <StrictMode>
      <Newest />
      <Newest />
    </StrictMode>
  );
  act(() => root.render(both));
  client.say('status', 1);
  client.say('status', 2);
  expect(place.textContent).toBe('22');
  expect(client.listeners.size).toBe(2);
  act(() => root.render(null));
  expect(client.listeners.size).toBe(0);
});

it('shows nothing of the type or the client before', () => {
  act(() => root.render(<Newest />));
  client.say('status', 1);
  act(() => root.render(<Newest type="health" />));
  expect(place.textContent).toBe('–');
  client.say('health', 2);
  expect(place.textContent).toBe('2');
  act(() => root.render(<Newest of={new FakeClient()} type="health" />));
  expect(place.textContent).toBe('–');
  expect(client.listeners.size).toBe(0);
});

function Both() {
  const { name } = useConnection(client as unknown as Realtime);
  return (
    <p>
      <Newest /> {name}
    </p>
  );
}

it('takes over what a server has rendered', () => {
  const errors = vi.fn();
  const page = document.createElement('div');
  page.innerHTML = renderToString(<Both />);
  expect(page.textContent).toBe('– connecting');
  act(() => {
    root = hydrateRoot(page, <Both />, { onRecoverableError: errors });
  });
  expect(errors).not.toHaveBeenCalled();
  expect(page.textContent).toBe('– open');
});
