import { type KeyboardEvent, type PointerEvent, useEffect, useMemo, useRef, useState } from 'react';
import { ceiling, timeTicks } from '../axis';
import { formatPercent, formatTime } from '../format';
import { useWords } from '../i18n';
import { type Metric, type Point, stretches, thin } from '../series';

const HEIGHT = 96;
const TOP = 14;
/** Pixels that a label of the time axis needs. */
const LABEL = 72;
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
  /** What to say where there is no point. */
  empty?: string;
  /** Time that is read, on all charts together. */
  at: number | undefined;
  onAt: (at: number | undefined) => void;
}

/** A percentage over time. Pointer and arrow keys read single points. */
export function Chart({ name, metric, points, from, to, hole, empty, at, onAt: setAt }: Props) {
  const { lang, t } = useWords();
  const nothing = empty ?? t.noPoints;
  const box = useRef<HTMLDivElement>(null);
  const [width, setWidth] = useState(320);

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
  const ticks = timeTicks(from, to, Math.max(2, Math.floor(width / LABEL)));
  const last = shown[shown.length - 1];
  const top = last ? ceiling(Math.max(...shown.map(({ v }) => v))) : 100;
  const y = (value: number) => TOP + (1 - Math.min(Math.max(value, 0), top) / top) * (FLOOR - TOP);
  const widest = Math.max(hole, ((to - from) / width) * 4);
  const lines = stretches(shown, widest).map((stretch) =>
    stretch.map((point) => `${x(point.t).toFixed(1)} ${y(point.v).toFixed(1)}`),
  );
  const index = at === undefined ? undefined : nearest(shown, at, widest / 2);
  const chosen = index === undefined ? undefined : shown[index];
  const read = chosen ?? last;

  function point(event: PointerEvent<HTMLDivElement>) {
    const left = event.currentTarget.getBoundingClientRect().left;
    setAt(from + ((event.clientX - left) / width) * (to - from));
  }

  function press(event: KeyboardEvent) {
    const end = shown.length - 1;
    // The first key reads the newest point.
    const current = index ?? (event.key.endsWith('Left') || event.key === 'PageDown' ? end + 1 : end);
    const jump = Math.max(1, Math.round(shown.length / 10));
    const moves: Record<string, number> = {
      ArrowLeft: current - 1,
      ArrowRight: current + 1,
      PageDown: current - jump,
      PageUp: current + jump,
      Home: 0,
      End: end,
    };
    const next = moves[event.key];
    if (event.key === 'Escape') setAt(undefined);
    if (next === undefined || shown.length === 0) return;
    event.preventDefault();
    setAt(shown[Math.min(Math.max(next, 0), end)]?.t);
  }

  const clock = (time: number) => formatTime(time, to, lang, to - from < 3_600_000);
  const shownValue = read ? t.pointText(clock(read.t), formatPercent(read.v)) : nothing;
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
          {[0, top / 2, top].map((value) => (
            <line key={value} className="grid" data-floor={value === 0 || undefined} x1="0" x2={width} y1={y(value)} y2={y(value)} />
          ))}
          {ticks.map((time) => (
            <line key={time} className="grid" x1={x(time)} x2={x(time)} y1={TOP} y2={FLOOR} />
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
          {[top / 2, top].map((value) => (
            <text key={value} y={y(value) - 3}>{`${value} %`}</text>
          ))}
          {chosen && (
            <g className="cross">
              <line x1={x(chosen.t)} x2={x(chosen.t)} y1={TOP} y2={FLOOR} />
              <circle cx={x(chosen.t)} cy={y(chosen.v)} r="4" />
            </g>
          )}
          {!chosen && last && <circle className="now" cx={Math.min(x(last.t), width - 3)} cy={y(last.v)} r="3" />}
        </svg>
        {at !== undefined && shown.length > 0 && (
          <output
            className="tip"
            data-side={x(chosen?.t ?? at) > width / 2 ? 'left' : 'right'}
            style={{ left: x(chosen?.t ?? at) }}
            aria-hidden="true"
          >
            <b>{chosen ? `${formatPercent(chosen.v)} %` : t.noPoint}</b> {clock(chosen?.t ?? at)}
          </output>
        )}
        {shown.length === 0 && <p className="empty">{nothing}</p>}
      </div>
      <div className="axis" aria-hidden="true">
        {ticks.map((time) => (
          <span key={time} style={{ left: Math.min(Math.max(x(time), LABEL / 4), width - LABEL / 4) }}>
            {formatTime(time, time, lang)}
          </span>
        ))}
      </div>
    </div>
  );
}

/** Index of the point nearest to a time, if it is within `reach` of it. */
export function nearest(points: { t: number }[], at: number, reach = Infinity): number | undefined {
  let best: number | undefined;
  let least = reach;
  points.forEach((point, index) => {
    const away = Math.abs(point.t - at);
    if (away > least || (away === least && best !== undefined)) return;
    least = away;
    best = index;
  });
  return best;
}
