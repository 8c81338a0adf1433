"""`maskformer demo`: one picture in all three tasks, and the quality on drawn scenes that no training has seen."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from maskformer.cli.predict import print_segments

if TYPE_CHECKING:
    from maskformer.inference import Segmenter
    from maskformer.results import Segmentation

# Training draws its scenes from 0 on; these are beyond any training's reach.
FIRST_UNSEEN_SEED = 10_000_000
_PICTURE_SEED = FIRST_UNSEEN_SEED - 49  # nine classes, from the sky to a ball
_PICTURE_SIZE = (384, 512)  # height, width
_BATCH_SIZE = 4


def run(
    out: Path = Path("demo"),
    model: Annotated[str, tyro.conf.arg(metavar="MODEL")] = "scenes",
    image: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
    scenes: int = 20,
) -> int:
    """Segment one picture in all three tasks, and measure the quality on unseen drawn scenes; nothing is downloaded.

    Args:
        out: directory for the picture and its overlays.
        model: an id on the hub, a directory, or "scenes" (comes with the package; knows drawn scenes only).
        image: a picture of your own; by default a scene is drawn.
        as_json: print one JSON object instead of text.
        scenes: number of unseen scenes to measure the quality on.
    """
    from maskformer.cli import UsageError

    if scenes < 1:
        raise UsageError(f"--scenes is {scenes}, expected at least 1")
    _tell(f"loading {model}")
    from maskformer.inference import Segmenter

    segmenter = Segmenter.from_pretrained(model)
    picture = image if image is not None else _draw_picture(out)
    _tell(f"segmenting {picture}")
    results, files = _segment(segmenter, picture, out)
    quality: dict[str, Any] = {"panoptic_quality": None, "mean_iou": None, "scenes": 0}
    if _knows_scenes(segmenter):
        _tell(f"measuring the quality on {scenes} unseen scenes")
        panoptic_quality, mean_iou = measure(segmenter, scenes)
        quality = {"panoptic_quality": panoptic_quality, "mean_iou": mean_iou, "scenes": scenes}
    segments = [segment.to_dict() for segment in results[-1].segments]
    written = [str(file) for file in files]
    if as_json:
        print(
            json.dumps({"model": model, "picture": str(picture), **quality, "segments": segments, "written": written})
        )
    else:
        _print(results, written, quality)
    return 0


def measure(segmenter: Segmenter, num_scenes: int) -> tuple[float, float]:
    """Panoptic quality and mean IoU, in percent, against the exact labels of that many unseen scenes."""
    import numpy as np

    from maskformer.data.scenes import CLASSES, draw_scene
    from maskformer.evaluation.miou import MeanIoU
    from maskformer.evaluation.panoptic_quality import PanopticQuality

    categories = [{"id": i, "name": entry.name, "isthing": entry.isthing} for i, entry in enumerate(CLASSES)]
    quality, iou = PanopticQuality(categories), MeanIoU(len(CLASSES))
    scenes = [draw_scene(seed) for seed in range(FIRST_UNSEEN_SEED, FIRST_UNSEEN_SEED + num_scenes)]
    pictures = [scene.image for scene in scenes]
    panoptic = segmenter.stream(pictures, "panoptic", batch_size=_BATCH_SIZE)
    semantic = segmenter.stream(pictures, "semantic", batch_size=_BATCH_SIZE)
    for scene, segments, classes in zip(scenes, panoptic, semantic, strict=True):
        quality.update(segments.segmentation, segments.segments, scene.segmentation, scene.segments)
        table = np.full(len(scene.segments) + 1, iou.ignore_index)
        for segment in scene.segments:
            table[segment["id"]] = segment["category_id"]
        iou.update(classes.segmentation, table[scene.segmentation])
    return quality.result().all.pq, iou.result().mean_iou


def _knows_scenes(segmenter: Segmenter) -> bool:
    from maskformer.data.scenes import LABELS

    return segmenter.labels == LABELS and not segmenter.is_per_pixel


def _scene_colors() -> dict[int, tuple[int, int, int]]:
    from maskformer.data.scenes import CLASSES

    return {number: entry.color for number, entry in enumerate(CLASSES)}


def _draw_picture(out: Path) -> Path:
    from PIL import Image

    from maskformer.data.scenes import draw_scene
    from maskformer.results import write_whole

    out.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(draw_scene(_PICTURE_SEED, _PICTURE_SIZE).image)
    write_whole(out / "picture.png", lambda path: picture.save(path, "PNG"))
    return out / "picture.png"


def _segment(segmenter: Segmenter, picture: Path, out: Path) -> tuple[list[Segmentation], list[Path]]:
    """The results of every task the model can do, panoptic last, and the overlays' files."""
    from maskformer.results import TASKS, write_whole

    out.mkdir(parents=True, exist_ok=True)
    results: list[Segmentation] = []
    files: list[Path] = []
    for task in TASKS[:1] if segmenter.is_per_pixel else TASKS:
        result = segmenter.predict(picture, task)[0]
        file = out / f"{picture.stem}.{task}.overlay.png"
        drawn = result.overlay(colors=_scene_colors() if _knows_scenes(segmenter) else None)
        write_whole(file, lambda path, drawn=drawn: drawn.save(path, "PNG"))
        results.append(result)
        files.append(file)
    return results, files


def _print(results: list[Segmentation], written: list[str], quality: dict[str, Any]) -> None:
    for result, file in zip(results, written, strict=True):
        print(f"{result.task}: {len(result.segments)} segments -> {file}")
    print_segments(results[-1])
    if quality["scenes"]:
        print(f"over {quality['scenes']} unseen scenes, against their exact labels:")
        print(f"panoptic quality  {quality['panoptic_quality']:.1f} %")
        print(f"mean IoU          {quality['mean_iou']:.1f} %")
    else:
        print("quality is not measured: this model does not know the classes of the drawn scenes")


def _tell(sentence: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        print(sentence, file=sys.stderr, flush=True)
