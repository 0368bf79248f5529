"""What the processes of a service would have in their files, from one registry."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from workers.shared.metrics_files import Count


def counts_of(registry: CollectorRegistry) -> list[Count]:
    """Its counters and histograms as `MetricsFiles.counts` gives them."""
    found: list[Count] = []
    for family in registry.collect():
        below = 0.0
        for name, labels, value, *_ in family.samples:
            if name.endswith("_bucket"):
                found.append(Count(name, float(labels["le"]), value - below))
                below = value
            else:
                found.append(Count(name, None, value))
    return found
