"""Drawn scenes with exact panoptic labels: the data of the demo, of the bundled checkpoint and of the tests.

A scene is a list of pieces, painted far to near. Every piece is a list of polygons, and the very same polygons are
filled twice: with colours (at twice the size, then averaged) and with the piece's number (sampled, so labels stay
crisp). Colours of things come from one palette per scene and neighbouring stuff classes share theirs, so that colour
alone does not tell the class: shape, texture and place do.

Lengths are in image heights: y in [0, 1] downwards, x in [0, W/H]. H W image, P pieces, V vertices of a polygon.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from maskformer.data.classes import Category
from maskformer.data.scene_light import Light, Numbers, Outline, illuminate, paint_sky
from maskformer.data.scene_things import THINGS, Brush, Color, Polygon, Thing, mix


@dataclass(frozen=True, slots=True)
class Scene:
    """`image` uint8 [H, W, 3]; `segmentation` int32 [H, W]: ids from 1, on every pixel.

    `segments` has COCO's `segments_info`, with `isthing`: `area` is the visible pixels, `bbox` their
    (x, y, width, height).
    """

    image: NDArray[np.uint8]
    segmentation: NDArray[np.int32]
    segments: list[dict[str, Any]]


CLASSES = (
    Category("sky", False, 0, (112, 174, 228)),
    Category("mountain", False, 1, (142, 124, 152)),
    Category("grass", False, 2, (112, 178, 84)),
    Category("water", False, 3, (36, 118, 178)),
    Category("sand", False, 4, (230, 204, 140)),
    Category("road", False, 5, (108, 108, 116)),
    Category("house", True, 6, (200, 84, 70)),
    Category("tree", True, 7, (28, 110, 66)),
    Category("car", True, 8, (70, 80, 200)),
    Category("boat", True, 9, (245, 130, 48)),
    Category("person", True, 10, (230, 60, 140)),
    Category("ball", True, 11, (250, 206, 40)),
    Category("kite", True, 12, (150, 64, 200)),
    Category("balloon", True, 13, (0, 178, 168)),
)
LABELS = {number: entry.name for number, entry in enumerate(CLASSES)}
STUFF_IDS = [number for number, entry in enumerate(CLASSES) if not entry.isthing]
_ID = {entry.name: number for number, entry in enumerate(CLASSES)}

# A segment with less than this share of the picture (69 pixels of 192 x 256) cannot be told from noise at stride 4.
_SMALLEST_SHARE = 0.0014

# Stuff of different classes shares colours on purpose (straw, rust, slate, white): texture and place tell them apart.
_STUFF_COLORS: dict[str, tuple[Color, ...]] = {
    "grass": ((104, 158, 66), (74, 134, 72), (148, 166, 74), (206, 182, 108), (186, 132, 84), (128, 148, 118)),
    "sand": ((228, 200, 142), (206, 182, 108), (214, 152, 110), (222, 214, 196), (176, 160, 142), (188, 176, 120)),
    "road": ((112, 114, 120), (142, 132, 124), (168, 142, 112), (92, 98, 112), (128, 132, 118)),
    "water": ((48, 122, 170), (40, 142, 156), (84, 120, 138), (62, 96, 140), (104, 158, 150), (92, 132, 112)),
    "mountain": ((112, 128, 158), (104, 132, 112), (148, 124, 108), (132, 116, 150), (122, 126, 134)),
}
_SKIES: tuple[tuple[Color, Color, Color], ...] = (  # zenith, horizon, light
    ((62, 128, 206), (186, 220, 240), (1.0, 1.0, 0.97)),
    ((86, 160, 222), (226, 236, 238), (1.02, 1.0, 0.96)),
    ((84, 88, 150), (250, 176, 120), (1.06, 0.92, 0.82)),
    ((130, 110, 178), (250, 198, 196), (1.03, 0.94, 0.96)),
    ((126, 142, 158), (214, 218, 220), (0.94, 0.96, 0.98)),
    ((38, 50, 98), (150, 142, 176), (0.72, 0.74, 0.9)),
    ((74, 142, 186), (250, 226, 182), (1.05, 1.0, 0.9)),
)
# Ground from the horizon to the lower edge: (stuff, share of the ground's height).
_GROUNDS: tuple[tuple[tuple[str, float], ...], ...] = (
    (("grass", 1.0),),
    (("grass", 0.4), ("road", 0.32), ("grass", 0.28)),
    (("grass", 0.42), ("road", 0.58)),
    (("water", 0.5), ("sand", 0.5)),
    (("water", 0.62), ("grass", 0.38)),
    (("grass", 0.22), ("water", 0.4), ("grass", 0.38)),
    (("sand", 0.25), ("water", 0.4), ("sand", 0.35)),
    (("sand", 0.42), ("road", 0.32), ("sand", 0.26)),
    (("water", 0.34), ("sand", 0.3), ("road", 0.36)),
    (("sand", 1.0),),
)

_KNOTS = 65  # places over the width at which the edges of stuff are given
_BOTTOM = np.ones(_KNOTS)
_SNOW: Color = (250, 250, 252)

Curve = NDArray[np.float64]  # y at `_KNOTS` places over the width


class _Land(NamedTuple):
    """The ground's stuff from far to near, and the edges between: one more, the last is the picture's lower edge."""

    names: list[str]
    edges: list[Curve]
    horizon: float
    aspect: float


class _Piece(NamedTuple):
    """Polygons that get one number, and where they stand."""

    label: int
    polygons: list[Polygon]
    outline: Outline = Outline()


def draw_scene(seed: int, size: tuple[int, int] = (192, 256)) -> Scene:
    """Draw the scene of number `seed` at `size` = (height, width), the same one every time.

    The layout depends on the seed and on width / height alone, so a scene keeps its content when drawn larger.
    What would show less than 0.14 % of the picture is left out of it altogether, so every pixel has its label.

    Source: docs/data.md#formats.

    Raises:
        ValueError: if a side is below 32 pixels or the seed is negative.

    Examples:
        >>> scene = draw_scene(seed=1, size=(48, 64))
        >>> scene.image.shape, scene.segmentation.shape, scene.segments[0]["id"]
        ((48, 64, 3), (48, 64), 1)
    """
    height, width = size
    if min(size) < 32 or seed < 0:
        raise ValueError(
            f"draw_scene got seed={seed} and size={tuple(size)}, expected a seed of at least 0 and sides of at least "
            "32 pixels; draw the scene larger and shrink it if you need less."
        )
    rng = np.random.Generator(np.random.PCG64(seed))
    pieces, light = _compose(rng, width / height)
    numbers = _number_pixels(pieces, size)
    areas = np.bincount(numbers.ravel(), minlength=len(pieces) + 1)[1:]
    kept = [piece for piece, area in zip(pieces, areas, strict=True) if area >= _SMALLEST_SHARE * height * width]
    assert kept[0].label == _ID["sky"], "the sky is never this small"
    if len(kept) < len(pieces):  # whatever the rest hid is seen instead, in the picture and in the labels
        numbers = _number_pixels(kept, size)
    segmentation, segments = _segment(kept, numbers)
    canvas = _fill(paint_sky(light, (2 * height, 2 * width), rng), kept, colored=True)
    flat = np.asarray(canvas.reduce(2)).transpose(2, 0, 1).astype(np.float32)  # [2H, 2W, 3] -> [3, H, W]
    labels = np.array([0, *(piece.label for piece in kept)], np.uint8)[numbers]
    surface = {name: mask for number, name in LABELS.items() if (mask := labels == number).any()}
    picture = illuminate(flat, surface, numbers, [piece.outline for piece in kept], light, rng)
    return Scene(picture, segmentation, segments)


def _compose(rng: np.random.Generator, aspect: float) -> tuple[list[_Piece], Light]:
    brush = Brush(rng)
    zenith, haze, tint = _SKIES[rng.integers(len(_SKIES))]
    horizon = brush.uniform(0.3, 0.48)
    sun = (brush.uniform(0.05, 0.95) * aspect, horizon * brush.uniform(0.15, 0.75))
    light = Light(zenith, haze, tint, horizon, sun, brush.uniform(0, 1), brush.uniform(0.5, 4))
    colors = {name: mix(pool[rng.integers(len(pool))], brush.color(), 0.08) for name, pool in _STUFF_COLORS.items()}
    land = _lay_out(brush, horizon, aspect)
    pieces = [_Piece(_ID["sky"], [])]  # the canvas itself
    if brush.chance(0.55):
        pieces.append(_mountain(brush, land, mix(colors["mountain"], haze, 0.25)))
    for name, top, foot in zip(land.names, land.edges[:-1], land.edges[1:], strict=True):
        polygons = [_between(top, _BOTTOM, aspect, colors[name])]
        if name == "road":
            polygons += _lane(top, foot, aspect, colors[name])
        pieces.append(_Piece(_ID[name], polygons))
    return pieces + _place_things(brush, land), light


def _between(top: Curve, foot: Curve, aspect: float, color: Color, knots: slice = slice(None)) -> Polygon:
    """The area between two curves, a little wider than the picture; between some of their knots, if they are given."""
    x = np.linspace(-0.02, 1.02, _KNOTS) * aspect
    there, back = (np.stack([x, curve], axis=1)[knots] for curve in (top, foot))
    return np.concatenate([there, back[::-1]]), color


def _mountain(brush: Brush, land: _Land, color: Color) -> _Piece:
    """A crest whose middles are displaced again and again, half of the time with snow on its peaks."""
    heights = brush.rng.uniform(0, 1, 5)
    for spread in (0.3, 0.14, 0.07, 0.03):
        middles = (heights[1:] + heights[:-1]) / 2 + brush.rng.uniform(-spread, spread, len(heights) - 1)
        heights = np.insert(heights, np.arange(1, len(heights)), middles)
    reach = brush.uniform(0.1, 0.2)
    crest = land.horizon - 0.04 - reach * heights[:_KNOTS]
    polygons = [_between(crest, _BOTTOM, land.aspect, color)]
    if brush.chance(0.5):
        limit = land.horizon - 0.04 - reach * (0.62 + brush.rng.uniform(-0.08, 0.08, _KNOTS))
        polygons.append(_between(crest, np.maximum(crest, limit), land.aspect, mix(color, _SNOW, 0.8)))
    return _Piece(_ID["mountain"], polygons)


def _lay_out(brush: Brush, horizon: float, aspect: float) -> _Land:
    bands = _GROUNDS[brush.rng.integers(len(_GROUNDS))]
    names = [name for name, _ in bands]
    shares = np.array([share * brush.uniform(0.8, 1.2) for _, share in bands])
    starts = horizon + (1 - horizon) * np.concatenate([[0.0], np.cumsum(shares / shares.sum())])
    x = np.linspace(0, 1, _KNOTS)
    edges: list[Curve] = []
    for number, name in enumerate(names):
        wave, slope = 0.02, brush.uniform(-0.09, 0.09)
        if number == 0:
            wave, slope = (0.0, 0.0) if name == "water" else (0.02, 0.0)  # the horizon of the sea is a line
        elif "road" in (name, names[number - 1]):
            wave, slope = 0.006, 0.0
        edge = starts[number] + slope * (x - 0.5)
        for turns in (1.0, 2.3):
            edge = edge + wave * np.sin(2 * np.pi * (turns * brush.uniform(0.7, 1.3) * x + brush.uniform(0, 1)))
        edges.append(edge)
    return _Land(names, [*edges, _BOTTOM], horizon, aspect)


def _lane(top: Curve, foot: Curve, aspect: float, color: Color) -> list[Polygon]:
    """The road's markings: two edges and a dashed line in the middle, all of them road."""
    paint = mix(color, (244, 238, 214), 0.75)
    lines = [_between(top + (foot - top) * a, top + (foot - top) * (a + 0.03), aspect, paint) for a in (0.05, 0.92)]
    middle, thick = (top + foot) / 2, (foot - top) * 0.035
    upper, lower = middle - thick / 2, middle + thick / 2
    dashes = [slice(start, start + 4) for start in range(1, _KNOTS - 4, 8)]
    return lines + [_between(upper, lower, aspect, paint, dash) for dash in dashes]


