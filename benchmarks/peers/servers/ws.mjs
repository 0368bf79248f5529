// `ws` on Node: its documentation's broadcast, a loop over `clients`.
import { createServer } from 'node:http';
import { WebSocket, WebSocketServer } from 'ws';
import { listener, port } from './envelope.mjs';

const server = createServer(
  listener((message) => {
    const text = JSON.stringify(message);
    for (const client of sockets.clients) {
      if (client.readyState === WebSocket.OPEN) client.send(text, { binary: false });
    }
  }),
);
const sockets = new WebSocketServer({ server });
sockets.on('connection', (socket) => socket.on('error', () => socket.terminate()));
server.listen({ port, host: '127.0.0.1', backlog: 4096 });
