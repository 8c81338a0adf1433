"""`maskformer serve`: answer segmentation requests over HTTP."""

from __future__ import annotations

import functools
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from maskformer.cli.evaluate import optional
from maskformer.cli.predict import Precision, Task, check_workers

if TYPE_CHECKING:
    from fastapi import FastAPI

    from maskformer.serving.predictor import Predictor
    from maskformer.serving.service import Limits, Service

TOKEN_VARIABLE = "MASKFORMER_TOKEN"


def run(
    model: Annotated[str | None, optional(metavar="MODEL")] = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    task: Annotated[Task | None, optional(metavar="semantic|instance|panoptic")] = None,
    device: Annotated[str | None, optional(metavar="DEVICE")] = None,
    dtype: Annotated[Precision | None, optional(metavar="float32|bfloat16|float16")] = None,
    max_batch: int = 8,
    max_delay_ms: float = 5,
    max_queue: int = 64,
    max_megabytes: float = 16,
    max_megapixels: float = 32,
    timeout: float = 30,
    token_file: Annotated[Path | None, optional(metavar="FILE")] = None,
    page: bool = True,
    engine: Annotated[Literal["local", "ray"], tyro.conf.arg(metavar="local|ray")] = "local",
    workers: Annotated[int | None, optional(metavar="NUMBER")] = None,
) -> int:
    """Answer POST /v1/segment over HTTP, with a page to try it at /; /openapi.json describes the rest.

    Equal picture sizes that arrive together share a forward pass. SIGTERM ends it once all requests inside have been
    answered. With a token, clients send `Authorization: Bearer TOKEN`; it is also read from MASKFORMER_TOKEN.

    Args:
        model: an id on the hub such as facebook/maskformer-swin-tiny-ade, a directory, or "scenes" (comes with the
            package; knows drawn scenes only).
        host: address to listen on; by default this machine alone can reach it.
        port: 0 takes any free one, and says which.
        task: where a request names none; by default panoptic if the checkpoint knows stuff classes, else semantic.
        device: cpu, cuda, cuda:1, ...; by default the first GPU if there is one.
        dtype: precision of the network.
        max_batch: pictures per forward pass, at most.
        max_delay_ms: milliseconds a request waits for others while nothing else is being done.
        max_queue: requests inside at once; one more is answered 429.
        max_megabytes: largest body of a request.
        max_megapixels: largest picture.
        timeout: seconds from a request's arrival to the end of its answer.
        token_file: file whose first line is the token.
        page: the page at /.
        engine: ray answers with replicas on the machines of a Ray cluster (that of RAY_ADDRESS or `ray start`, else
            this machine), each with a queue and figures of its own, and without the page. Start it on the head node.
        workers: replicas of --engine ray; by default one per GPU, or else per CPU core.
    """
    from maskformer.cli import UsageError

    if model is None:
        raise UsageError(
            "serve needs --model: an id on the hub such as facebook/maskformer-swin-tiny-ade, a directory with a "
            "checkpoint, or scenes (comes with the package and knows drawn scenes only)"
        )
    numbers = {"--max-batch": max_batch, "--max-queue": max_queue, "--max-megabytes": max_megabytes}
    for name, value in (numbers | {"--max-megapixels": max_megapixels, "--timeout": timeout}).items():
        if not value > 0:
            raise UsageError(f"{name} is {value}, expected more than 0")
    if not 0 <= port < 1 << 16:
        raise UsageError(f"--port is {port}, expected 0 to 65535")
    check_workers(engine, workers)
    page = page and engine == "local"  # a page's requests belong to one process
    try:
        from maskformer.serving.server import bound_socket, log_to_stderr, serve
        from maskformer.serving.service import Limits

        if page:
            import gradio  # noqa: F401  # pyright: ignore[reportUnusedImport]  # before the model is loaded
    except ImportError as error:
        raise ImportError(f"serve needs {error.name or error}: pip install 'maskformer[serve]'") from error
    token = _token(token_file)
    limits = Limits(int(max_megabytes * 2**20), min(timeout, 10), timeout, max_queue, max(max_delay_ms, 0) / 1000)
    pixels = int(max_megapixels * 1e6)
    build = functools.partial(_application, (model, task, device, dtype), (pixels, max_batch), limits, token, page)
    started = functools.partial(_announce, model, f"[{host}]" if ":" in host else host)
    if engine == "ray":
        from maskformer.serving.ray_service import serve_on_cluster

        serve_on_cluster(lambda: build()[0], (host, port), limits, (device, workers), started)
        return 0
    with bound_socket(host, port) as bound:
        app, service = build()
        started(bound.getsockname()[1])
        log_to_stderr()
        serve(app, service, bound)
    return 0


def _announce(model: str, host: str, port: int) -> None:
    print(f"maskformer: {model} answers on http://{host}:{port}", file=sys.stderr, flush=True)


def _application(
    checkpoint: Any, sizes: tuple[int, int], limits: Limits, token: str | None, page: bool
) -> tuple[FastAPI, Service]:
    from maskformer.serving.app import build_app
    from maskformer.serving.service import Service

    service = Service(_predictor(checkpoint, *sizes), limits)
    return build_app(service, token, page), service


def _predictor(
    checkpoint: tuple[str, Task | None, str | None, str | None], max_pixels: int, max_batch: int
) -> Predictor:
    """The model, loaded and having segmented something, so that the first client does not wait."""
    import numpy as np
    import torch
    from PIL import Image

    from maskformer.inference import Segmenter
    from maskformer.serving.predictor import Predictor

    model, task, device, dtype = checkpoint
    segmenter = Segmenter.from_pretrained(model, task, device, getattr(torch, dtype) if dtype else None)
    segmenter.predict(np.zeros((64, 64, segmenter.num_channels), np.uint8))
    # Pillow refuses to open pictures of more than twice this, in the page too. It warns of half of them: not here.
    Image.MAX_IMAGE_PIXELS = max(max_pixels // 2, 1)
    warnings.filterwarnings("ignore", module="PIL")
    return Predictor(segmenter, model, max_pixels, max_batch)


def _token(file: Path | None) -> str | None:
    """The first line of the file, or what the environment has."""
    token = os.environ.get(TOKEN_VARIABLE) if file is None else (file.read_text().splitlines() or [""])[0].strip()
    if token == "" or (token is None and file is not None):
        raise ValueError(f"the token in {file or TOKEN_VARIABLE} is empty: put one there, or leave the option out")
    return token
