"""The page at `/`: drop a picture, choose the task, move the threshold, point at a segment, take the result away.

It asks nothing of any other server: gradio's analytics are off, and its fonts are the machine's.
"""

from __future__ import annotations

import asyncio
import hmac
import io
import uuid
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from fastapi import FastAPI
from gradio.processing_utils import save_bytes_to_cache
from gradio.themes import Default
from PIL import Image

from maskformer.data.scenes import LABELS, draw_scene
from maskformer.results import Segmentation
from maskformer.serving.batching import HouseFull
from maskformer.serving.predictor import Options, Predictor
from maskformer.serving.service import Service
from maskformer.visualization import label_colors

# The page shows one picture per segment, each as large as the whole.
_LONGEST_SHOWN, _MOST_SHOWN = 1024, 100
_SECONDS_KEPT = 600
_EXAMPLE_SEED = 9_999_951  # the scene of `maskformer demo`
_CSS = "footer {display: none !important} .gradio-container {max-width: 1200px !important; margin: auto}"
_SCRIPT = Path(__file__).with_name("page.js")


def mount_page(app: FastAPI, service: Service, token: str | None = None) -> None:
    """Put the page at `/`; with a token, it asks for a name (any) and the token as password."""

    def may_enter(_: str, password: str) -> bool:
        return hmac.compare_digest(password.encode(), (token or "").encode())

    gr.mount_gradio_app(
        app,
        _build(service),
        path="/",
        auth=may_enter if token is not None else None,
        auth_message="Any name, and the service's token as password.",
        max_file_size=service.limits.body_bytes,
        footer_links=[],
        ssr_mode=False,
        theme=Default(font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace")),
        css=_CSS,
        head=f"<script>{_SCRIPT.read_text()}</script>",
    )


def _build(service: Service) -> gr.Blocks:
    predictor = service.predictor
    kept = (_SECONDS_KEPT, _SECONDS_KEPT)
    with gr.Blocks(title=f"maskformer: {predictor.name}", analytics_enabled=False, delete_cache=kept) as page:
        gr.Markdown(f"# maskformer\nSegments pictures with **{predictor.name}**, which knows {_known(service)}.")
        with gr.Row():
            with gr.Column(scale=2):
                picture = gr.Image(label="Picture", type="filepath", sources=["upload", "clipboard"], height=320)
                task = gr.Radio(list(predictor.tasks), value=predictor.segmenter.task, label="Task")
                threshold = gr.Slider(0, 1, 0.5, step=0.05, label="Threshold", info="Lowest score of a segment.")
                gr.Examples([_draw_example(page.GRADIO_CACHE)], picture, label="Try this one")
            with gr.Column(scale=3):
                shown = gr.AnnotatedImage(label="Segments: point at one", height=420, elem_id="segments")
                with gr.Row():
                    files = [gr.DownloadButton(f"Download {kind}", interactive=False) for kind in ("PNG", "JSON")]
                table = gr.Dataframe(headers=["segment", "score", "area"], label="Segments", interactive=False)

        async def segment(file: str | None, task: str, threshold: float) -> list[Any]:
            if file is None:
                return [None, None, *[gr.DownloadButton(interactive=False)] * 2]
            asked = {"task": task} if task == "semantic" else {"task": task, "threshold": threshold}
            result = await _segment(service, file, Options.model_validate(asked))
            return await asyncio.to_thread(_show, result, predictor, page.GRADIO_CACHE)

        gr.on(
            [picture.change, task.change, threshold.change],
            segment,
            [picture, task, threshold],
            [shown, table, *files],
            trigger_mode="always_last",
            concurrency_limit=service.limits.requests,
            api_visibility="private",
        )
        # The slider says so where it would change nothing.
        task.change(lambda task: gr.Slider(interactive=task != "semantic"), task, threshold, api_visibility="private")
    page.queue(max_size=service.limits.requests)
    return page


async def _segment(service: Service, file: str, options: Options) -> Segmentation:
    try:
        with service.house.visit():
            async with asyncio.timeout(service.limits.seconds):
                return await service.segment(Path(file).read_bytes(), options)
    except ValueError as error:
        raise gr.Error(str(error), print_exception=False) from error
    except (HouseFull, TimeoutError) as error:
        raise gr.Error("There is too much to do at the moment: try again.", print_exception=False) from error


def _known(service: Service) -> str:
    labels = service.predictor.segmenter.labels
    if labels == LABELS:
        return f"drawn scenes ({', '.join(labels.values())}), not photographs"
    return f"{len(labels)} classes, such as {', '.join(list(labels.values())[:8])}"


def _draw_example(cache: str) -> str:
    content = io.BytesIO()
    Image.fromarray(draw_scene(_EXAMPLE_SEED, (384, 512)).image).save(content, "PNG")
    return save_bytes_to_cache(content.getvalue(), "scene.png", cache)


def _show(result: Segmentation, predictor: Predictor, cache: str) -> list[Any]:
    """What the outputs get: the picture with its segments, largest first, their table and the two files.

    The files lie in gradio's `cache`, which gradio clears.
    """
    picture = Image.fromarray(np.asarray(result.image.permute(1, 2, 0).squeeze(-1))).convert("RGB")  # from [C, H, W]
    picture.thumbnail((_LONGEST_SHOWN, _LONGEST_SHOWN))
    pixels = result.image_size[0] * result.image_size[1]
    seen: dict[int, int] = {}
    parts: list[Any] = []
    rows: list[list[str]] = []
    colors: dict[str, str] = {}
    for segment in sorted(result.segments, key=lambda segment: -segment.area):
        number = seen.get(segment.label_id, 0)
        seen[segment.label_id] = number + 1
        name = segment.label if number == 0 else f"{segment.label} {number + 1}"
        rows.append([name, f"{segment.score:.2f}", f"{100 * segment.area / pixels:.1f} %"])
        if len(parts) < _MOST_SHOWN:
            mask = Image.fromarray(segment.mask).resize(picture.size, Image.Resampling.NEAREST)
            parts.append((0.6 * np.asarray(mask, np.float32), f"{name} · {segment.score:.2f}"))
            color = segment.label_id + number * len(result.labels)  # the first of a class has that class's
            colors[parts[-1][1]] = "#" + label_colors(color + 1)[color].tobytes().hex()
    name = f"{result.task}-{uuid.uuid4().hex[:8]}"
    contents = {".png": predictor.encode(result, "overlay")[0], ".json": predictor.encode(result, "rle")[0]}
    files = [save_bytes_to_cache(content, name + suffix, cache) for suffix, content in contents.items()]
    buttons = [gr.DownloadButton(value=file, interactive=True) for file in files]
    return [gr.AnnotatedImage(value=(picture, parts), color_map=colors), rows, *buttons]
