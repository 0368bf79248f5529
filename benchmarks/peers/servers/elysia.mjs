// Elysia on Bun: topics of Bun's server, or with LOOP=1 a loop over a set of connections.
import { Elysia } from 'elysia';
import { envelope, messages, port } from './envelope.mjs';

const loop = process.env.LOOP === '1';
const clients = new Set();

const app = new Elysia({ websocket: { idleTimeout: 960, perMessageDeflate: false } })
  .ws('/ws/realtime', {
    open(ws) {
      if (loop) clients.add(ws.raw);
      else ws.raw.subscribe('status');
    },
    close(ws) {
      clients.delete(ws.raw);
    },
  })
  .get('/status', () => ({}))
  .post('/ws/broadcast', ({ body }) => {
    const all = messages(body);
    for (const message of all) {
      const text = JSON.stringify(envelope(message));
      if (loop) for (const client of clients) client.send(text);
      else app.server.publish(message.type, text);
    }
    return { taken: all.length };
  });
app.listen({ port, hostname: '127.0.0.1' });
