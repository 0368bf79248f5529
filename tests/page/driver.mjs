// Drives a real Chromium by playwright-core for tests/page. It listens on the Unix socket that its
// argument names; one JSON command a line, `{id, op, ...}`, one answer a line, `{id, value}` or
// `{id, error}`. Each connection has pages of its own, which are closed with it. It ends with its
// standard input.
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { createServer } from 'node:net';
import { createInterface } from 'node:readline';
import { chromium } from 'playwright-core';

const axe = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM,
  args: [
    '--no-sandbox',
    '--disable-gpu',
    '--disable-quic',
    '--disable-dev-shm-usage',
    '--no-first-run',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
    '--host-resolver-rules=MAP *.localhost 127.0.0.1',
  ],
});

// Pages that a test has left as it found them, for the next one that wants the same.
const kept = new Map();

const opsOf = (pages) => ({
  keep({ page, name }) {
    kept.set(name, pages.get(page));
    pages.delete(page);
  },
  take({ page, name }) {
    if (!kept.has(name)) return false;
    pages.set(page, kept.get(name));
    return kept.delete(name);
  },
  async open({ page: name, url, width = 1280, height = 900, lang = 'en-GB', dark = false, init = '', route = false }) {
    const context = await browser.newContext({
      viewport: { width, height },
      locale: lang,
      colorScheme: dark ? 'dark' : 'light',
      deviceScaleFactor: width < 600 ? 2 : 1,
      hasTouch: width < 600,
      ignoreHTTPSErrors: true,
      bypassCSP: false,
    });
    const sockets = [];
    if (route) {
      // Every socket goes to the real service, and `hangup` can end it as the service would.
      await context.routeWebSocket(/\/ws\/realtime/, (socket) => {
        socket.connectToServer();
        sockets.push(socket);
      });
    }
    const page = await context.newPage();
    const problems = [];
    page.on('pageerror', (error) => problems.push(String(error)));
    page.on('console', (message) => {
      if (message.type() === 'error' || message.type() === 'warning') problems.push(message.text());
    });
    const requests = [];
    page.on('request', (request) => requests.push(request.url()));
    if (init) await page.addInitScript(init);
    pages.set(name, { context, page, problems, requests, sockets });
    await page.goto(url, { waitUntil: 'commit' });
  },
  reload: ({ page }) => pages.get(page).page.reload({ waitUntil: 'commit' }),
  value: ({ page, expression }) => pages.get(page).page.evaluate(expression),
  // Not `waitForFunction`: it evaluates in the page, which the policy forbids.
  async wait({ page, expression, timeout = 20_000 }) {
    const end = Date.now() + timeout;
    for (;;) {
      const value = await pages.get(page).page.evaluate(expression);
      if (value) return value;
      if (Date.now() > end) throw new Error(`not within ${timeout} ms: ${expression}`);
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  },
  text: ({ page, selector }) => pages.get(page).page.locator(selector).first().innerText({ timeout: 10_000 }),
  click: ({ page, selector }) => pages.get(page).page.locator(selector).first().click({ timeout: 10_000 }),
  check: ({ page, selector }) =>
    pages.get(page).page.locator(selector).first().check({ timeout: 10_000, force: true }),
  fill: ({ page, selector, text }) => pages.get(page).page.locator(selector).first().fill(text, { timeout: 10_000 }),
  select: ({ page, selector, text }) =>
    pages.get(page).page.locator(selector).first().selectOption(text, { timeout: 10_000 }).then(() => true),
  press: ({ page, key }) => pages.get(page).page.keyboard.press(key),
  focus: ({ page, selector }) => pages.get(page).page.locator(selector).first().focus({ timeout: 10_000 }),
  resize: ({ page, width, height }) => pages.get(page).page.setViewportSize({ width, height }),
  dark: ({ page, dark }) => pages.get(page).page.emulateMedia({ colorScheme: dark ? 'dark' : 'light' }),
  offline: ({ page, offline }) => pages.get(page).context.setOffline(offline),
  // Ends the newest socket of a page opened with `route`, after an `error` of the service where one is given.
  async hangup({ page, code, reason = '', error }) {
    const socket = pages.get(page).sockets.at(-1);
    if (error) socket.send(JSON.stringify({ event: 'error', type: 'error', data: error }));
    await socket.close({ code, reason });
  },
  // Answers a path of the service in its place; without a status the request fails.
  answer: ({ page, path, status, body }) =>
    pages.get(page).context.route(`**${path}`, (route) =>
      status ? route.fulfill({ status, json: body }) : route.abort(),
    ),
  unanswer: ({ page, path }) => pages.get(page).context.unroute(`**${path}`),
  shot: ({ page, path, full = true }) =>
    pages.get(page).page.screenshot({ path, fullPage: full, animations: 'disabled' }).then(() => path),
  problems: ({ page }) => pages.get(page).problems.splice(0),
  requests: ({ page }) => pages.get(page).requests,
  async axe({ page }) {
    // In a world of its own: the policy of the page forbids foreign scripts in its own. It is gone
    // with the document.
    const tab = pages.get(page);
    const run = async () => {
      const { result, exceptionDetails } = await tab.session.send('Runtime.evaluate', {
        expression: 'axe.run({resultTypes: ["violations"]}).then((r) => JSON.stringify(r.violations.map((v) => ({id: v.id, impact: v.impact, nodes: v.nodes.map((n) => n.html.slice(0, 200) + " " + n.failureSummary)}))))',
        contextId: tab.contextId,
        awaitPromise: true,
      });
      if (exceptionDetails) throw new Error(JSON.stringify(exceptionDetails));
      return JSON.parse(result.value);
    };
    tab.session ??= await tab.context.newCDPSession(tab.page);
    if (tab.contextId) {
      try {
        return await run();
      } catch (error) {
        if (!String(error).includes('Cannot find context')) throw error;
      }
    }
    const { frameTree } = await tab.session.send('Page.getFrameTree');
    const { executionContextId } = await tab.session.send('Page.createIsolatedWorld', {
      frameId: frameTree.frame.id,
    });
    tab.contextId = executionContextId;
    await tab.session.send('Runtime.evaluate', { expression: axe, contextId: tab.contextId });
    return run();
  },
  async close({ page }) {
    const { context } = pages.get(page);
    pages.delete(page);
    await context.close();
  },
});

const server = createServer({ allowHalfOpen: true }, async (connection) => {
  const pages = new Map();
  const ops = opsOf(pages);
  const answer = (line) => connection.writable && connection.write(`${JSON.stringify(line)}\n`);
  connection.on('error', () => {});
  for await (const line of createInterface({ input: connection })) {
    const { id, op, ...rest } = JSON.parse(line);
    Promise.resolve()
      .then(() => ops[op](rest))
      .then(
        (value) => answer({ id, value: value ?? null }),
        (error) => answer({ id, error: String(error) }),
      );
  }
  await Promise.allSettled([...pages.values()].map(({ context }) => context.close()));
  connection.end();
});
server.listen(process.argv[2], () => process.stdout.write('ready\n'));
for await (const _ of process.stdin);
await browser.close();
process.exit();
