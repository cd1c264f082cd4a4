"""A Prometheus registry in; its metrics as values out, in the types of vllm.v1.metrics.reader."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric as Family
    from prometheus_client.samples import Sample

Labels = tuple[tuple[str, str], ...]


@dataclass
class Metric:
    """One metric with one set of labels; a name comes once for each set."""

    name: str
    labels: dict[str, str]


@dataclass
class Counter(Metric):
    """A number that only grows."""

    value: int


@dataclass
class Gauge(Metric):
    """A number that goes up and down."""

    value: float


@dataclass
class Vector(Metric):
    """Counters that the label `position` numbers, in its order."""

    values: list[int]


@dataclass
class Histogram(Metric):
    """buckets: upper bound, "+Inf" for all, -> how many observations were at most that. sum: of all `count` of them."""

    count: int
    sum: float
    buckets: dict[str, int]


def read_metrics(registry: CollectorRegistry, prefix: str) -> list[Metric]:
    """Every counter, gauge and histogram whose name begins with `prefix`; what else a registry may hold is left out."""
    return [found for family in registry.collect() if family.name.startswith(prefix) for found in _read(family)]


def _read(family: Family) -> Iterator[Metric]:
    name = family.name
    if family.type == "gauge":
        for sample in family.samples:
            yield Gauge(name, sample.labels, float(sample.value))
    elif family.type == "counter":
        for labels, samples in _grouped(family, "_total", "position").items():
            if "position" in samples[0].labels:
                values = {int(sample.labels["position"]): int(sample.value) for sample in samples}
                yield Vector(name, dict(labels), [values.get(at, 0) for at in range(max(values) + 1)])
            else:
                yield Counter(name, dict(labels), int(samples[0].value))
    elif family.type == "histogram":
        counts, sums = _grouped(family, "_count"), _grouped(family, "_sum")
        for labels, samples in _grouped(family, "_bucket", "le").items():
            buckets = {sample.labels["le"]: int(sample.value) for sample in samples}
            yield Histogram(name, dict(labels), int(counts[labels][0].value), sums[labels][0].value, buckets)


def _grouped(family: Family, suffix: str, without: str = "") -> dict[Labels, list[Sample]]:
    """A family's samples of one kind by their labels, one label left out of account."""
    found: dict[Labels, list[Sample]] = {}
    for sample in family.samples:
        if sample.name == family.name + suffix:
            key = tuple(item for item in sample.labels.items() if item[0] != without)
            found.setdefault(key, []).append(sample)
    return found
