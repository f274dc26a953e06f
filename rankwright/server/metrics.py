"""What Prometheus reads at /metrics. Names and labels only: no text, no key, no model path."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

import rankwright
from rankwright.engine import Engine

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
DOCUMENTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
COUNTS = {
    "pairs": "Pairs of question and document that were scored",
    "tokens": "Tokens that were read",
    "cut": "Pairs that were cut to fit into the model",
    "batches": "Batches that were scored",
    "splits": "Batches that were split because memory ran out",
    "failures": "Requests or documents on which the model failed",
    "cancelled": "Requests whose client left or whose time was over while they were waited for",
    "expired": "Requests whose time was over in the queue",
}


class Metrics:
    """The metrics of one server.

    Args:
        engine: whose state and counts are shown.
    """

    def __init__(self, engine: Engine) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "rankwright_requests", "Requests by route and status", ["route", "code"], registry=self.registry
        )
        self.seconds = Histogram(
            "rankwright_request_seconds",
            "Seconds from the first byte of a request to its answer",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._documents = Histogram(
            "rankwright_batch_documents", "Documents of a batch", buckets=DOCUMENTS, registry=self.registry
        )
        self._batch_seconds = Histogram(
            "rankwright_batch_seconds", "Seconds of a batch", buckets=SECONDS, registry=self.registry
        )
        self._gauge("rankwright_queue_documents", "Documents that wait or are being scored", lambda: engine.waiting)
        self._gauge("rankwright_queue_requests", "Requests that wait for their answer", lambda: engine.requests)
        self._gauge("rankwright_ready", "Whether requests are taken", lambda: engine.health().ready)
        info = Gauge("rankwright_info", "Version of rankwright", ["version"], registry=self.registry)
        info.labels(rankwright.__version__).set(1)
        self.registry.register(_Counts(engine))

    def _gauge(self, name: str, words: str, value: object) -> None:
        Gauge(name, words, registry=self.registry).set_function(value)  # pyright: ignore[reportArgumentType]

    def batch(self, documents: int, seconds: float) -> None:
        """A batch was scored; called by the engine."""
        self._documents.observe(documents)
        self._batch_seconds.observe(seconds)

    def answered(self, route: str, code: int, seconds: float) -> None:
        """A request was answered."""
        self.requests.labels(route, str(code)).inc()
        self.seconds.labels(route).observe(seconds)

    def page(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self.registry)


class _Counts(Collector):
    """The engine's own counts, read when they are asked for: its thread has no time for more."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        """One counter each."""
        for name, words in COUNTS.items():
            yield CounterMetricFamily(f"rankwright_{name}", words, value=self._engine.counts[name])
