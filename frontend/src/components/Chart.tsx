import { type KeyboardEvent, type PointerEvent, useEffect, useMemo, useRef, useState } from 'react';
import { formatPercent, formatTime } from '../format';
import { useWords } from '../i18n';
import { type Metric, type Point, stretches, thin } from '../series';

const HEIGHT = 96;
const TOP = 6;
const FLOOR = HEIGHT - 1;

interface Props {
  name: string;
  metric: Metric;
  points: Point[];
  /** Unix times in milliseconds. */
  from: number;
  to: number;
  /** A longer pause between two points is a hole. */
  hole: number;
}

const y = (value: number) => TOP + (1 - Math.min(Math.max(value, 0), 100) / 100) * (FLOOR - TOP);

/** A percentage over time. Pointer and arrow keys read single points. */
export function Chart({ name, metric, points, from, to, hole }: Props) {
  const { lang, t } = useWords();
  const box = useRef<HTMLDivElement>(null);
  const [width, setWidth] = useState(320);
  const [at, setAt] = useState<number | undefined>();

  useEffect(() => {
    const element = box.current;
    if (!element) return;
    const observer = new ResizeObserver(() => setWidth(element.clientWidth || 320));
    observer.observe(element);
    return () => observer.disconnect();
  }, []);

  const shown = useMemo(
    () => thin(points, metric, from, to, Math.floor(width / 2)),
    [points, metric, from, to, width],
  );
  const x = (time: number) => ((time - from) / (to - from)) * width;
  const lines = stretches(shown, Math.max(hole, ((to - from) / width) * 4)).map((stretch) =>
    stretch.map((point) => `${x(point.t).toFixed(1)} ${y(point.v).toFixed(1)}`),
  );
  const index = at === undefined ? undefined : nearest(shown, at);
  const chosen = index === undefined ? undefined : shown[index];
  const last = shown[shown.length - 1];
  const read = chosen ?? last;

  function point(event: PointerEvent<HTMLDivElement>) {
    const left = event.currentTarget.getBoundingClientRect().left;
    setAt(from + ((event.clientX - left) / width) * (to - from));
  }

  function press(event: KeyboardEvent) {
    const current = index ?? shown.length - 1;
    const jump = Math.max(1, Math.round(shown.length / 10));
    const moves: Record<string, number> = {
      ArrowLeft: current - 1,
      ArrowRight: current + 1,
      PageDown: current - jump,
      PageUp: current + jump,
      Home: 0,
      End: shown.length - 1,
    };
    const next = moves[event.key];
    if (event.key === 'Escape') setAt(undefined);
    if (next === undefined || shown.length === 0) return;
    event.preventDefault();
    setAt(shown[Math.min(Math.max(next, 0), shown.length - 1)]?.t);
  }

  const shownValue = read ? t.pointText(formatTime(read.t, to, lang), formatPercent(read.v)) : t.noPoints;
  return (
    <div className="chart" data-metric={metric}>
      <div
        ref={box}
        className="plot"
        role="slider"
        tabIndex={0}
        aria-label={t.chartLabel(name)}
        aria-valuemin={0}
        aria-valuemax={100}
        aria-valuenow={read ? Math.round(read.v) : 0}
        aria-valuetext={shownValue}
        onPointerMove={point}
        onPointerDown={point}
        onPointerLeave={() => setAt(undefined)}
        onKeyDown={press}
        onBlur={() => setAt(undefined)}
        data-points={shown.length}
      >
        <svg width={width} height={HEIGHT} viewBox={`0 0 ${width} ${HEIGHT}`} aria-hidden="true">
          {[0, 50, 100].map((value) => (
            <line key={value} className="grid" x1="0" x2={width} y1={y(value)} y2={y(value)} />
          ))}
          {lines.map((line) => {
            const [first, final] = [line[0]?.split(' ')[0], line[line.length - 1]?.split(' ')[0]];
            return (
              <g key={first}>
                <path className="area" d={`M${line.join('L')}L${final} ${FLOOR}L${first} ${FLOOR}Z`} />
                <path className="line" d={line.length > 1 ? `M${line.join('L')}` : `M${line[0]}h.01`} />
              </g>
            );
          })}
          {chosen && (
            <g className="cross">
              <line x1={x(chosen.t)} x2={x(chosen.t)} y1="0" y2={FLOOR} />
              <circle cx={x(chosen.t)} cy={y(chosen.v)} r="4" />
            </g>
          )}
          {!chosen && last && <circle className="now" cx={Math.min(x(last.t), width - 3)} cy={y(last.v)} r="3" />}
        </svg>
        {chosen && (
          <output className="tip" data-side={x(chosen.t) > width / 2 ? 'left' : 'right'} style={{ left: x(chosen.t) }} aria-hidden="true">
            <b>{formatPercent(chosen.v)} %</b> {formatTime(chosen.t, to, lang, to - from < 3_600_000)}
          </output>
        )}
        {shown.length === 0 && <p className="empty">{t.noPoints}</p>}
      </div>
      <div className="axis" aria-hidden="true">
        <span>{formatTime(from, to, lang)}</span>
        <span>{formatTime((from + to) / 2, to, lang)}</span>
        <span>{formatTime(to, to, lang)}</span>
      </div>
    </div>
  );
}

export function nearest(points: { t: number }[], at: number): number | undefined {
  let best: number | undefined;
  points.forEach((point, index) => {
    const other = best === undefined ? undefined : points[best];
    if (!other || Math.abs(point.t - at) < Math.abs(other.t - at)) best = index;
  });
  return best;
}
