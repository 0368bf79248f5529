import { expect, it } from 'vitest';
import { join, type Point, pointsOf, stretches, thin } from '../src/series';

const point = (t: number, cpu = t): Point => ({ t, cpu, memory: 0, disk: 0 });

it('an answer becomes points of one machine', () => {
  const columns = { t: [0, 5], cpu: [1, 2], memory: [3, 4], disk: [5, 6] };
  const answer = { range: '15m' as const, step: 5, start: 1000, end: 9000, hosts: { a: columns } };
  expect(pointsOf(answer, 'a')).toEqual([
    { t: 1000, cpu: 1, memory: 3, disk: 5 },
    { t: 6000, cpu: 2, memory: 4, disk: 6 },
  ]);
  expect(pointsOf(answer, 'b')).toEqual([]);
});

it('history ends where live messages begin', () => {
  expect(join([point(1), point(2), point(3)], [point(2), point(4)]).map(({ t }) => t)).toEqual([1, 2, 4]);
  expect(join([point(1)], [])).toEqual([point(1)]);
});

it('many points become means of equal stretches', () => {
  const points = Array.from({ length: 1000 }, (_, t) => point(t));
  const thinned = thin(points, 'cpu', 0, 1000, 10);
  expect(thinned).toHaveLength(10);
  expect(thinned[0]).toEqual({ t: 49.5, v: 49.5 });
  expect(thin(points, 'cpu', 100, 110, 100).map(({ t }) => t)).toEqual([100, 101, 102, 103, 104, 105, 106, 107, 108, 109, 110]);
  expect(thin([], 'cpu', 0, 1, 10)).toEqual([]);
});

it('a hole breaks a line', () => {
  const points = [1, 2, 3, 10, 11].map((t) => ({ t }));
  expect(stretches(points, 3).map((one) => one.length)).toEqual([3, 2]);
  expect(stretches([], 3)).toEqual([]);
});
