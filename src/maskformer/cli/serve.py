"""`maskformer serve`: answer segmentation requests over HTTP."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from maskformer.cli import UsageError, options, tell

if TYPE_CHECKING:
    from fastapi import FastAPI

    from maskformer.serving.service import Limits, Service

TOKEN_VARIABLE = "MASKFORMER_TOKEN"


@dataclass(frozen=True)
class Command:
    """Answer POST /v1/segment over HTTP, with a page to try it at /; /openapi.json describes the rest.

    Equal picture sizes that arrive together share a forward pass. SIGTERM ends it once all requests inside have been
    answered. With a token, clients send `Authorization: Bearer TOKEN`; it is also read from MASKFORMER_TOKEN.
    """

    model: options.ChosenModel = None
    host: str = "127.0.0.1"
    """address to listen on; by default this machine alone can reach it."""
    port: int = 8000
    """0 takes any free one, and says which."""
    task: options.Task = None
    """where a request names none; by default what the checkpoint was trained for."""
    device: options.Device = None
    dtype: options.ChosenPrecision = None
    max_batch: int = 8
    """pictures per forward pass, at most."""
    max_delay_ms: float = 5
    """milliseconds a request waits for others while nothing else is being done."""
    max_queue: int = 64
    """requests inside at once; one more is answered 429."""
    max_megabytes: float = 16
    """largest body of a request."""
    max_megapixels: float = 32
    """largest picture."""
    timeout: float = 30
    """seconds from a request's arrival to the end of its answer."""
    token_file: options.File = None
    """file whose first line is the token."""
    page: Annotated[bool, options.optional()] = True
    """without the page at /."""
    engine: options.Engine = "local"
    """ray: replicas on a Ray cluster (by RAY_ADDRESS, or this machine), without the page; start it on the head."""
    workers: options.Workers = None
    """replicas of --engine ray; by default one per GPU, or else per CPU core."""

    def run(self) -> int:
        model = options.check_model(self.model, "serve")
        self._check()
        page = self.page and self.engine == "local"  # a page's requests belong to one process
        try:
            from maskformer.serving.server import bound_socket, log_to_stderr, serve
            from maskformer.serving.service import Limits

            if page:
                import gradio  # noqa: F401  # pyright: ignore[reportUnusedImport]  # before the model is loaded
        except ImportError as error:
            raise ImportError(f"serve needs {error.name or error}: pip install 'maskformer[serve]'") from error
        token = _token(self.token_file)
        limits = Limits(
            body_bytes=int(self.max_megabytes * 2**20),
            body_seconds=min(self.timeout, 10),
            seconds=self.timeout,
            requests=self.max_queue,
            max_delay=max(self.max_delay_ms, 0) / 1000,
        )
        if self.engine == "ray":
            from maskformer.serving.ray_service import serve_on_cluster

            serve_on_cluster(
                lambda: self._application(model, limits, token, page)[0],
                (self.host, self.port),
                limits,
                (self.device, self.workers),
                self._announce,
            )
            return 0
        with bound_socket(self.host, self.port) as bound:
            app, service = self._application(model, limits, token, page)
            self._announce(bound.getsockname()[1])
            log_to_stderr()
            serve(app, service, bound)
        return 0

    def _check(self) -> None:
        for name in ("max_batch", "max_queue", "max_megabytes", "max_megapixels", "timeout"):
            if not getattr(self, name) > 0:
                raise UsageError(f"--{name.replace('_', '-')} is {getattr(self, name)}, expected more than 0")
        if not 0 <= self.port < 1 << 16:
            raise UsageError(f"--port is {self.port}, expected 0 to 65535")
        options.check_workers(self.engine, self.workers)

    def _announce(self, port: int) -> None:
        host = f"[{self.host}]" if ":" in self.host else self.host
        tell(f"{self.model} answers on http://{host}:{port}")

    def _application(self, model: str, limits: Limits, token: str | None, page: bool) -> tuple[FastAPI, Service]:
        """With the model loaded and having segmented something, so that the first client does not wait."""
        import numpy as np
        import torch
        from PIL import Image

        from maskformer.inference import Segmenter
        from maskformer.serving.app import build_app
        from maskformer.serving.predictor import Predictor
        from maskformer.serving.service import Service

        dtype = getattr(torch, self.dtype) if self.dtype else None
        segmenter = Segmenter.from_pretrained(model, self.task, self.device, dtype)
        segmenter.predict(np.zeros((64, 64, segmenter.num_channels), np.uint8))
        max_pixels = int(self.max_megapixels * 1e6)
        # Pillow refuses to open pictures of more than twice this, in the page too. It warns of half of them: not here.
        Image.MAX_IMAGE_PIXELS = max(max_pixels // 2, 1)
        warnings.filterwarnings("ignore", module="PIL")
        service = Service(Predictor(segmenter, model, max_pixels, self.max_batch), limits)
        return build_app(service, token, page), service


def _token(file: Path | None) -> str | None:
    """The first line of the file, or what the environment has."""
    lines = os.environ.get(TOKEN_VARIABLE) if file is None else file.read_text()
    if lines is None:
        return None
    token = (lines.splitlines() or [""])[0].strip()  # secrets tend to end in a line break, which no header can hold
    if not token:
        raise ValueError(f"the token in {file or TOKEN_VARIABLE} is empty: put one there, or leave the option out")
    return token
