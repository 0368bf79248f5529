"""From figures to a table and to verdicts on the targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from benchmarks import backplane
from benchmarks.scenarios import SUBJECTS, Figures, Size

_SERVICE = ("service/socketio", "service/json")
_MANY = "service, 2 workers"

_ROWS = (
    ("fresh_mb", "memory of a fresh server, MB (PSS)", 1),
    ("memory_kb", "memory per connection, KB (PSS, no files)", 2),
    ("connect_ms", "CPU per connect, ms", 3),
    ("single_us", "CPU per delivery, one message at a time, us", 2),
    ("single_bytes", "  bytes on the wire", 0),
    ("single_p50_ms", "  latency p50, ms", 1),
    ("single_p95_ms", "  latency p95, ms", 1),
    ("single_p99_ms", "  latency p99, ms", 1),
    ("single_max_ms", "  latency max, ms", 1),
    ("batch_us", "CPU per delivery, 100 messages per flush, us", 3),
    ("batch_bytes", "  bytes on the wire", 0),
    ("batch_p50_ms", "  latency p50, ms", 1),
    ("batch_p95_ms", "  latency p95, ms", 1),
    ("batch_p99_ms", "  latency p99, ms", 1),
    ("batch_max_ms", "  latency max, ms", 1),
)
_EVENTS_ROWS = (
    ("events_memory_bytes", "memory per connection, bytes (PSS, no files)", 0),
    ("events_connect_us", "CPU per connect, us", 1),
    ("events_single_us", "CPU per delivery, one message at a time, us", 2),
    ("events_single_bytes", "  bytes on the wire", 0),
    ("events_batch_us", "CPU per delivery, 100 messages per flush, us", 3),
    ("events_batch_bytes", "  bytes on the wire", 0),
)
_MANY_ROWS = (
    ("many_fresh_mb", "memory before the connects, MB (PSS)", 1),
    ("many_connected_mb", "memory with all connections, MB (PSS)", 1),
    ("many_broadcast_mb", "memory after the broadcasts, MB (PSS)", 1),
    ("many_single_p50_ms", "one message to all, latency p50, ms", 1),
    ("many_single_max_ms", "one message to all, latency max, ms", 1),
    ("many_batch_max_ms", "100 messages to all, latency max, ms", 1),
)
_RELOAD_ROWS = (
    ("handoff_seconds", "HUP until the last old worker has gone, s", 1),
    ("handoff_moved_seconds", "HUP until the last connection has moved, s", 1),
    ("handoff_closed", "connections closed", 0),
    ("handoff_pause_p50_s", "longest pause of a client, p50, s", 2),
    ("handoff_pause_p99_s", "  p99, s", 2),
    ("handoff_pause_max_s", "  max, s", 2),
    ("handoff_round_s", "  of which the clients' own round took up to, s", 2),
    ("handoff_peak_mb", "peak memory of all processes, MB (PSS)", 1),
    ("handoff_calm_pause_p50_s", "without a reload: longest pause, p50, s", 2),
    ("handoff_calm_pause_p99_s", "  p99, s", 2),
    ("handoff_calm_pause_max_s", "  max, s", 2),
    ("handoff_calm_round_s", "  of which the clients' own round took up to, s", 2),
    ("handoff_before_mb", "memory of all processes before, MB (PSS)", 1),
    ("handoff_strangers", "processors busy with other work, percent", 0),
    ("handoff_rate", "messages published a second", 1),
    ("handoff_publish_max_ms", "slowest answer to the publisher, ms", 0),
    ("handoff_missing", "messages missed, of all clients", 0),
    ("handoff_repeated", "messages repeated, of all clients", 0),
    ("handoff_twice", "messages stored twice", 0),
    ("handoff_own_passed", "the service's own: handed over, passed", 0),
    ("handoff_own_taken", "  taken", 0),
    ("handoff_own_drained", "  drained", 0),
    ("handoff_own_lost", "  lost", 0),
    ("handoff_own_replayed", "  messages replayed", 0),
    ("handoff_own_pause_p50_s", "  no worker served a connection, p50, s (bucket)", 3),
    ("handoff_own_pause_p99_s", "  p99, s (bucket)", 3),
    ("handoff_own_pause_max_s", "  max, s (bucket)", 3),
    ("handoff_stock_clients", "stock, one worker: clients", 0),
    ("handoff_stock_closed", "  closed by one HUP", 0),
)
_KILLED_ROWS = (
    ("killed_clients", "connections of the killed worker", 0),
    ("killed_all_back_s", "first retry until all get messages again, s", 2),
    ("killed_back_p50_s", "  each client's own way back, p50, s", 2),
    ("killed_back_p99_s", "  p99, s", 2),
    ("killed_back_max_s", "  max, s", 2),
    ("killed_strangers", "processors busy with other work, percent", 0),
    ("killed_tries", "tries per client", 2),
    ("killed_away", "not back within a minute", 0),
    ("killed_not_recovered", "without `recovered: true`", 0),
    ("killed_missing", "messages missed, of all clients", 0),
    ("killed_repeated", "messages repeated, known by their seq", 0),
    ("killed_twice", "messages stored twice", 0),
)
_IDLE_ROWS = (
    ("idle_percent", "no clients: all processes, percent of a processor", 2),
    ("idle_valkey_percent", "  of which Valkey", 2),
    ("silent_percent", "silent clients: all processes", 2),
    ("silent_valkey_percent", "  of which Valkey", 2),
)
_STORM_ROWS = (
    ("storm_seconds", "all come at once: until all are subscribed, s", 2),
    ("storm_server_seconds", "  CPU of the service, s", 2),
    ("storm_client_seconds", "  CPU of the load client on the same processors, s", 2),
    ("storm_p99_ms", "p99 of deliveries to 1000 others: calm, beside, ms", 1),
    ("storm_p99_ratio", "  times calm", 2),
)
_REQUESTS_ROWS = (
    ("requests_calm_ms", "p99 of deliveries to 1000 others: calm, ms", 1),
    ("requests_p99_ms", "  beside the requests, ms", 1),
    ("requests_p99_ratio", "  times calm", 2),
    ("requests_seconds", "until all are answered, s", 2),
)
_TARGETS = (
    ("p99 of deliveries beside a wave of requests, times calm", ("requests_p99_ratio",), 1.5),
    ("no clients, two workers: percent of a processor", ("idle_percent",), 0.3),
    ("silent clients, two workers: percent of a processor", ("silent_percent",), 1.0),
    ("all come at once, two workers: until all are subscribed, s", ("storm_seconds",), 2.0),
    ("p99 of deliveries beside a wave of connects, times calm", ("storm_p99_ratio",), 1.5),
    ("HUP: connections closed", ("handoff_closed",), 0.0),
    ("HUP: messages missed", ("handoff_missing",), 0.0),
    ("HUP: messages repeated or stored twice", ("handoff_repeated", "handoff_twice"), 0.0),
    ("HUP: longest pause at any client, s", ("handoff_pause_max_s",), 1.0),
    ("HUP: the complete handoff, s", ("handoff_seconds",), 5.0),
    ("HUP: peak MB of all processes", ("handoff_peak_mb",), 300.0),
    ("kill -9: first retry until all are back, s", ("killed_all_back_s",), 5.0),
    ("kill -9: clients not recovered", ("killed_not_recovered",), 0.0),
    ("kill -9: messages missed or stored twice", ("killed_missing", "killed_twice"), 0.0),
)
"""The worst value counts: text, measures, limit."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One target and how far the service is from it."""

    target: str
    value: float
    limit: float

    @property
    def met(self) -> bool:
        """Whether the figure is within its limit."""
        return self.value <= self.limit