def _place_things(brush: Brush, land: _Land) -> list[_Piece]:
    """Several instances of several classes, each where it belongs, far to near, none buried under another."""
    possible = [name for name, thing in THINGS.items() if {"sky", *land.names} & set(thing.ground)]
    count = min(len(possible), int(brush.rng.integers(3, 6)))
    placed: list[_Piece] = []
    for name in brush.rng.choice(possible, count, replace=False).tolist():
        for _ in range(int(brush.rng.integers(1, THINGS[name].most + 1))):
            for _attempt in range(6):
                outline = _stand(brush, THINGS[name], land)
                if all(_overlap(outline, other.outline) < 0.5 for other in placed):
                    scale = (-outline.height if brush.chance(0.5) else outline.height, -outline.height)
                    shapes = THINGS[name].draw(brush)
                    polygons = [(points * scale + (outline.x, outline.foot), color) for points, color in shapes]
                    placed.append(_Piece(_ID[name], polygons, outline))
                    break
    return sorted(placed, key=lambda piece: (not piece.outline.airborne, piece.outline.foot))


def _stand(brush: Brush, thing: Thing, land: _Land) -> Outline:
    """A random place for one instance, larger the nearer it is."""
    share = brush.uniform(0.04, 0.96)
    airborne = thing.ground == ("sky",)
    if airborne:
        height = thing.height * brush.uniform(0.55, 1.1)
        foot = height + brush.uniform(0.01, max(0.02, land.horizon + 0.04 - height))
    else:
        number = int(brush.rng.choice([i for i, name in enumerate(land.names) if name in thing.ground]))
        top, low = (float(edge[round(share * (_KNOTS - 1))]) for edge in land.edges[number : number + 2])
        foot = top + (low - top) * brush.uniform(*thing.depth)
        height = thing.height * brush.uniform(0.85, 1.15)
        height *= 0.62 + 0.75 * (foot - land.horizon) / (1 - land.horizon)
    return Outline(share * land.aspect, foot, thing.half_width * height, height, True, airborne)


