import type { Message } from '@yujian/realtime';
import { expect, it } from 'vitest';
import { type Alert, applyHealth } from '../src/alerts';

const health = (event: string, data: object, timestamp = 1000): Message => ({ id: '', type: 'health', event, timestamp, data });
const run = (...messages: Message[]): Alert[] => messages.reduce(applyHealth, [] as Alert[]);

it('an alert is open until its recovery, and then has a length', () => {
  const raised = health('health_alert', { metric: 'cpu', level: 'critical', value: 97, threshold: 80, message: 'hot', since: 400 });
  expect(run(raised)).toMatchObject([{ metric: 'cpu', level: 'critical', value: 97, since: 400, text: 'hot' }]);
  const [over] = run(raised, health('health_recovery', { metric: 'cpu', level: 'info' }, 9000));
  expect(over).toMatchObject({ level: 'critical', since: 400, until: 9000, text: 'hot' });
});

it('an alert that is repeated stays one', () => {
  const alerts = run(health('health_alert', { metric: 'cpu', value: 1 }), health('health_alert', { metric: 'cpu', value: 2 }));
  expect(alerts).toHaveLength(1);
});

it('the worst is first, then the newest, and one that is said again keeps its place and its beginning', () => {
  const alerts = run(
    health('health_alert', { metric: 'a', level: 'info' }, 9),
    health('health_alert', { metric: 'b', level: 'critical' }, 1),
    health('health_alert', { metric: 'c', level: 'warning' }, 3),
    health('health_alert', { metric: 'd', level: 'critical' }, 2),
    health('health_alert', { metric: 'b', level: 'critical' }, 50),
  );
  expect(alerts.map(({ metric, since }) => [metric, since])).toEqual([['d', 2], ['b', 1], ['c', 3], ['a', 9]]);
});

it('alerts of several machines and labels are apart', () => {
  const alerts = run(
    health('health_alert', { metric: 'cpu', host: 'a' }),
    health('health_alert', { metric: 'cpu', host: 'b' }),
    health('health_alert', { metric: 'cpu', source: 'alertmanager', labels: { instance: 'x' } }),
    health('health_recovery', { metric: 'cpu', host: 'a' }),
  );
  expect(alerts.filter(({ until }) => until === undefined).map(({ source }) => source)).toEqual(['alertmanager', 'b']);
});

it('a recovery whose alert is no longer kept is shown all the same', () => {
  expect(run(health('health_recovery', { metric: 'disk', since: 100, message: 'ok' }))).toMatchObject([
    { metric: 'disk', since: 100, until: 1000, text: 'ok' },
  ]);
});

it.each([null, 'text', [], { metric: 5, level: 'odd', since: 'x' }])('odd data does no harm: %j', (data) => {
  expect(run(health('health_alert', data as object))).toMatchObject([{ level: 'warning', since: 1000 }]);
});

it('other events of the type are no alerts, and what is over is limited', () => {
  expect(run(health('note', {}))).toEqual([]);
  const many = Array.from({ length: 200 }, (_, n) => [
    health('health_alert', { metric: `m${n}` }, n),
    health('health_recovery', { metric: `m${n}` }, n),
  ]).flat();
  expect(run(...many)).toHaveLength(50);
});
