"""The metrics of one worker, in the plain mode that tests use and in the mode of the service."""

from __future__ import annotations

import time

import pytest

from app.metrics import Metrics


@pytest.fixture(autouse=True)
def plain_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)


def sample(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_each_object_counts_for_itself() -> None:
    first, second = Metrics(["status"]), Metrics(["status"])
    first.published["status"].inc(3)
    assert sample(first, "realtime_messages_published_total", type="status") == 3
    assert sample(second, "realtime_messages_published_total", type="status") == 0


def test_types_are_there_before_their_first_message() -> None:
    metrics = Metrics(["status", "stats"])
    for name in ("realtime_messages_published_total", "realtime_messages_delivered_total"):
        assert sample(metrics, name, type="stats") == 0


def test_unknown_keys_share_one_series() -> None:
    metrics = Metrics(["status"])
    for code in range(3000, 3100):
        metrics.closed[code].inc()
    metrics.closed[1000].inc()
    metrics.published["nonsense"].inc()
    assert sample(metrics, "realtime_connections_closed_total", code="other") == 100
    assert sample(metrics, "realtime_connections_closed_total", code="1000") == 1
    assert sample(metrics, "realtime_messages_published_total", type="other") == 1
    assert len(metrics.closed) == 1


def test_a_request_with_an_invented_method_makes_no_series_of_its_own() -> None:
    metrics = Metrics()
    metrics.count_request("/status", "GET", 200)
    metrics.count_request("/status", "BREW", 405)
    metrics.count_request("/status", "SPILL", 405)
    name = "realtime_http_requests_total"
    assert sample(metrics, name, route="/status", method="GET", status="200") == 1
    assert sample(metrics, name, route="/status", method="other", status="405") == 2


@pytest.mark.parametrize("amount", [-0.5, 0.0, 0.0005, 0.0006, 0.3, 10.0, 99.0])
def test_many_equal_observations_count_like_single_ones(amount: float) -> None:
    many, single = Metrics(), Metrics()
    many.delivery_latency.observe_many(amount, 3)
    for _ in range(3):
        single.delivery_latency.observe(max(amount, 0.0))

    assert _samples(many) == pytest.approx(_samples(single))


def test_different_observations_together_count_like_single_ones() -> None:
    amounts = [(-0.5, 1), (0.0006, 3), (0.0007, 2), (0.3, 4), (99.0, 1)]
    together, single = Metrics(), Metrics()
    together.delivery_latency.observe_all(amounts)
    together.delivery_latency.observe_all([])
    for amount, count in amounts:
        single.delivery_latency.observe_many(amount, count)
    assert _samples(together) == _samples(single)


def _samples(metrics: Metrics) -> dict[str, float]:
    return {
        found.name + str(found.labels): found.value
        for family in metrics.delivery_latency.collect()
        for found in family.samples
        if not found.name.endswith("_created")
    }


def test_processor_time_counts_up() -> None:
    metrics = Metrics()
    metrics.sample_process()
    before = sample(metrics, "realtime_process_cpu_seconds_total")
    sum(range(200_000))
    metrics.sample_process()
    after = sample(metrics, "realtime_process_cpu_seconds_total")
    assert before is not None
    assert after is not None
    assert 0 < before < after <= time.process_time()


def test_names_and_help_follow_the_conventions() -> None:
    for family in Metrics(["status"]).registry.collect():
        assert family.name.startswith("realtime_")
        assert len(family.documentation) > 15, family.name
        assert family.documentation.endswith("."), family.name
        assert not family.name.endswith(("_ms", "_total", "_count")), family.name


def test_a_worker_that_starts_says_nothing_against_the_others() -> None:
    """The lowest value of all workers counts, and until it has looked it knows of no fault."""
    metrics = Metrics(["status"])
    assert sample(metrics, "realtime_backplane_up") == 1
    assert sample(metrics, "realtime_backplane_writable") == 1
