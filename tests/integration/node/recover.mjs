// An unchanged socket.io-client that reconnects by itself. It reports {connect: id, recovered}
// for each connection and {event, seq} for each message; a line {"cut": true} on its standard
// input drops the TCP connection, {"open": true} connects one that does not do so by itself.
import { createInterface } from 'node:readline';
import { io } from 'socket.io-client';

const { BASE, OPTIONS = '{}' } = process.env;
const socket = io(BASE, {
  path: '/ws/realtime/',
  transports: ['websocket'],
  reconnectionDelay: 50,
  reconnectionDelayMax: 200,
  randomizationFactor: 0,
  ...JSON.parse(OPTIONS),
});

const report = (line) => process.stdout.write(JSON.stringify(line) + '\n');

socket.on('connect', () => report({ connect: socket.id, recovered: socket.recovered }));
socket.on('disconnect', (reason) => report({ disconnect: reason }));
socket.onAny((event, ...args) => {
  if (event !== 'offset') report({ event, seq: args[0]?.seq ?? null, data: args.at(-1)?.data ?? args.at(-1) });
});

createInterface({ input: process.stdin }).on('line', (line) => {
  const { cut, open, emit, args = [] } = JSON.parse(line);
  if (open) return void socket.connect();
  if (cut) return void socket.io.engine.transport.ws._socket.destroy();
  socket.emit(emit, ...args);
});
