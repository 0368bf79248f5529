/** Hooks for React 18 and newer. */
import { useCallback, useRef, useSyncExternalStore } from 'react';
import type { Message, Realtime, State } from './index.js';

/** The newest message of a type, or undefined until there is one. */
export function useStream<T = unknown>(client: Realtime, type: string): Message<T> | undefined {
  const newest = useRef<Message<T> | undefined>(undefined);
  const subscribe = useCallback(
    (changed: () => void) =>
      client.subscribe<T>(type, (message) => {
        newest.current = message;
        changed();
      }),
    [client, type],
  );
  return useSyncExternalStore(
    subscribe,
    () => newest.current,
    () => undefined,
  );
}

/** The state of the connection. */
export function useConnection(client: Realtime): State {
  const subscribe = useCallback((changed: () => void) => client.on('state', changed), [client]);
  return useSyncExternalStore(
    subscribe,
    () => client.state,
    () => client.state,
  );
}
