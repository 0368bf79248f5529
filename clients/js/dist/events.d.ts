/** Server-sent events behind the interface of a WebSocket: for networks that let no WebSocket through. */
import type { Subscribe } from './protocol';
type Handler = ((event: never) => void) | null;
type Source = Pick<EventSource, 'close' | 'onmessage' | 'onerror'>;
export type SourceClass = new (url: string) => Source;
/** The address of a call, beside that of the WebSocket. */
export declare function beside(url: string, path: string): URL;
/**
 * Requests are answered here: a subscription opens the stream anew, the past and pings are HTTP calls.
 * What the service alone could answer (`presence`) is refused.
 */
export declare class EventSocket {
    private url;
    private Class;
    /** Subscriptions that will be asked for at once. */
    private wanted;
    readyState: number;
    onopen: Handler;
    onmessage: Handler;
    onclose: Handler;
    onerror: Handler;
    private source;
    private types;
    /** Types that the first stream begins with, until they are subscribed to. */
    private first;
    private places;
    private user;
    private token;
    /** None before the stream has begun. */
    private supported;
    /** Requests that are waited for before the stream is opened anew. */
    private busy;
    /** Called when the stream has said where it goes on. */
    private begun;
    private last;
    constructor(url: string, Class: SourceClass, 
    /** Subscriptions that will be asked for at once. */
    wanted: () => Subscribe[]);
    send(frame: string): void;
    close(): void;
    private answer;
    /** Let more types flow; gives where each of them goes on, which a cut is recovered from. */
    private subscribe;
    private add;
    /** The newest messages of a type, behind which the stream goes on; false: it has none. */
    private bring;
    private page;
    /** The address of a call; what is null or undefined is left out. */
    private address;
    private fetch;
    /** Open the first stream: of a client that comes back, with all its types where they were. */
    private begin;
    /** Open the stream, in place of the one that there is. */
    private open;
    private take;
    /** The stream has ended. A page does not see why it is refused, but another call may. */
    private failed;
    private say;
}
export {};
