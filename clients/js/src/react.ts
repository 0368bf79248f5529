/** Hooks for React 18 and newer. */
import { useCallback, useMemo, useSyncExternalStore } from 'react';
import type { Message, Realtime, State } from './index.js';

/** What a server renders, and a page that takes that over. */
const CONNECTING: State = { name: 'connecting' };

/** The newest message of a type, or undefined until there is one. */
export function useStream<T = unknown>(client: Realtime, type: string): Message<T> | undefined {
  const [subscribe, snapshot] = useMemo(() => {
    let newest: Message<T> | undefined;
    const follow = (changed: () => void) =>
      client.subscribe<T>(type, (message) => {
        newest = message;
        changed();
      });
    return [follow, () => newest];
  }, [client, type]);
  return useSyncExternalStore(subscribe, snapshot, () => undefined);
}

/** The state of the connection. */
export function useConnection(client: Realtime): State {
  const subscribe = useCallback((changed: () => void) => client.on('state', changed), [client]);
  return useSyncExternalStore(
    subscribe,
    () => client.state,
    () => CONNECTING,
  );
}
