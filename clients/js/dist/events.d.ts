/** Server-sent events behind the interface of a WebSocket: for networks that let no WebSocket through. */
import type { Subscribe } from './protocol.js';
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
    private _url;
    private _Class;
    /** Subscriptions that will be asked for at once. */
    private _wanted;
    readyState: number;
    onopen: Handler;
    onmessage: Handler;
    onclose: Handler;
    onerror: Handler;
    private _source;
    /** What flows or will, each with the request that it began with. */
    private _types;
    /** Types that the first stream begins with, until they are subscribed to. */
    private _first;
    private _places;
    private _user;
    private _token;
    /** None before the stream has begun. */
    private _supported;
    /** Requests that are waited for before the stream is opened anew. */
    private _busy;
    /** Called when the stream has said where it goes on. */
    private _begun;
    private _last;
    constructor(_url: string, _Class: SourceClass, 
    /** Subscriptions that will be asked for at once. */
    _wanted: () => Subscribe[]);
    send(frame: string): void;
    close(): void;
    private _answer;
    /** Let more types flow; gives where each of them goes on, which a cut is recovered from. */
    private _subscribe;
    private _add;
    private _page;
    /** The address of a call; what is null or undefined is left out. */
    private _address;
    private _fetch;
    /** Open the first stream: of a client that comes back, with all its types where they were. */
    private _begin;
    /** Open the stream, in place of the one that there is. */
    private _open;
    private _take;
    /** The stream has ended. A page does not see why it is refused, but another call may. */
    private _failed;
    private _say;
}
export {};
