import { expect, it } from 'vitest';
import { ceiling, timeTicks } from '../src/axis';

const at = (text: string) => new Date(text).getTime();
const clock = (time: number) => new Date(time).toTimeString().slice(0, 5);

it.each([
  ['2026-03-02T10:07:00', '2026-03-02T10:22:00', 4, ['10:10', '10:15', '10:20']],
  ['2026-03-02T10:07:00', '2026-03-02T10:22:00', 2, ['10:10', '10:20']],
  ['2026-03-02T10:07:00', '2026-03-02T11:07:00', 4, ['10:15', '10:30', '10:45', '11:00']],
  ['2026-03-02T10:07:00', '2026-03-02T16:07:00', 4, ['12:00', '14:00', '16:00']],
  ['2026-03-02T10:07:00', '2026-03-03T10:07:00', 4, ['12:00', '18:00', '00:00', '06:00']],
  ['2026-03-02T12:00:00', '2026-03-03T12:00:00', 2, ['00:00', '12:00']],
])('from %s to %s there are at most %i round ticks', (from, to, most, ticks) => {
  expect(timeTicks(at(from), at(to), most).map(clock)).toEqual(ticks);
});

it('ticks are round in every zone, also where the clocks change', () => {
  const zone = process.env.TZ;
  try {
    for (process.env.TZ of ['Asia/Kolkata', 'Europe/Berlin', 'America/St_Johns', 'Asia/Shanghai']) {
      for (const day of ['2026-03-29T00:30:00', '2026-10-25T00:30:00', '2026-07-01T07:31:00']) {
        const ticks = timeTicks(at(day), at(day) + 86_400_000, 6);
        expect(ticks.length).toBeGreaterThan(3);
        expect(ticks).toEqual([...ticks].sort((a, b) => a - b));
        for (const tick of ticks) expect(clock(tick)).toMatch(/^(00|04|06|08|12|16|18|20):00$/);
      }
    }
  } finally {
    process.env.TZ = zone;
  }
});

it.each([
  [0, 5],
  [4.9, 10],
  [8, 10],
  [18, 20],
  [27, 50],
  [48, 100],
  [100, 100],
  [140, 100],
])('the scale for %f ends at %i', (highest, top) => {
  expect(ceiling(highest)).toBe(top);
});
