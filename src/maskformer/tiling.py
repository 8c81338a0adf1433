"""Large pictures tile by tile: each tile is segmented like a picture of its own, and the results are joined.

The paper has no such step; the seams follow U-Net's overlapping tiles (Ronneberger et al., arXiv 1505.04597, figure 2):
neighbours overlap, and each pixel is taken from the tile whose border is further away.

    tile 0 |-----------------|
                     |-----------------| tile 1        segments of one class whose IoU inside the overlap exceeds
                     |overlap|                         1/2 are one segment
                         ^ seam

A tile is a picture of its own: the image processor resizes it, so tiles should be as large as the pictures that the
model was trained on. What is larger than a tile is seen in parts, and the network judges each part without the rest.
docs/decisions.md has what that does to pictures of 6000 x 4000 pixels.
Memory beyond the model and the picture: about 32 bytes per pixel, and the results of two rows of tiles.

H W picture, h w tile or overlap, N M segments, P pixels of an overlap.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from maskformer.processing.loading import read_image
from maskformer.processing.masks import encode_run_lengths
from maskformer.processing.preprocessing import image_size
from maskformer.results import Segment, Segmentation, map_of_runs, segments_of_map, segments_of_runs

_ROWS_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Tile:
    """A rectangle of the picture, from (top, left) to (bottom, right), and its place in the grid of tiles."""

    row: int
    column: int
    top: int
    left: int
    bottom: int
    right: int

    def common(self, other: Tile) -> Tile:
        """The rectangle that lies in both."""
        top, left = max(self.top, other.top), max(self.left, other.left)
        bottom, right = min(self.bottom, other.bottom), min(self.right, other.right)
        return replace(self, top=top, left=left, bottom=bottom, right=right)

    def of(self, array: Any, top: int = 0, left: int = 0) -> Any:
        """This part [..., h, w] of an array or tensor whose first pixel is the picture's (top, left)."""
        return array[..., self.top - top : self.bottom - top, self.left - left : self.right - left]


