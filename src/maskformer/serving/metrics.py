"""What is counted for Prometheus, and the log: one line of JSON per exchange, never with a picture's content."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

LOGGER = logging.getLogger("maskformer.serving")
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """The figures of one service; `registry` is what `/metrics` prints."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        to: Any = {"registry": self.registry, "namespace": "maskformer"}
        self.requests = Counter("requests", "Answers, by path and status.", ("path", "status"), **to)
        self.seconds = Histogram("request_seconds", "Whole exchanges, by path.", ("path",), buckets=SECONDS, **to)
        self.batches = Histogram("batch_pictures", "Pictures per batch.", buckets=(1, 2, 4, 8, 16, 32, 64), **to)
        self.waiting = Gauge("waiting_requests", "Requests that no batch has taken yet.", **to)
        ProcessCollector(registry=self.registry)


class JsonLines(logging.Formatter):
    """A record as one line of JSON: its message as `event`, and the fields given as `extra={"fields": {...}}`."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        line = {"time": stamp, "level": record.levelname.lower(), "event": record.getMessage()}
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)
