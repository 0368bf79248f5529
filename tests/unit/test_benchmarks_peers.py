"""`make bench-peers`: rows that end early, runs put together, and what the page says of both."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest

from benchmarks.peers import __main__ as command
from benchmarks.peers import measure as measuring
from benchmarks.peers import results
from benchmarks.peers.field import FIELD, Contender
from benchmarks.peers.measure import measure
from benchmarks.peers.pages import write_page
from benchmarks.procs import BenchmarkError

RUN = {"date": "2026-11-27", "command": "python -m benchmarks.peers", "machine": "A", "rounds": 1}


def row(name: str = "NATS", clients: int = 1000, **figures: Any) -> dict[str, Any]:
    head = {"name": name, "clients": clients, "workers": 1, "version": "v1"}
    return head | {"problems": [], "took_s": {}} | figures


def test_medians_are_of_the_rounds_that_have_the_figure() -> None:
    rounds = [
        row(capacity=1.0, problems=["a"], took_s={"start": 1.0}),
        row(capacity=4.0, connect_us=7.0, failed="late", problems=["b"]),
        row(capacity=2.0, problems=[]),
    ]
    assert results.medians(rounds) == row(
        capacity=2.0, connect_us=7.0, failed="late", problems=["a", "b"], took_s={"start": 1.0}
    )


def test_a_later_run_replaces_its_rows_and_keeps_the_others(tmp_path: Path) -> None:
    result = results.begin(RUN, {"NATS": "apt-get", "Nchan": "apt-get"}, None)
    for clients in (1000, 5000):
        results.put(result, row("bare loop", clients, capacity=1.0))
    results.save(result, tmp_path)
    later = results.begin(RUN | {"machine": "B"}, {}, results.load(tmp_path))
    results.put(later, row("bare loop", 5000, capacity=2.0))
    results.put(later, row("NATS", capacity=3.0))
    assert [(one["name"], one["clients"], one["run"]) for one in later["rows"]] == [
        ("bare loop", 1000, 1),
        ("bare loop", 5000, 2),
        ("NATS", 1000, 2),
    ]
    assert later["missing"] == {"Nchan": "apt-get"}
    assert [one["number"] for one in later["runs"]] == [1, 2]
    results.put(later, row("bare loop", 1000, capacity=2.0))
    assert [one["machine"] for one in later["runs"]] == ["B"]  # no row is of the first any more


@pytest.mark.parametrize("text", [None, "{", '{"rows": []}'])
def test_results_that_cannot_be_added_to(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "peers.json").write_text(text)
    with pytest.raises(BenchmarkError, match=r"peers\.json"):
        results.load(tmp_path)
    assert command.main(["--page", "--out", str(tmp_path)]) == 1


def test_the_page_names_what_failed_and_leaves_its_figures_out(tmp_path: Path) -> None:
    result = results.begin(RUN, {}, None)
    results.put(result, row("NATS", connect_us=12.3, failed="at capacity: 1 of 5\nlog"))
    results.put(result, row("bare loop", capacity=5.0, problems=["10 a flush: missing 2"]))
    page = write_page(result, tmp_path)
    assert "| NATS | 12 | – | – | – | – | – |" in page
    assert "**NATS failed: at capacity: 1 of 5**" in page
    assert "bare loop: 10 a flush: missing 2." in page
    assert "- NATS: v1" in page
    assert page.index("| bare loop |") < page.index("| NATS |"), "the order of the field"


def test_the_page_marks_rows_of_different_runs(tmp_path: Path) -> None:
    result = results.begin(RUN, {}, None)
    results.put(result, row("bare loop"))
    assert "[1]" not in write_page(result, tmp_path)
    for machine, warned in (("A", False), ("B", True)):
        later = results.begin(RUN | {"machine": machine}, {}, result)
        results.put(later, row("NATS"))
        page = write_page(later, tmp_path)
        assert "| bare loop [1] |" in page
        assert "| NATS [2] |" in page
        assert ("different machines" in page) == warned


class Fake:
    """A server and its load: answers as `answer` says, or fails as it does."""

    port = 1

    def __init__(self, answer: Callable[[int, float], dict[str, Any]]) -> None:
        self._answer = answer
        self._cpu = 0.0

    def __call__(self, *_: Any) -> Self:
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def cpu(self) -> float:
        self._cpu += 1.0
        return self._cpu

    def pss(self) -> int:
        return 1_000_000

    own_pss = pss

    def connect(self, clients: int) -> None:
        self._answer(-clients, 0)

    def publish(
        self, count: int, size: int = 1, rate: float = 0, limit: float = 60
    ) -> dict[str, Any]:
        everything: dict[str, Any] = {
            "received": 10 * count * size,
            "expected": 10 * count * size,
            "cut": False,
        }
        everything |= {"missing": 0, "repeated": 0, "failed": 0, "lost": 0, "seconds": 1.0}
        everything["latency_ms"] = {"p50": 1.0, "p99": 2.0, "max": 3.0}
        return everything | self._answer(size, rate)


def measured(
    monkeypatch: pytest.MonkeyPatch, answer: Callable[[int, float], dict[str, Any]]
) -> dict[str, Any]:
    fake = Fake(answer)
    monkeypatch.setattr(measuring, "Load", fake)
    monkeypatch.setattr(measuring, "settle", lambda _: None)
    return measure(Contender("fake", fake, str), 1000, 1, 1.0)  # type: ignore[arg-type]


def test_a_row_has_what_was_measured_before_it_was_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    late = {"cut": True, "received": 4, "seconds": 60.0}
    got = measured(monkeypatch, lambda size, _: late if size == 10 else {})
    assert got["failed"] == "10 a flush: 4 of 100 deliveries within 60 s"
    assert got["delivery_10_us"] == 1e6 / 4
    assert {"delivery_1_us", "capacity", "at_75_p99_ms"} < got.keys()
    assert "delivery_100_us" not in got
    assert got["problems"] == []


def test_the_last_figure_of_a_row_may_be_of_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    late = {"cut": True, "received": 4, "seconds": 60.0}
    got = measured(monkeypatch, lambda size, _: late if size == 100 else {})
    assert "failed" not in got
    assert got["delivery_100_us"] == 1e6 / 4
    assert got["problems"] == [
        "100 a flush: 4 of 1,000 deliveries within 60 s; the figure is of these"
    ]


def test_losses_are_summed_for_each_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    got = measured(monkeypatch, lambda size, _: {"missing": 2} if size == 100 else {})
    assert "failed" not in got
    assert got["problems"] == ["100 a flush: missing 8"]  # the first call and three samples


def test_connects_that_fail_name_their_wave(monkeypatch: pytest.MonkeyPatch) -> None:
    waves = iter(range(9))

    def answer(size: int, _: float) -> dict[str, Any]:
        if size == -1000 and next(waves) == 2:
            raise BenchmarkError("lost")
        return {}

    assert measured(monkeypatch, answer)["failed"] == "connects, wave 3 of 5: lost"


def test_rows_are_kept_when_the_run_is_interrupted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = iter([{"capacity": 1.0, "problems": [], "took_s": {}}])

    def once(*_: Any) -> dict[str, Any]:
        try:
            return next(rows)
        except StopIteration:
            raise KeyboardInterrupt from None

    bare = next(one for one in FIELD if one.name == "bare loop")
    monkeypatch.setattr(command, "measure", once)
    monkeypatch.setattr(command, "FIELD", [bare])
    monkeypatch.setattr(command, "_machine", lambda: "A")
    assert command.main(["--clients", "10", "20", "--workers", "1", "--out", str(tmp_path)]) == 1
    result = json.loads((tmp_path / "peers.json").read_text())
    assert [(one["clients"], one["run"]) for one in result["rows"]] == [(10, 1)]
    assert "## 10 connections" in (tmp_path / "README.md").read_text()
    monkeypatch.setattr(command, "measure", lambda *_: {"problems": [], "took_s": {}})
    again = ["--clients", "20", "--workers", "1", "--rounds", "1", "--merge"]
    assert command.main([*again, "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "peers.json").read_text())
    assert [(one["clients"], one["run"]) for one in result["rows"]] == [(10, 1), (20, 2)]
    assert result["runs"][1]["command"].startswith("python -m benchmarks.peers --clients 20")


def test_the_page_in_the_repository_is_of_the_figures_in_it(tmp_path: Path) -> None:
    page = write_page(results.load(command.DOCS), tmp_path)
    assert (command.DOCS / "README.md").read_text() == page
