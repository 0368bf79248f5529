import { act, useState } from 'react';
import { createRoot, type Root } from 'react-dom/client';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { Chart } from '../src/components/Chart';
import { LangContext } from '../src/i18n';
import type { Point } from '../src/series';

const MINUTE = 60_000;
const TO = new Date('2026-03-02T10:20:00').getTime();
const FROM = TO - 15 * MINUTE;
const point = (minutes: number, cpu: number): Point => ({ t: FROM + minutes * MINUTE, cpu, memory: 0, disk: 0 });
let root: Root;
let box: HTMLElement;

function Fixture({ points }: { points: Point[] }) {
  const [at, setAt] = useState<number | undefined>();
  return (
    <LangContext value="en">
      <Chart name="CPU" metric="cpu" points={points} from={FROM} to={TO} hole={MINUTE} at={at} onAt={setAt} />
    </LangContext>
  );
}

beforeEach(() => {
  (globalThis as { IS_REACT_ACT_ENVIRONMENT?: boolean }).IS_REACT_ACT_ENVIRONMENT = true;
  box = document.body.appendChild(document.createElement('div'));
  root = createRoot(box);
});
afterEach(() => {
  act(() => root.unmount());
  box.remove();
});

const show = (points: Point[]) => act(() => root.render(<Fixture points={points} />));
const plot = () => box.querySelector('.plot') as HTMLElement;
const said = () => plot().getAttribute('aria-valuetext')?.replace('\u202f', ' ');
const tip = () => box.querySelector('.tip')?.textContent;
const press = (key: string) => act(() => plot().dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true })));
const pointAt = (x: number) =>
  act(() => plot().dispatchEvent(new PointerEvent('pointermove', { clientX: x, bubbles: true })));

const POINTS = [point(1, 10), point(2, 20), point(10, 30), point(11, 40)];

it('a gap breaks the line', () => {
  show(POINTS);
  const lines = [...box.querySelectorAll('path.line')].map((path) => path.getAttribute('d') ?? '');
  expect(lines).toHaveLength(2);
  for (const line of lines) expect(line.split('L')).toHaveLength(2);
  show([point(3, 10)]);
  expect(box.querySelectorAll('path.line')).toHaveLength(1);
});

it('both axes have round labels', () => {
  show(POINTS);
  expect([...box.querySelectorAll('.axis span')].map(({ textContent }) => textContent)).toEqual(['10:05', '10:10', '10:15', '10:20']);
  expect([...box.querySelectorAll('text')].map(({ textContent }) => textContent)).toEqual(['25 %', '50 %']);
  show([point(1, 3)]);
  expect([...box.querySelectorAll('text')].map(({ textContent }) => textContent)).toEqual(['2.5 %', '5 %']);
});

it('arrow keys, Home and End read every point', () => {
  show(POINTS);
  expect(said()).toBe('10:16:00: 40 %');
  expect(tip()).toBeUndefined();
  press('ArrowLeft');
  expect(tip()).toBe('40 % 10:16:00');
  press('ArrowLeft');
  expect(said()).toBe('10:15:00: 30 %');
  press('ArrowLeft');
  expect(said()).toBe('10:07:00: 20 %');
  press('Home');
  press('ArrowLeft');
  expect(said()).toBe('10:06:00: 10 %');
  press('ArrowRight');
  expect(said()).toBe('10:07:00: 20 %');
  press('End');
  expect(said()).toBe('10:16:00: 40 %');
  press('Escape');
  expect(tip()).toBeUndefined();
});

it('the pointer reads the nearest point, and none in a gap', () => {
  show(POINTS);
  pointAt((320 * 2.2) / 15);
  expect(tip()).toBe('20 % 10:07:00');
  expect(box.querySelectorAll('.cross')).toHaveLength(1);
  pointAt((320 * 6) / 15);
  expect(tip()).toBe('No sample 10:11:00');
  expect(box.querySelectorAll('.cross')).toHaveLength(0);
});

it('says so where there is nothing in the range', () => {
  show([point(-5, 10)]);
  expect(said()).toBe('No samples in this range');
  press('ArrowLeft');
  expect(box.querySelector('.empty')?.textContent).toBe('No samples in this range');
  expect(tip()).toBeUndefined();
  expect([...box.querySelectorAll('text')].map(({ textContent }) => textContent)).toEqual(['50 %', '100 %']);
});
