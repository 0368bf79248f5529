// Socket.IO on Node: rooms, WebSocket alone; with WORKERS > 1 its cluster adapter, as documented.
import cluster from 'node:cluster';
import { createServer } from 'node:http';
import { createAdapter, setupPrimary } from '@socket.io/cluster-adapter';
import { Server } from 'socket.io';
import { listener, port } from './envelope.mjs';

const workers = Number(process.env.WORKERS ?? 1);

const serve = () => {
  const server = createServer(listener((message) => io.to(message.type).emit(message.event, message)));
  const io = new Server(server, {
    path: '/ws/realtime/',
    transports: ['websocket'],
    pingInterval: 300_000,
    pingTimeout: 600_000,
    ...(workers > 1 && { adapter: createAdapter() }),
  });
  io.on('connection', (socket) => socket.join('status'));
  server.listen({ port, host: '127.0.0.1', backlog: 4096 });
};

if (workers > 1 && cluster.isPrimary) {
  setupPrimary();
  for (let number = 0; number < workers; number++) cluster.fork();
} else {
  serve();
}
