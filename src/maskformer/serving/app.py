"""The routes, as a FastAPI application with its OpenAPI document."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, get_type_hints

import prometheus_client
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import PlainTextResponse, Response
from fastapi.security import HTTPBearer
from pydantic import BaseModel, create_model

from maskformer import __version__
from maskformer.results import Segment, Task
from maskformer.serving.gate import Gate
from maskformer.serving.predictor import TooManyPixels
from maskformer.serving.requests import read_request, request_body
from maskformer.serving.service import Service


class Detail(BaseModel):
    """Why there is no answer."""

    detail: str


class RunLengths(BaseModel):
    """COCO run lengths, down the columns, starting with zeros; size is (height, width)."""

    size: tuple[int, int]
    counts: list[int]


_FIELDS: dict[str, Any] = {name: (kind, ...) for name, kind in get_type_hints(Segment).items() if name != "pixels"}
SegmentReply = create_model(
    "SegmentReply", __doc__="One segment; bbox is (x, y, width, height).", **_FIELDS, segmentation=(RunLengths, ...)
)


class SegmentationReply(BaseModel):
    """All segments of a picture; size is (height, width)."""

    task: Task
    size: tuple[int, int]
    segments: list[SegmentReply]  # pyright: ignore[reportInvalidTypeForm]


class ModelReply(BaseModel):
    """The model that answers."""

    name: str
    task: Task
    tasks: list[Task]
    labels: dict[int, str]
    parameters: int
    device: str
    dtype: str
    max_batch: int


_SENTENCES = {
    400: "The form cannot be taken apart.",
    408: "The body arrived too slowly.",
    413: "Too many bytes or pixels.",
    415: "Neither a form nor JSON.",
    422: "A field, or the picture, cannot be used.",
    429: "As many requests as there may be are inside; Retry-After says when to try again.",
    500: "The service failed; its log has the reason.",
    504: "The answer took too long.",
}


def build_app(service: Service, token: str | None = None, page: bool = True) -> FastAPI:
    """The application.

    Args:
        service: what answers; the application runs it.
        token: if given, clients must send it (see `Gate`), and the page asks for it as a password.
        page: with the page at `/`, which needs gradio.

    Raises:
        ImportError: the page without gradio.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        running = asyncio.create_task(service.run())
        try:
            yield
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    secured: Any = [Depends(HTTPBearer(auto_error=False, description="As started with."))] if token is not None else []
    app = FastAPI(title="maskformer", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(Gate, service=service, token=token)
    _add_segment(app, service, secured)
    _add_states(app, service, secured)
    if page:
        from maskformer.serving.page import mount_page

        mount_page(app, service, token)
    return app


def _add_segment(app: FastAPI, service: Service, secured: Any) -> None:
    statuses = _SENTENCES | ({401: "The token is missing or wrong."} if secured else {})
    responses: dict[int | str, dict[str, Any]] = {
        status: {"model": Detail, "description": sentence} for status, sentence in statuses.items()
    }
    responses[200] = {
        "model": SegmentationReply,
        "description": "JSON for format rle, a PNG picture for png and overlay.",
        "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}},
    }

    @app.post(
        "/v1/segment",
        summary="Segment a picture",
        responses=responses,
        openapi_extra={"requestBody": request_body()},
        dependencies=secured,
        response_class=Response,
    )
    async def segment(request: Request) -> Response:
        content, options = await read_request(request)
        try:
            result = await service.segment(content, options)
        except TooManyPixels as error:
            raise HTTPException(413, str(error)) from error
        except ValueError as error:
            raise HTTPException(422, str(error)) from error
        body, kind = await asyncio.to_thread(service.predictor.encode, result, options.format)
        return Response(body, media_type=kind)


def _add_states(app: FastAPI, service: Service, secured: Any) -> None:
    refused: dict[int | str, dict[str, Any]] = {401: {"model": Detail}} if secured else {}

    @app.get("/v1/model", summary="The model and its labels", dependencies=secured, responses=refused)
    async def model() -> ModelReply:
        return ModelReply(**service.predictor.describe())

    @app.get("/healthz", summary="Whether the process is alive")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", summary="Whether requests should be sent here", responses={503: {"model": dict[str, str]}})
    async def readyz(response: Response) -> dict[str, str]:
        response.status_code = 200 if service.is_ready else 503
        return {"status": "ok" if service.is_ready else "not ready, or leaving"}

    @app.get(
        "/metrics",
        summary="Figures for Prometheus",
        dependencies=secured,
        responses=refused,
        response_class=PlainTextResponse,
    )
    async def metrics() -> Response:
        text = prometheus_client.generate_latest(service.metrics.registry)
        return Response(text, headers={"content-type": prometheus_client.CONTENT_TYPE_LATEST})
