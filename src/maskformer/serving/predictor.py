"""Picture files and options in, results and their encodings out, without a word of HTTP: what one replica does.

Nothing is decoded before its header has been read: a few bytes can announce gigabytes. H W picture.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Literal

from PIL import ExifTags, Image
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from maskformer.inference import Segmenter
from maskformer.processing.loading import read_image
from maskformer.processing.preprocessing import padded_size, resized_size
from maskformer.processing.settings import ProcessorSettings
from maskformer.results import TASKS, Segmentation, Task

Format = Literal["rle", "png", "overlay"]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]

# Those Pillow reads with its own code: its other plugins start programs (EPS) or are seldom looked at.
PICTURE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM")
DEFAULT_MAX_PIXELS = 32_000_000

_SEMANTIC_HAS_NO_THRESHOLDS: dict[str, Any] = {
    "if": {"properties": {"task": {"const": "semantic"}}, "required": ["task"]},
    "then": {"properties": {name: {"type": "null"} for name in ("threshold", "mask_threshold", "overlap")}},
}


class TooManyPixels(ValueError):
    """A picture is larger than this service works on."""


class Options(BaseModel):
    """How a picture is segmented, and what is sent back."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra=_SEMANTIC_HAS_NO_THRESHOLDS)

    task: Task | None = Field(None, description="By default what the model was trained for.")
    threshold: Share | None = Field(None, description="Lowest score of a segment, default 0.5; not for semantic.")
    mask_threshold: Share | None = Field(None, description="Lowest mask probability of a pixel, default 0.5.")
    overlap: Share | None = Field(None, description="Share of its mask a segment must keep; default 0.8.")
    format: Format = Field(
        "rle", description="rle: JSON with COCO run lengths; png: the map of ids; overlay: a drawing with legend."
    )

    def arguments(self) -> dict[str, Any]:
        """Those of `Segmenter.predict`; requests with equal ones can be computed together."""
        fields = self.model_dump(include={"task", "threshold", "mask_threshold"})
        return {**fields, "overlap_mask_area_threshold": self.overlap}


class Predictor:
    """A Segmenter that works on files it does not trust.

    Args:
        segmenter: what answers. Its results do not depend on what else is in a batch.
        name: how the model is called in `describe`.
        max_pixels: of a picture, as it is and as the network gets it.
        max_batch: pictures per forward pass, at most.
    """

    def __init__(
        self, segmenter: Segmenter, name: str = "", max_pixels: int = DEFAULT_MAX_PIXELS, max_batch: int = 8
    ) -> None:
        self.segmenter, self.name, self.max_pixels, self.max_batch = segmenter, name, max_pixels, max_batch
        self._settings = ProcessorSettings.from_options(segmenter.image_processor.to_dict())
        Image.init()
        self._formats = [name for name in PICTURE_FORMATS if name in Image.OPEN]  # AVIF is not in every build
        self._decoders = ThreadPoolExecutor(4, "decoding")

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What the model can do."""
        return ("semantic",) if self.segmenter.is_per_pixel else TASKS

    def check(self, options: Options) -> Options:
        """The options with their task filled in; ValueError if the task has no use for one of them."""
        chosen = options.model_copy(update={"task": options.task or self.segmenter.task})
        self.segmenter.stream((), **chosen.arguments())
        return chosen

    def likeness(self, content: bytes) -> tuple[int, int]:
        """(height, width) that the network will see, from the file's header alone.

        Raises:
            TooManyPixels: in the file, or once resized.
            ValueError: this is no picture.
        """
        picture = self._open(content)
        width, height = picture.size
        # Other formats decode the whole picture to find it; there it is only a guess that is worse.
        if picture.format == "JPEG" and picture.getexif().get(ExifTags.Base.Orientation, 1) >= 5:
            height, width = width, height
        self._check_pixels(height, width, "the picture")
        size = (height, width)
        if self._settings.do_resize:
            size = resized_size(height, width, self._settings.size, self._settings.size_divisor)
            self._check_pixels(*size, "the resized picture")
        return padded_size([size], self._settings)

    def predict(self, jobs: Sequence[tuple[bytes, Options]]) -> list[Segmentation | Exception]:
        """Each job's result, or the error that is its answer: ValueError where the picture is at fault."""
        results: list[Any] = list(self._decoders.map(self._decoded, [content for content, _ in jobs]))
        alike: dict[Any, list[int]] = {}
        for index, (_, options) in enumerate(jobs):
            if isinstance(results[index], Tensor):
                alike.setdefault(tuple(options.arguments().values()), []).append(index)
        for indices in alike.values():
            found = self._segmented([results[index] for index in indices], jobs[indices[0]][1])
            for index, result in zip(indices, found, strict=True):
                results[index] = result
        return results

    def encode(self, result: Segmentation, form: Format) -> tuple[bytes, str]:
        """The body of an answer and its media type."""
        if form == "rle":
            return json.dumps(result.to_dict(rle=True)).encode(), "application/json"
        picture, content = result.to_png() if form == "png" else result.overlay(), io.BytesIO()
        picture.save(content, "PNG")
        return content.getvalue(), "image/png"

    def describe(self) -> dict[str, Any]:
        """The model, for people who want to use it."""
        weights = list(self.segmenter.model.parameters())
        return {
            "name": self.name,
            "tasks": list(self.tasks),
            "task": self.segmenter.task,
            "labels": self.segmenter.labels,
            "parameters": sum(weight.numel() for weight in weights),
            "device": str(self.segmenter.device),
            "dtype": str(weights[0].dtype).removeprefix("torch."),
            "max_batch": self.max_batch,
        }

    def _open(self, content: bytes) -> Image.Image:
        try:
            return Image.open(io.BytesIO(content), formats=self._formats)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise TooManyPixels(f"the picture has more than the {self.max_pixels} pixels allowed") from error
        except Exception as error:  # Pillow's readers raise struct.error, KeyError and more on damaged headers
            raise ValueError(f"the picture cannot be read: send {', '.join(self._formats)}") from error

    def _check_pixels(self, height: int, width: int, what: str) -> None:
        if height * width > self.max_pixels:
            most = f"expected at most {self.max_pixels}: send a smaller one"
            raise TooManyPixels(f"{what} has {width} x {height} pixels, {most}")

    def _decoded(self, content: bytes) -> Tensor | Exception:
        try:
            picture = self._open(content)
            self._check_pixels(picture.height, picture.width, "the picture")
            picture.load()
            return read_image(picture, self.segmenter.num_channels, name="the picture")
        except (TooManyPixels, MemoryError) as error:
            return error
        except Exception as error:
            return ValueError(f"the picture cannot be decoded ({error}): it may be damaged or cut off")

    def _segmented(self, pictures: list[Tensor], options: Options) -> list[Segmentation | Exception]:
        try:
            return list(self.segmenter.predict(pictures, batch_size=self.max_batch, **options.arguments()))
        except Exception as error:
            if len(pictures) == 1:
                return [error]
            return [self._segmented([picture], options)[0] for picture in pictures]  # one must not fail the others