def _ratio(figures: Figures, measure: str, subject: str, base: str) -> float | None:
    """Median over the rounds of the ratio within a round."""
    ours, theirs = (figures.samples[measure][name] for name in (subject, base))
    ratios = [a / b for a, b in zip(ours, theirs, strict=True) if b]
    return median(ratios) if ratios else None


def verdicts(figures: Figures) -> list[Verdict]:
    """The targets for which there are figures."""
    found: list[tuple[str, float | None, float]] = []
    for name in _SERVICE:
        memory = figures.samples["memory_kb"][name]
        found.append((f"KB per connection, {name}", median(memory) if memory else None, 2.0))
    for measure, text, limit in (
        ("single_us", "CPU per delivery, one at a time, to the bare loop's", 1.1),
        ("batch_us", "CPU per delivery, 100 per flush, to the bare loop's", 1.5),
    ):
        found += [
            (f"{text}, {name}", _ratio(figures, measure, name, "bare"), limit) for name in _SERVICE
        ]
    found.append(
        (
            "CPU per connect to stock's, Socket.IO",
            _ratio(figures, "connect_ms", "service/socketio", "stock"),
            0.3,
        )
    )
    for measure, text in (
        ("events_memory_bytes", "memory"),
        ("events_single_us", "CPU per delivery"),
        ("events_batch_us", "CPU per delivery, 100 per flush"),
    ):
        ratio = _ratio(figures, measure, "sse", "json")
        found.append((f"server-sent events to plain JSON: {text}", ratio, 1.1))
    for measures, text, limit in (
        (("many_connected_mb", "many_broadcast_mb"), "MB of all processes, two workers", 150.0),
        (("many_single_unseen", "many_batch_unseen"), "deliveries missed, two workers", 0.0),
    ):
        values = [value for measure in measures for value in figures.samples[measure][_MANY]]
        found.append((text, max(values, default=None), limit))
    for text, worst_of, limit in _TARGETS:
        found.append((text, max(_values(figures, worst_of), default=None), limit))
    return [Verdict(text, value, limit) for text, value, limit in found if value is not None]


