/** Server-sent events behind the interface of a WebSocket: for networks that let no WebSocket through. */
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
    readyState: number;
    onopen: Handler;
    onmessage: Handler;
    onclose: Handler;
    onerror: Handler;
    private source;
    private types;
    private places;
    private user;
    private token;
    private greeted;
    /** Requests that are waited for before the stream is opened anew. */
    private busy;
    /** Called when the stream has said where it goes on. */
    private begun;
    private last;
    constructor(url: string, Class: SourceClass);
    send(frame: string): void;
    close(): void;
    private answer;
    /** Open the stream with more types; gives where each of them goes on, which a cut is recovered from. */
    private subscribe;
    /** The newest messages of a type, behind which the stream goes on; false: it has none. */
    private bring;
    private fetch;
    /** Open the stream, in place of the one that there is. */
    private open;
    private take;
    /** The stream has ended. A page does not see why it is refused, but another call may. */
    private failed;
    private say;
}
export {};