def tiles(size: tuple[int, int], tile: int, overlap: int) -> list[Tile]:
    """Equal tiles row by row, as few as have at least the overlap; a side shorter than a tile has one.

    Raises:
        ValueError: an overlap that is negative or more than half a tile.
    """
    if overlap < 0 or 2 * overlap > tile or tile < 1:
        raise ValueError(f"tile {tile} with overlap {overlap}: the overlap must be 0 to half the tile")
    rows, columns = (_starts(length, tile, overlap) for length in size)
    return [
        Tile(row, column, top, left, min(top + tile, size[0]), min(left + tile, size[1]))
        for row, top in enumerate(rows)
        for column, left in enumerate(columns)
    ]


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    if length <= tile:
        return [0]
    steps = -(-(length - tile) // (tile - overlap))
    return [round(number * (length - tile) / steps) for number in range(steps + 1)]


class TiledSegmenter:
    """A Segmenter for pictures larger than a tile; smaller ones go through it as they are.

    Args:
        segmenter: a `Segmenter`, which segments the tiles.
        tile: side of a tile in pixels of the picture; a tile is resized as the image processor says.
        overlap: pixels that neighbouring tiles share at least; default: an eighth of a tile.

    Raises:
        ValueError: an overlap that is negative or more than half a tile.
    """

    def __init__(self, segmenter: Any, tile: int = 1024, overlap: int | None = None) -> None:
        overlap = tile // 8 if overlap is None else overlap
        tiles((1, 1), tile, overlap)  # checks
        self.segmenter, self.tile, self.overlap = segmenter, tile, overlap

    def predict(self, images: Iterable[Any], task: Any = None, **options: Any) -> list[Segmentation]:
        """As `Segmenter.predict`, of an iterable of pictures."""
        return list(self.stream(images, task, **options))

    def stream(
        self, images: Iterable[Any], task: Any = None, *, batch_size: int = 4, **options: Any
    ) -> Iterator[Segmentation]:
        """As `Segmenter.stream`; `batch_size` counts tiles."""
        for number, image in enumerate(images):
            picture = read_image(image, self.segmenter.num_channels, None, f"image {number}")
            places = tiles(image_size(picture), self.tile, self.overlap)
            crops = (place.of(picture) for place in places)
            results = self.segmenter.stream(crops, task, batch_size=batch_size, **options)
            if len(places) == 1:
                yield replace(next(results), image=image)
            else:
                yield self._joined(image, places, results, options.get("label_ids_to_fuse"))

    def _joined(
        self, image: Any, places: list[Tile], results: Iterator[Segmentation], fused: Collection[int] | None
    ) -> Segmentation:
        join = _Join((places[-1].bottom, places[-1].right))
        task: Any = None
        for place, result in zip(places, results, strict=True):
            task = result.task
            join.add(place, result)
        labels = self.segmenter.labels
        told = {segment.label_id: segment.is_thing for _, segment in join.found if segment.is_thing is not None}
        stuff = {label_id for label_id, is_thing in told.items() if not is_thing} if told else None
        if task == "instance":
            runs, infos = join.instances()
            segmentation, segments = map_of_runs(runs, join.size), segments_of_runs(runs, infos, labels, stuff)
        else:
            united: Collection[int] = (self.segmenter.stuff_ids or ()) if fused is None else fused
            infos = join.classes() if task == "semantic" else join.segments(united)
            segmentation, segments = join.canvas, segments_of_map(join.canvas, infos, labels, stuff)
        return Segmentation(task, segmentation, segments, join.size, labels, image)


class _Seen(NamedTuple):
    """A tile, its result, and the number of its first segment; the others follow."""

    place: Tile
    result: Segmentation
    first: int

    def masks(self, shared: Tile) -> Tensor:
        """float [N, P]: its segments inside an overlap."""
        if self.result.task == "instance":
            masks = [shared.of(each.mask, self.place.top, self.place.left) for each in self.result.segments]
        else:
            part = shared.of(self.result.segmentation, self.place.top, self.place.left)
            masks = [part == each.id for each in self.result.segments]
        pixels = (shared.bottom - shared.top) * (shared.right - shared.left)
        return torch.from_numpy(np.array(masks, np.float32).reshape(len(masks), pixels))  # [N, P]


class _Join:
    """The picture's map as it grows tile by tile, and the segments of all tiles, numbered from 0, with their parts."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        self.canvas: NDArray[np.int32] = np.zeros(size, np.int32)  # semantic: label ids; else number + 1
        self.found: list[tuple[Tile, Segment]] = []
        self.same: list[tuple[int, int]] = []  # segments that are one, by their numbers
        self.seen: dict[tuple[int, int], _Seen] = {}  # by row and column: the tiles that have neighbours to come

    def add(self, place: Tile, result: Segmentation) -> None:
        """Take the next tile; they come row by row."""
        here = _Seen(place, result, len(self.found))
        segments = result.segments
        if result.task != "instance":  # without their tile's map, which need not be kept for them
            segments = [replace(segment, pixels=np.zeros((0, 0), np.int32)) for segment in segments]
        self.found += [(place, segment) for segment in segments]
        above = self.seen.pop((place.row - 1, place.column), None)
        before = self.seen.get((place.row, place.column - 1))
        for neighbour in (above, before):
            if neighbour and result.task != "semantic":
                self._match(here, neighbour)
        if result.task != "instance":
            top = (place.top + above.place.bottom) // 2 if above else place.top
            left = (place.left + before.place.right) // 2 if before else place.left
            self._paint(here, replace(place, top=top, left=left))
        self.seen[place.row, place.column] = here

    def _match(self, new: _Seen, old: _Seen) -> None:
        """Note the segments of one class that agree inside the overlap of two tiles."""
        shared = new.place.common(old.place)
        ours, theirs = new.masks(shared), old.masks(shared)
        both = ours @ theirs.T  # [N, M]
        union = ours.sum(1)[:, None] + theirs.sum(1)[None] - both
        for row, column in (2 * both > union).nonzero().tolist():
            if new.result.segments[row].label_id == old.result.segments[column].label_id:
                self.same.append((new.first + row, old.first + column))

    def _united(self) -> list[int]:
        """Of each segment, the number of the one that it is a part of."""
        ones, others = np.array(self.same, np.intp).reshape(-1, 2).T
        links = coo_array((np.ones(len(ones)), (ones, others)), shape=(len(self.found),) * 2)
        return connected_components(links, directed=False)[1].tolist()

    def _paint(self, here: _Seen, inner: Tile) -> None:
        """Write the tile from its upper and left seams on; later tiles write over its other ends likewise."""
        part = inner.of(here.result.segmentation, here.place.top, here.place.left)
        if here.result.task == "panoptic":
            ids = [segment.id for segment in here.result.segments]
            table = np.zeros(max(ids, default=0) + 1, np.int32)
            table[ids] = here.first + 1 + np.arange(len(ids))
            part = table[part]
        inner.of(self.canvas)[...] = part

    def classes(self) -> list[dict[str, Any]]:
        """The classes, with the best score of any tile."""
        scores: dict[int, float] = {}
        for _, segment in self.found:
            scores[segment.label_id] = max(scores.get(segment.label_id, 0.0), segment.score)
        return [{"id": label, "label_id": label, "score": scores[label]} for label in sorted(scores)]

    def segments(self, fused: Collection[int]) -> list[dict[str, Any]]:
        """Number the segments that can be seen from 1, in the map too."""
        first: dict[int, int] = {}
        for number, (_, segment) in enumerate(self.found):
            if segment.label_id in fused:
                self.same.append((first.setdefault(segment.label_id, number), number))
        united = self._united()
        strips = [self.canvas[start : start + _ROWS_AT_ONCE] for start in range(0, self.size[0], _ROWS_AT_ONCE)]
        seen = np.sum([np.bincount(strip.ravel(), minlength=len(self.found) + 1) for strip in strips], axis=0)
        infos: dict[int, dict[str, Any]] = {}
        table = np.zeros(len(self.found) + 1, np.int32)
        for number in np.flatnonzero(seen[1:]).tolist():
            info = infos.setdefault(united[number], {"id": len(infos) + 1, "score": 0.0})
            segment = self.found[number][1]
            info.update(label_id=segment.label_id, score=max(info["score"], segment.score))
            table[number + 1] = info["id"]
        for strip in strips:
            strip[...] = table[strip]
        return list(infos.values())

    def instances(self) -> tuple[list[Any], list[dict[str, Any]]]:
        """Run lengths [H, W] and infos of the instances, by falling score."""
        groups: dict[int, list[tuple[Tile, Segment]]] = {}
        for united, part in zip(self._united(), self.found, strict=True):
            groups.setdefault(united, []).append(part)
        runs: list[Any] = []
        infos: list[dict[str, Any]] = []
        for group in sorted(groups.values(), key=lambda group: -max(segment.score for _, segment in group)):
            mask = np.zeros(self.size, np.bool_)
            for place, segment in group:
                place.of(mask)[...] |= segment.mask
            runs.append(encode_run_lengths(torch.from_numpy(mask)))
            score = max(segment.score for _, segment in group)
            infos.append({"id": len(infos), "label_id": group[0][1].label_id, "score": score})
        return runs, infos