def _values(figures: Figures, measures: Sequence[str]) -> list[float]:
    """All values of measures, of every subject."""
    cells = (figures.samples.get(measure, {}).values() for measure in measures)
    return [value for subjects in cells for values in subjects for value in values]


def as_json(figures: Figures, size: Size) -> dict[str, Any]:
    """Everything that was measured, for programs."""
    return {
        "size": asdict(size),
        "samples": {name: dict(values) for name, values in figures.samples.items() if values},
        "targets": [asdict(v) | {"met": v.met} for v in verdicts(figures)],
        "notes": figures.notes,
        "problems": figures.problems,
    }


def as_text(figures: Figures, size: Size) -> str:
    """The tables that a user reads."""
    lines: list[str] = []
    names = [subject.name for subject in SUBJECTS]
    rows = [row for row in _ROWS if any(figures.samples[row[0]].values())]
    if rows:
        lines += [f"{size.clients} connections on one worker, medians over rounds", ""]
        lines.append(" " * 48 + "".join(f"{name:>18}" for name in names))
    for measure, text, digits in rows:
        cells = (figures.samples[measure][name] for name in names)
        shown = (f"{median(cell):.{digits}f}" if cell else "-" for cell in cells)
        lines.append(f"{text:48}" + "".join(f"{cell:>18}" for cell in shown))
    lines += _ratios(figures, names)
    if any(figures.samples[measure][_MANY] for measure, _, _ in _MANY_ROWS):
        lines += ["", f"{size.many} connections on two workers", ""]
        for measure, text, digits in _MANY_ROWS:
            values = figures.samples[measure][_MANY]
            if values:
                lines.append(f"{text:48}{median(values):>18.{digits}f}")
    lines += _events(figures, size)
    lines += backplane.as_lines(figures)
    lines += _listed(
        f"nothing happens, two workers: no clients, then {size.many} silent ones",
        _IDLE_ROWS,
        figures,
    )
    lines += _listed(
        f"{size.many} connections that come at once, two workers: plain JSON, then Socket.IO",
        _STORM_ROWS,
        figures,
    )
    lines += _listed(
        f"{size.many} connections that ask at once: presence, then subscribe, then get_history;"
        " then clients over HTTP: GET /status, GET /ws/stats, publishes",
        _REQUESTS_ROWS,
        figures,
    )
    lines += _listed(
        f"{size.many} connections on two workers, 20 messages a second, reloads one after the other",
        _RELOAD_ROWS,
        figures,
    )
    lines += _listed(
        f"{size.many} connections on two workers, 20 messages a second, kill -9 of one of them",
        _KILLED_ROWS,
        figures,
    )
    lines += _fairness(figures)
    judged = verdicts(figures)
    if judged:
        lines += ["", f"{'target':68}{'figure':>10}{'limit':>8}"]
    for verdict in judged:
        met = "met" if verdict.met else "MISSED"
        figure = f"{verdict.value:10.2f}{verdict.limit:8.1f}"
        lines.append(f"{verdict.target:68}{figure}  {met}")
    lines += ["", *figures.notes, *(f"PROBLEM {problem}" for problem in figures.problems)]
    return "\n".join(lines).rstrip()


