"""What all requests share: the predictor, its queue, the limits and the figures."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from maskformer.results import Segmentation
from maskformer.serving.batching import Batcher, House
from maskformer.serving.metrics import Metrics
from maskformer.serving.predictor import Options, Predictor


@dataclass(frozen=True)
class Limits:
    """What a client may ask of the service."""

    body_bytes: int = 16 << 20
    body_seconds: float = 10.0
    """For a body to arrive."""
    seconds: float = 30.0
    """From then to the end of the answer."""
    requests: int = 64
    """Inside at once; one more is refused."""
    max_delay: float = 0.005
    """Seconds a request waits for others while nothing else is being done."""


class Service:
    """Segments pictures of requests; `run` has to be running."""

    def __init__(self, predictor: Predictor, limits: Limits | None = None) -> None:
        self.predictor, self.limits = predictor, limits or Limits()
        self.house = House(self.limits.requests)
        self.metrics = Metrics()
        self.batcher: Batcher[tuple[bytes, Options], Segmentation] = Batcher(
            predictor.predict, predictor.max_batch, self.limits.max_delay, self.metrics.batches.observe
        )
        self.metrics.waiting.set_function(lambda: self.batcher.num_waiting)
        self.is_ready = False

    async def run(self) -> None:
        """Answer until cancelled."""
        self.is_ready = True
        try:
            await self.batcher.run()
        finally:
            self.is_ready = False

    async def segment(self, content: bytes, options: Options) -> Segmentation:
        """The result of one picture file, made together with those of others.

        Raises:
            TooManyPixels: the picture is larger than allowed.
            ValueError: the picture cannot be read, or the task has no use for an option.
        """
        options = self.predictor.check(options)
        size = await asyncio.to_thread(self.predictor.likeness, content)
        return await self.batcher.submit((content, options), (size, *options.arguments().values()))
