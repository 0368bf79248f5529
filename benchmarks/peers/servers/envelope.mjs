// What the peers on Node and Bun share: the envelope of a message, as the service makes it.
import { randomUUID } from 'node:crypto';

let seq = 0;

export const port = Number(process.env.PORT);

export const messages = (body) => (Array.isArray(body) ? body : [body]);

export const envelope = (message) => ({
  id: randomUUID(),
  type: message.type,
  timestamp: Date.now(),
  direction: 'server-to-client',
  event: message.event,
  data: message.data,
  seq: ++seq,
  epoch: 'bench000',
});

/** A request listener for node:http: publishes what is posted, answers GET with `{}`. */
export const listener = (publish) => async (request, response) => {
  const answer = (value) => {
    response.setHeader('Content-Type', 'application/json');
    response.end(JSON.stringify(value));
  };
  if (request.method !== 'POST') return answer({});
  const parts = [];
  for await (const part of request) parts.push(part);
  const body = messages(JSON.parse(Buffer.concat(parts).toString()));
  for (const message of body) publish(envelope(message));
  return answer({ taken: body.length });
};