def _events(figures: Figures, size: Size) -> list[str]:
    """Server-sent events beside plain JSON."""
    wires = ("json", "sse")
    if not figures.samples["events_memory_bytes"]["sse"]:
        return []
    lines = ["", f"{size.many} connections on one worker, medians over rounds", ""]
    lines.append(" " * 48 + "".join(f"{wire:>18}" for wire in (*wires, "ratio")))
    for measure, text, digits in _EVENTS_ROWS:
        shown = [f"{median(figures.samples[measure][wire]):.{digits}f}" for wire in wires]
        ratio = _ratio(figures, measure, "sse", "json")
        shown.append("-" if ratio is None else f"{ratio:.2f}")
        lines.append(f"{text:48}" + "".join(f"{cell:>18}" for cell in shown))
    return lines


def _fairness(figures: Figures) -> list[str]:
    """Each attack with the p99 beside it and how many times that of calm it is."""
    latencies, ratios = figures.samples["fairness_p99_ms"], figures.samples["fairness_ratio"]
    if not latencies:
        return []
    title = "1000 honest clients on two workers, 20 messages a second, beside hostile ones"
    lines = ["", title, "", f"{'p99 of deliveries':48}{'ms':>10}{'times calm':>12}"]
    lines += [
        f"{attack:48}{median(values):>10.1f}{median(ratios[attack]):>12.2f}"
        for attack, values in latencies.items()
    ]
    return lines


def _listed(title: str, rows: Sequence[tuple[str, str, int]], figures: Figures) -> list[str]:
    """Each row with all its values, if there are any."""
    lines = []
    for measure, text, digits in rows:
        values = _values(figures, [measure])
        if values:
            lines.append(f"{text:48}" + "".join(f"{value:>10.{digits}f}" for value in values))
    return ["", title, "", *lines] if lines else []


def _ratios(figures: Figures, names: list[str]) -> list[str]:
    lines = []
    for measure, text, base in (
        ("memory_kb", "memory per connection", "stock"),
        ("connect_ms", "CPU per connect", "stock"),
        ("single_us", "CPU per delivery, one at a time", "stock"),
        ("single_us", "CPU per delivery, one at a time", "bare"),
        ("batch_us", "CPU per delivery, 100 per flush", "bare"),
    ):
        if not figures.samples[measure][base]:
            continue
        cells = []
        for name in names:
            known = figures.samples[measure][name]
            ratio = _ratio(figures, measure, name, base) if known else None
            cells.append("-" if ratio is None else f"{ratio:.2f}")
        title = f"{text}, times {base}"
        lines.append(f"{title:48}" + "".join(f"{cell:>18}" for cell in cells))
    return ["", *lines] if lines else []
