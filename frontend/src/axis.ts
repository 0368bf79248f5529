/** Where the lines and labels of a chart stand. */

const MINUTE = 60_000;
const STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 180, 240, 360, 720, 1440];
const CEILINGS = [5, 10, 20, 50, 100];

/** At most `most` round times of the day from `from` to `to`, both Unix times in milliseconds. */
export function timeTicks(from: number, to: number, most: number): number[] {
  const step = STEPS.find((minutes) => (to - from) / (minutes * MINUTE) <= most) ?? 1440;
  const at = new Date(from);
  at.setHours(0, 0, 0, 0);
  const ticks: number[] = [];
  // On the clock of this place: a day with a change of the clocks has round ticks as well.
  for (; at.getTime() <= to; at.setMinutes(at.getMinutes() + step)) {
    if (at.getTime() >= from) ticks.push(at.getTime());
  }
  return ticks.slice(-most);
}

/** Top of the scale for percentages up to `highest`: what is small can be read too. */
export function ceiling(highest: number): number {
  return CEILINGS.find((top) => highest <= top * 0.95) ?? 100;
}
