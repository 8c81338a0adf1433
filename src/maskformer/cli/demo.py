"""`maskformer demo`: one picture in all three tasks, and the quality on drawn scenes that no training has seen."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskformer.cli import options
from maskformer.cli.tables import print_segments

if TYPE_CHECKING:
    from maskformer.inference import Segmenter
    from maskformer.results import Segmentation, Task

# Training draws its scenes from 0 on; these are beyond any training's reach.
FIRST_UNSEEN_SEED = 10_000_000
_PICTURE_SEED = FIRST_UNSEEN_SEED - 49  # nine classes, from the sky to a ball
_PICTURE_SIZE = (384, 512)  # height, width


@dataclass(frozen=True)
class Command:
    """Segment one picture in all three tasks, and measure the quality on unseen drawn scenes; nothing is downloaded."""

    out: Path = Path("demo")
    """directory for the picture and its overlays."""
    model: options.Model = "scenes"
    image: options.File = None
    """a picture of your own; by default a scene is drawn."""
    as_json: options.Json = False
    """print one JSON object instead of text."""
    scenes: int = 20
    """number of unseen scenes to measure the quality on."""

    def run(self) -> int:
        options.check_counts(scenes=self.scenes)
        _tell(f"loading {self.model}")
        from maskformer.data.scenes import LABELS
        from maskformer.inference import Segmenter

        segmenter = Segmenter.from_pretrained(self.model)
        knows_scenes = segmenter.labels == LABELS and not segmenter.is_per_pixel
        self.out.mkdir(parents=True, exist_ok=True)
        picture = _draw_picture(self.out) if self.image is None else self.image
        _tell(f"segmenting {picture}")
        results = self._segment(segmenter, picture, knows_scenes)
        quality: dict[str, Any] = {"panoptic_quality": None, "mean_iou": None, "scenes": 0}
        if knows_scenes:
            _tell(f"measuring the quality on {self.scenes} unseen scenes")
            panoptic_quality, mean_iou = measure(segmenter, self.scenes)
            quality = {"panoptic_quality": panoptic_quality, "mean_iou": mean_iou, "scenes": self.scenes}
        if self.as_json:
            segments = [segment.to_dict() for segment in list(results.values())[-1].segments]
            found = {**quality, "segments": segments, "written": list(results)}
            print(json.dumps({"model": self.model, "picture": str(picture), **found}))
        else:
            _print(results, quality)
        return 0

    def _segment(self, segmenter: Segmenter, picture: Path, knows_scenes: bool) -> dict[str, Segmentation]:
        """The results of every task the model can do, panoptic last, by the overlays' files."""
        from maskformer.data.scenes import CLASSES
        from maskformer.results import TASKS, write_whole

        colors = {number: entry.color for number, entry in enumerate(CLASSES)} if knows_scenes else None
        results: dict[str, Segmentation] = {}
        for task in TASKS[:1] if segmenter.is_per_pixel else TASKS:
            result = segmenter.predict(picture, task)[0]
            file, drawn = self.out / f"{picture.stem}.{task}.overlay.png", result.overlay(colors=colors)
            write_whole(file, lambda path, drawn=drawn: drawn.save(path, "PNG"))
            results[str(file)] = result
        return results


def measure(segmenter: Segmenter, num_scenes: int) -> tuple[float, float]:
    """Panoptic quality and mean IoU, in percent, against the exact labels of that many unseen scenes."""
    from maskformer.data.scene_set import SceneDataset
    from maskformer.evaluation.evaluate import evaluate

    def metric(task: Task, name: str) -> Any:
        scenes = SceneDataset(num_scenes, first_seed=FIRST_UNSEEN_SEED, task=task)
        return evaluate(segmenter, scenes, task).metrics[name]

    return metric("panoptic", "PQ"), metric("semantic", "mIoU")


def _draw_picture(out: Path) -> Path:
    from PIL import Image

    from maskformer.data.scenes import draw_scene
    from maskformer.results import write_whole

    picture = Image.fromarray(draw_scene(_PICTURE_SEED, _PICTURE_SIZE).image)
    write_whole(out / "picture.png", lambda path: picture.save(path, "PNG"))
    return out / "picture.png"


def _print(results: dict[str, Segmentation], quality: dict[str, Any]) -> None:
    for file, result in results.items():
        print(f"{result.task}: {len(result.segments)} segments -> {file}")
    print_segments(list(results.values())[-1])
    if quality["scenes"]:
        print(f"over {quality['scenes']} unseen scenes, against their exact labels:")
        print(f"panoptic quality  {quality['panoptic_quality']:.1f} %")
        print(f"mean IoU          {quality['mean_iou']:.1f} %")
    else:
        print("quality is not measured: this model does not know the classes of the drawn scenes")


def _tell(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
