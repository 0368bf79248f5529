// Runs snippet.js (section 5.1 of the deployment report) as a browser console would, with the
// production host replaced by BASE. Each line that it logs becomes one JSON line.
import { readFileSync } from 'node:fs';
import vm from 'node:vm';
import { WebSocket } from 'ws';

const base = process.env.BASE;

globalThis.WebSocket = class extends WebSocket {
  constructor(url) {
    super(url.replace('wss://api.yujian.team', base));
  }
};

const print = console.log;
console.log = (...values) => print(JSON.stringify(values));

vm.runInThisContext(readFileSync(new URL('./snippet.js', import.meta.url), 'utf8'));