def _overlap(one: Outline, two: Outline) -> float:
    """Intersection of the two boxes over the smaller one."""
    width = min(one.x + one.half_width, two.x + two.half_width) - max(one.x - one.half_width, two.x - two.half_width)
    height = min(one.foot, two.foot) - max(one.foot - one.height, two.foot - two.height)
    smaller = min(2 * one.half_width * one.height, 2 * two.half_width * two.height)
    return max(width, 0.0) * max(height, 0.0) / smaller


def _fill(canvas: Image.Image, pieces: list[_Piece], colored: bool) -> Image.Image:
    """Fill every polygon on a canvas of twice the picture's size, with its colour or with its piece's number."""
    draw, scale = ImageDraw.Draw(canvas), canvas.height
    for number, piece in enumerate(pieces, start=1):
        for points, color in piece.polygons:
            ink = tuple(map(int, color)) if colored else number
            draw.polygon((points * scale).ravel().tolist(), fill=ink)
    return canvas


def _number_pixels(pieces: list[_Piece], size: tuple[int, int]) -> Numbers:
    """[H, W]: for every pixel the number, from 1, of the piece on top."""
    assert len(pieces) < 256
    canvas = Image.new("L", (2 * size[1], 2 * size[0]), 1)  # the sky is number 1
    return np.asarray(_fill(canvas, pieces, colored=False))[1::2, 1::2]  # [2H, 2W] -> [H, W]


def _segment(pieces: list[_Piece], numbers: Numbers) -> tuple[NDArray[np.int32], list[dict[str, Any]]]:
    """Number stuff class by class, then things one by one, from 1 without gaps."""
    keys = [(piece.label, number if piece.outline.isthing else -1) for number, piece in enumerate(pieces)]
    order = sorted(set(keys))
    segmentation = np.array([0, *(order.index(key) + 1 for key in keys)], np.int32)[numbers]
    return segmentation, [_describe(segmentation == i, i, label) for i, (label, _) in enumerate(order, start=1)]


def _describe(mask: NDArray[np.bool_], number: int, label: int) -> dict[str, Any]:
    left, top, right, low = Image.fromarray(mask).getbbox() or (0, 0, 0, 0)
    box, area, isthing = (left, top, right - left, low - top), int(np.count_nonzero(mask)), CLASSES[label].isthing
    return {"id": number, "category_id": label, "isthing": isthing, "iscrowd": 0, "area": area, "bbox": box}
