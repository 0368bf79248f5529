"""`make bench-peers`: its load client counts what arrives, and the page says what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import growth
from benchmarks.peers.__main__ import main
from benchmarks.peers.field import FIELD, Contender
from benchmarks.peers.load import Load
from benchmarks.procs import BenchmarkError

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.needs("cc"),
    pytest.mark.long,
]


def contender(name: str) -> Contender:
    return next(one for one in FIELD if one.name == name)


@pytest.mark.parametrize("name", ["service, JSON", "service, Socket.IO"])
def test_the_load_client_counts_each_message(name: str) -> None:
    one = contender(name)
    with one.make(1) as server:
        with Load(server, one.wire, one.path, server.port, one.publish_path) as load:
            assert load.connect(20) | {"seconds": 0} == {
                "ready": 20,
                "new": 20,
                "lost": 0,
                "seconds": 0,
            }
            load.publish(1)  # subscriptions that begin after the connect flow now
            alone = load.publish(5)
            assert (alone["received"], alone["expected"]) == (100, 100)
            batch = load.publish(3, size=10, filling=500, rate=-1)
            assert (batch["received"], batch["expected"]) == (600, 600)
            assert batch["bytes"] > 600 * 500
            for answer in (alone, batch):
                assert {answer[key] for key in ("missing", "repeated", "failed", "lost")} == {0}
            with pytest.raises(BenchmarkError, match="not a command"):
                load("nonsense")
        refused = Load(server, "raw", "/nowhere", server.port, one.publish_path)
        with refused, pytest.raises(BenchmarkError, match="'lost': 3"):
            refused.connect(3)


def test_the_page_and_its_plots(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = Contender("Gone", contender("bare loop").make, needs="no-such-program", install="fetch")
    monkeypatch.setattr("benchmarks.peers.__main__.FIELD", [*FIELD, gone])
    monkeypatch.setattr("benchmarks.peers.measure.CONNECTS", 30)  # in two waves
    arguments = ["--clients", "20", "--workers", "1", "--rounds", "1", "--seconds", "0.05"]
    arguments += ["--only", "service, JSON", "--only", "bare loop", "--only", "Gone"]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "peers.json").read_text())
    assert [row["name"] for row in result["rows"]] == ["service, JSON", "bare loop"]
    assert all(row["capacity"] > 0 and row["problems"] == [] for row in result["rows"])
    assert result["missing"] == {"Gone": "fetch"}
    page = (tmp_path / "README.md").read_text()
    assert page in capsys.readouterr().out
    assert "Missing on this machine: Gone" in page
    for plot in tmp_path.glob("*.svg"):
        assert f"({plot.name})" in page
    assert len(list(tmp_path.glob("*.svg"))) == 5


def test_growth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    title, _, run = growth.AXES["sets"]
    monkeypatch.setitem(growth.AXES, "sets", (title, (2,), run))
    monkeypatch.setattr(growth, "CLIENTS", 1100)
    assert growth.main(["--only", "sets", "--seconds", "0.05", "--out", str(tmp_path)]) == 0
    (row,) = json.loads((tmp_path / "growth.json").read_text())["sets"]
    assert row["value"] == 2
    assert min(row["alone_us"], row["flush_us"], row["connect_us"]) > 0
    page = (tmp_path / "growth.md").read_text()
    assert f"## By {title}" in page
    assert "(growth-sets.svg)" in page
    assert (tmp_path / "growth-sets.svg").stat().st_size > 1000


def test_growth_over_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    title, _, run = growth.AXES["machines"]
    monkeypatch.setitem(growth.AXES, "machines", (title, (2,), run))
    monkeypatch.setattr(growth, "CLIENTS", 40)
    assert growth.main(["--only", "machines", "--seconds", "0.05", "--out", str(tmp_path)]) == 0
    (row,) = json.loads((tmp_path / "growth.json").read_text())["machines"]
    assert min(row["alone_us"], row["flush_us"], row["connect_us"]) > 0


def test_clients_that_stall_are_not_counted() -> None:
    one = contender("service, JSON")
    with (
        one.make(1) as server,
        Load(server, one.wire, one.path, server.port, one.publish_path) as load,
    ):
        load.connect(10)
        load.connect(10, "/ws/realtime?types=status,stats")
        load.publish(1)
        load.stall(15)
        answer = load.publish(3, size=2)
        assert (answer["received"], answer["expected"], answer["missing"]) == (30, 30, 0)
