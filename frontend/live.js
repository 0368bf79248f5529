// Shows the newest message of each type. Comes back by itself and gets what it missed
// (docs/PROTOCOL.md, "Recovery").

const TYPES = ['status', 'stats', 'health'];
const STAY_AWAY = new Set([1008, 4401, 4409]);
const LONGEST_WAIT = 15000; // ms
const PING_INTERVAL = 25000; // ms; half of the silence after which a connection counts as dead

const positions = {}; // by type: {epoch, seq} of the last message
const counts = {received: 0, recovered: 0, reconnects: 0, missed: 0};
let subscribedTo = {}; // by type: the seq where live begins
let failures = 0;
let watchdog;

const byId = (id) => document.getElementById(id);

function showState(state, text) {
  byId('connection').dataset.state = state;
  byId('connection').textContent = text;
}

function count(name, by = 1) {
  counts[name] += by;
  byId(name).textContent = String(counts[name]);
}

/** Nested objects as [path, value] pairs. */
function* flatten(value, path = '') {
  if (value !== null && typeof value === 'object' && !Array.isArray(value)) {
    for (const [name, inner] of Object.entries(value)) {
      yield* flatten(inner, path ? `${path}.${name}` : name);
    }
  } else {
    yield [path || 'value', value];
  }
}

function format(value) {
  if (typeof value === 'number' && !Number.isInteger(value)) return value.toFixed(2);
  if (value !== null && typeof value === 'object') return JSON.stringify(value);
  return String(value);
}

function showMessage(message) {
  const list = document.querySelector(`dl[data-type="${CSS.escape(message.type)}"]`);
  if (!list) return;
  list.replaceChildren(...[...flatten(message.data)].flatMap(([name, value]) => {
    const term = document.createElement('dt');
    const figure = document.createElement('dd');
    term.textContent = name;
    figure.textContent = format(value); // never as HTML: anyone may have published it
    return [term, figure];
  }));
  const meta = document.querySelector(`[data-meta="${CSS.escape(message.type)}"]`);
  const when = new Date(message.timestamp).toLocaleTimeString();
  meta.textContent = `${message.event}, seq ${message.seq}, ${when}`;
}

function receive(message) {
  if (message.event === 'subscribed') {
    subscribedTo = message.data.types;
    for (const [type, {epoch, seq}] of Object.entries(subscribedTo)) {
      positions[type] ??= {epoch, seq};
    }
    failures = 0;
    showState('live', 'live');
  } else if (message.event === 'gap') {
    const {first, last, epoch, reason} = message.data;
    if (reason === 'history') count('missed', last - first + 1);
    positions[message.type] = {epoch, seq: last};
  } else if (message.event === 'history_data') {
    const newest = message.data.messages.at(-1);
    if (newest) showMessage(newest);
  } else if (message.seq !== undefined) {
    if (message.seq <= (subscribedTo[message.type]?.seq ?? 0)) count('recovered');
    positions[message.type] = {epoch: message.epoch, seq: message.seq};
    count('received');
    showMessage(message);
  } else if (message.event === 'error') {
    console.warn(message.data.code, message.data.message);
  }
}

function request(action, payload) {
  const id = crypto.randomUUID?.() ?? String(Math.random()); // no UUIDs on plain http
  return JSON.stringify({id, type: 'config', timestamp: Date.now(), action, payload});
}

/** The request that every connection begins with. */
function subscription() {
  const isFirst = Object.keys(positions).length === 0;
  return request('subscribe', {types: TYPES, ...(isFirst ? {history: 1} : {recover: positions})});
}

function retryAfter(event) {
  try {
    const told = JSON.parse(event.reason).retryAfter;
    if (Number.isFinite(told)) return told;
  } catch { /* a reason in words, or none */ }
  return Math.min(LONGEST_WAIT, 500 * 2 ** Math.min(failures, 5)) * (0.5 + Math.random());
}

function connect(url) {
  // No default subscriptions: the first frame names them, and what was missed.
  const socket = new WebSocket(`${url}?types=`);
  let heardAt = Date.now();
  const pings = setInterval(() => {
    if (Date.now() - heardAt > 2 * PING_INTERVAL) end({code: 1006, reason: ''});
    else if (socket.readyState === WebSocket.OPEN) socket.send(request('ping', {}));
  }, PING_INTERVAL);

  function end(event) {
    clearInterval(pings);
    socket.onclose = socket.onmessage = null;
    socket.close();
    if (STAY_AWAY.has(event.code)) {
      showState('closed', `closed (${event.code}); reload the page to come back`);
      return;
    }
    showState('connecting', 'connecting again');
    setTimeout(() => {
      count('reconnects');
      connect(url);
    }, retryAfter(event));
    failures += 1;
  }

  socket.onopen = () => socket.send(subscription());
  socket.onmessage = (event) => {
    heardAt = Date.now();
    receive(JSON.parse(event.data));
  };
  socket.onclose = end;
}

/** Where the service is: Caddy says it; without that, where the page came from. */
async function findService() {
  try {
    const answer = await fetch('config.json', {cache: 'no-cache'});
    if (answer.ok) return (await answer.json()).api;
  } catch { /* no such file */ }
  return location.origin;
}

const base = await findService();
connect(`${base.replace(/^http/, 'ws')}/ws/realtime`);
