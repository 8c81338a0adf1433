"""Pictures of results: coloured segments with crisp borders and an exact legend, and the COCO panoptic colour code.

Works for panoptic maps (void 0), instance maps (void -1) and semantic maps (ids are label ids): a pixel is coloured if
its id is among the segments, and left as it is otherwise. H W image, S segments.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class _Entry:
    """One line of the legend; `share` is the segment's part of the picture, 0 to 1."""

    label_id: int
    label: str
    score: float | None
    share: float
    color: Color


def overlay(
    image: Image.Image | ArrayLike,
    segmentation: ArrayLike,
    segments: Sequence[Any] | None = None,
    id2label: Mapping[int, str] | None = None,
    alpha: float = 0.5,
    legend: bool = True,
    colors: Mapping[int, Color] | None = None,
) -> Image.Image:
    """Draw the segments over the image, with a legend to its right (below pictures wider than 2 : 1).

    Source: docs/index.md#segment-a-picture.

    Args:
        image: RGB or grey, [H, W, 3] or [H, W] uint8, or a Pillow image.
        segmentation: [H, W] integers. Ids that no segment has stay uncoloured.
        segments: with `id`, `label_id` and, where known, `label` and `score`, by attribute or key. Without them the
            map is semantic: its ids are label ids, and below 0 is void, and 255 where `id2label` lacks it.
        id2label: names for segments without one; the last resort is "class 7".
        alpha: share of the colour, 0 to 1.
        legend: name every segment with its colour, score (if any has one) and share of the picture.
        colors: RGB by label id, instead of `label_colors`; instances of one label get shades of it.

    Raises:
        ValueError: for an `alpha` outside of 0 to 1, an array that is not uint8, or a map of another size.

    Examples:
        >>> ids = np.zeros((40, 60), np.int32)
        >>> ids[10:30, 20:40] = 1
        >>> segments = [{"id": 1, "label_id": 0}]
        >>> picture = overlay(np.zeros((40, 60, 3), np.uint8), ids, segments, {0: "cat"}, legend=False)
        >>> picture.size  # (width, height) in pixels
        (60, 40)
    """
    picture, ids = _open(image), np.asarray(segmentation)
    if ids.shape != (picture.height, picture.width):
        raise ValueError(
            f"overlay got a segmentation of shape {ids.shape} for an image of height {picture.height} and width "
            f"{picture.width}, expected the same size; post-process with target_sizes=[(height, width)]."
        )
    if not 0 <= alpha <= 1:
        raise ValueError(f"overlay got alpha={alpha}, expected a share between 0 (image) and 1 (colours only).")
    if segments is None:
        void = {255} - (id2label or {}).keys()  # of more than 255 classes it is one
        present = [int(value) for value in np.unique(ids) if value >= 0 and value not in void]
        segments = [{"id": value, "label_id": value} for value in present]
    places = places_of(ids, np.array([value_of(segment, "id") for segment in segments], np.int64))
    shares = np.bincount(places.ravel(), minlength=len(segments) + 1)[1:] / ids.size
    entries = _entries(segments, shares, id2label or {}, colors or {})
    table = np.array([(0, 0, 0), *(entry.color for entry in entries)], np.uint8)
    strength = np.where(places > 0, np.uint8(round(255 * alpha)), np.uint8(0))
    border = _border(places, thickness=max(1, round(min(ids.shape) / 500)))
    strength[border & (places > 0)] = 255
    paint = table[places]
    paint[border] = (paint[border] * 0.55).astype(np.uint8)
    picture = Image.composite(Image.fromarray(paint), picture, Image.fromarray(strength))
    shown = [entry for entry in entries if entry.share > 0]
    return _attach_legend(picture, shown) if legend and shown else picture


