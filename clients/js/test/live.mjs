// The client against a real service, for tests/page/test_client.py: reports its runtime, then what happens, as
// JSON lines, and takes orders, one JSON object a line, on standard input.
import { createInterface } from 'node:readline';
import { connect } from '../dist/index.js';

const { BASE, TYPES = 'status', OPTIONS = '{}', TOKENS } = process.env;
const report = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);

report({ runtime: globalThis.Bun ? 'bun' : 'node' });
const options = { pause: [50, 500], ...JSON.parse(OPTIONS) };
if (TOKENS) {
  const tokens = JSON.parse(TOKENS);
  options.token = () => {
    report({ token: tokens.length });
    return tokens.length > 1 ? tokens.shift() : tokens[0];
  };
}
// Bun and Node 22 have a WebSocket of their own.
if (!globalThis.WebSocket) options.WebSocket = (await import('ws')).WebSocket;

const client = connect(BASE, options);
client.on('state', (state) => report({ state: state.name, cause: state.cause, code: state.code }));
client.on('error', ({ code }) => report({ error: code }));
client.on('gap', (gap) => report({ gap }));
client.subscribe(TYPES.split(','), ({ event, seq, data, type }, origin) => report({ event, seq, data, type, origin }));

for await (const line of createInterface({ input: process.stdin })) {
  const { action, payload, counts, close } = JSON.parse(line);
  if (close) {
    client.close();
    break;
  }
  if (counts) report({ counts: client.counts });
  else {
    client.request(action, payload).then(
      ({ event, data }) => report({ answer: event, data }),
      (error) => report({ refused: error.code }),
    );
  }
}
process.exit(0);
