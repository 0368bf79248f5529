import type { Message, Realtime, State } from './index.js';
/** The newest message of a type, or undefined until there is one. */
export declare function useStream<T = unknown>(client: Realtime, type: string): Message<T> | undefined;
/** The state of the connection. */
export declare function useConnection(client: Realtime): State;
