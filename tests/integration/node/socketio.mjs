// A socket.io-client that does what the lines on its standard input say and reports every
// event as one JSON line: {event, args} or {ack, args}.
import { createInterface } from 'node:readline';
import { io } from 'socket.io-client';

const { BASE, NAMESPACE = '/', OPTIONS = '{}' } = process.env;
const socket = io(BASE + NAMESPACE, {
  path: '/ws/realtime/',
  transports: ['websocket'],
  reconnection: false,
  ...JSON.parse(OPTIONS),
});

const plain = (value) =>
  Buffer.isBuffer(value) ? { binary: value.toString('hex') } : value;
const report = (line) => process.stdout.write(JSON.stringify(line) + '\n');

socket.on('connect', () => report({ event: ':connect', args: [socket.id] }));
socket.on('connect_error', (error) =>
  report({ event: ':connect_error', args: [error.message, error.data ?? null] }));
socket.on('disconnect', (reason) => report({ event: ':disconnect', args: [reason] }));
socket.onAny((event, ...args) => {
  const answer = args.at(-1);
  if (typeof answer === 'function') {
    args.pop();
    answer({ answered: args });
  }
  if (event !== 'offset') report({ event, args: args.map(plain) });
});

createInterface({ input: process.stdin }).on('line', (line) => {
  const { emit, args = [], binary, ack, close } = JSON.parse(line);
  if (close) return void socket.disconnect();
  const values = binary ? [...args, Buffer.from(binary, 'hex')] : args;
  if (!ack) return void socket.emit(emit, ...values);
  socket.timeout(15000).emitWithAck(emit, ...values).then(
    (answer) => report({ ack, args: [plain(answer)] }),
    (error) => report({ ack, error: String(error) }),
  );
});