def label_colors(num: int) -> NDArray[np.uint8]:
    """[num, 3] uint8: a colour per label id, the same for every `num`.

    Neighbouring ids lie far apart: hues step by the golden angle and lightness cycles through three levels, in OKLCh
    (Ottosson 2020), where equal steps look equally large.
    """
    number = np.arange(num)
    # 21 golden angles are almost whole turns: from there on the levels are taken one further.
    lightness = np.array([0.68, 0.56, 0.8])[(number + number // 21) % 3]
    hue = 2 * np.pi * ((number * 0.6180339887 + 0.08) % 1)
    chroma = np.array([0.16, 0.14, 0.13])[number // 3 % 3]
    a, b = chroma * np.cos(hue), chroma * np.sin(hue)
    cone = np.stack([lightness + c * a + d * b for c, d in _OKLAB_TO_CONES], axis=-1) ** 3  # [num, 3]
    linear = np.clip(cone @ _CONES_TO_RGB.T, 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.round(255 * encoded).astype(np.uint8)


_OKLAB_TO_CONES = ((0.3963377774, 0.2158037573), (-0.1055613458, -0.0638541728), (-0.0894841775, -1.2914855480))
_CONES_TO_RGB = np.array(
    [
        (4.0767416621, -3.3077115913, 0.2309699292),
        (-1.2684380046, 2.6097574011, -0.3413193965),
        (-0.0041960863, -0.7034186147, 1.7076147010),
    ]
)


def id2rgb(segmentation: ArrayLike) -> NDArray[np.uint8]:
    """Ids [...] as colours [..., 3] of the COCO panoptic format: id = R + 256 G + 65536 B.

    Raises:
        ValueError: for ids below 0 or from 2^24 on, which the format cannot hold.
    """
    ids = np.asarray(segmentation)
    if ids.size and (int(ids.min()) < 0 or int(ids.max()) >= 1 << 24):
        raise ValueError(
            f"id2rgb got ids from {ids.min()} to {ids.max()}, expected 0 (void) to {(1 << 24) - 1}; "
            "add 1 to an instance map, whose void is -1."
        )
    ids = ids.astype(np.uint32)
    return np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8)


def _open(image: Image.Image | ArrayLike) -> Image.Image:
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8:
        raise ValueError(f"overlay got an image of {pixels.dtype}, expected uint8 from 0 to 255; scale and cast it.")
    return Image.fromarray(pixels).convert("RGB")


def value_of(segment: Any, name: str) -> Any:
    """What the segment has under the name, by key or attribute; None if it has nothing."""
    return segment.get(name) if isinstance(segment, Mapping) else getattr(segment, name, None)


def places_of(ids: NDArray[Any], known: NDArray[np.int64]) -> NDArray[np.intp]:
    """[H, W]: the place of each pixel's id among the `known`, from 1; 0 where it is none of them."""
    if not known.size:
        return np.zeros(ids.shape, np.intp)
    order = np.argsort(known)
    slots = np.minimum(np.searchsorted(known[order], ids), known.size - 1)
    return np.where(known[order][slots] == ids, order[slots] + 1, 0)


def _entries(
    segments: Sequence[Any], shares: NDArray[np.float64], id2label: Mapping[int, str], colors: Mapping[int, Color]
) -> list[_Entry]:
    seen: Counter[int] = Counter()
    entries: list[_Entry] = []
    for segment, share in zip(segments, shares.tolist(), strict=True):
        label_id = int(value_of(segment, "label_id"))
        color = colors[label_id] if label_id in colors else label_colors(label_id + 1)[label_id]
        label = value_of(segment, "label") or id2label.get(label_id) or f"class {label_id}"
        entries.append(_Entry(label_id, label, value_of(segment, "score"), share, _shade(color, seen[label_id])))
        seen[label_id] += 1
    return entries


def _shade(color: Iterable[int], number: int) -> Color:
    """The colour of the instance of that number: itself, darker, lighter, darker still, ... over nine steps."""
    step = (number + 1) // 2 % 5
    goal, share = (0, 0.13 * step) if number % 2 else (255, 0.15 * step)
    red, green, blue = (round(value + (goal - value) * share) for value in map(int, color))
    return red, green, blue


def _border(places: NDArray[np.intp], thickness: int) -> NDArray[np.bool_]:
    """[H, W]: the pixels within `thickness` of another segment, on both sides."""
    border = np.zeros(places.shape, np.bool_)
    for step in range(1, thickness + 1):
        down, right = places[step:] != places[:-step], places[:, step:] != places[:, :-step]
        border[step:] |= down
        border[:-step] |= down
        border[:, step:] |= right
        border[:, :-step] |= right
    return border


_INK, _PAPER, _FAINT = (34, 36, 42), (255, 255, 255), (128, 132, 142)


def _attach_legend(picture: Image.Image, entries: list[_Entry]) -> Image.Image:
    """The picture and its legend, one line per segment, labels with the largest area first."""
    totals: defaultdict[int, float] = defaultdict(float)
    for entry in entries:
        totals[entry.label_id] += entry.share
    entries = sorted(entries, key=lambda entry: (-totals[entry.label_id], entry.label_id, -entry.share))
    font = ImageFont.load_default(size=min(max(min(picture.size) / 30, 12), 96))
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow's wheels come with FreeType"
    line, cells = round(font.size * 1.5), _Cells(font, entries)
    beside = picture.width <= 2 * picture.height
    if beside:
        columns = math.ceil(len(entries) / max(picture.height // line - 2, 6))
    else:
        columns = max(min((picture.width - line) // cells.width, len(entries)), 1)
    rows = math.ceil(len(entries) / columns)
    left, top = (picture.width, 0) if beside else (0, picture.height)
    width, height = left + columns * cells.width + line, top + (rows + 2) * line
    sheet = Image.new("RGB", (max(picture.width, width), max(picture.height, height)), _PAPER)
    sheet.paste(picture, (0, 0))
    draw = ImageDraw.Draw(sheet)
    for column in range(columns):
        x = left + line // 2 + column * cells.width
        cells.draw_heading(draw, x, top + line // 2)
        for row, entry in enumerate(entries[column * rows : (column + 1) * rows]):
            cells.draw_line(draw, entry, x, top + line // 2 + (row + 1) * line)
    return sheet


class _Cells:
    """Where the parts of a line stand: patch, label, score if any has one, share of the picture."""

    def __init__(self, font: ImageFont.FreeTypeFont, entries: list[_Entry]) -> None:
        self.font, self.em = font, font.size
        self.scored = any(entry.score is not None for entry in entries)
        self.missing = self._glyph("\uffff")
        longest = max(font.getlength(self.spell(f"{entry.label}  ")) for entry in entries)
        self.label_width = min(max(longest, 3 * self.em), 12 * self.em)
        numbers = (3.2 * self.em if self.scored else 0) + 3.6 * self.em
        self.width = round(1.6 * self.em + self.label_width + numbers + self.em)

    def draw_heading(self, draw: ImageDraw.ImageDraw, x: float, y: float) -> None:
        self._write(draw, x, y, ("", "score" if self.scored else "", "area"), _FAINT)

    def draw_line(self, draw: ImageDraw.ImageDraw, entry: _Entry, x: float, y: float) -> None:
        patch = (round(x), round(y + 0.2 * self.em), round(x + 1.1 * self.em), round(y + 1.3 * self.em))
        draw.rectangle(patch, fill=entry.color)
        score = "" if entry.score is None else f"{entry.score:.2f}"
        percent = f"{100 * entry.share:.1f} %" if entry.share >= 0.0005 else "< 0.1 %"
        self._write(draw, x, y, (self.shorten(entry.label), score, percent), _INK)

    def _write(self, draw: ImageDraw.ImageDraw, x: float, y: float, texts: tuple[str, str, str], color: Color) -> None:
        end = x + self.width - self.em
        places = (x + 1.6 * self.em, end - 3.6 * self.em, end)
        for text, place, anchor in zip(texts, places, ("lm", "rm", "rm"), strict=True):
            draw.text((place, y + 0.75 * self.em), text, fill=color, font=self.font, anchor=anchor)

    def shorten(self, label: str) -> str:
        """The label, cut with an ellipsis where it is too long for its cell."""
        label = self.spell(label)
        if self.font.getlength(label) <= self.label_width:
            return label
        while label and self.font.getlength(f"{label}…") > self.label_width:
            label = label[:-1]
        return f"{label.rstrip()}…"

    def spell(self, label: str) -> str:
        """The label in letters that the font has: without accents, and with "?" for other scripts."""
        return "".join(letter if self._has(letter) else self._plain(letter) for letter in label)

    def _plain(self, letter: str) -> str:
        parts = unicodedata.normalize("NFKD", letter)
        return "".join(part for part in parts if not unicodedata.combining(part) and self._has(part)) or "?"

    def _has(self, letter: str) -> bool:
        return letter.isascii() or self._glyph(letter) != self.missing

    def _glyph(self, letter: str) -> bytes:
        mask: Any = self.font.getmask(letter)
        return bytes(mask)
