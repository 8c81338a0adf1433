"""The things of drawn scenes: how a house, a tree, a car, a boat, a person, a ball, a kite and a balloon are drawn.

Each is a list of polygons in its own frame: x to the right of its middle, y upwards from its foot, about one unit high.
Colours come from one palette per scene, whatever the class. V vertices of a polygon.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Color = tuple[float, float, float]
Polygon = tuple[NDArray[np.float64], Color]  # vertices [V, 2], colour

_TURNS = np.linspace(0, 1, 25)


def _box(x0: float, y0: float, x1: float, y1: float, color: Color) -> Polygon:
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)]), color


def _disc(x: float, y: float, rx: float, ry: float, color: Color, start: float = 0.0, stop: float = 1.0) -> Polygon:
    """An ellipse, or its sector from `start` to `stop` in turns."""
    turn = (start + (stop - start) * _TURNS) * 2 * np.pi
    points = np.stack([x + rx * np.cos(turn), y + ry * np.sin(turn)], axis=1)
    return (points if stop - start >= 1 else np.vstack([points, [(x, y)]])), color


def _poly(color: Color, *points: tuple[float, float]) -> Polygon:
    return np.array(points), color


def mix(a: Color, b: Color, share: float) -> Color:
    return (a[0] + (b[0] - a[0]) * share, a[1] + (b[1] - a[1]) * share, a[2] + (b[2] - a[2]) * share)


_WHITE, _BLACK, _GLASS = (246.0, 244.0, 238.0), (38.0, 36.0, 42.0), (150.0, 190.0, 208.0)


class Brush:
    """Random numbers and the colours that all things of one scene share."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng, self.uniform = rng, rng.uniform
        self.hues = rng.uniform(0, 1, 5)

    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    def color(self) -> Color:
        if self.chance(0.15):
            return mix((225, 220, 210), (150, 146, 150), self.uniform(0, 1))
        hue = float(self.rng.choice(self.hues)) + self.uniform(-0.02, 0.02)
        red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, self.uniform(0.35, 0.85), self.uniform(0.5, 0.98))
        return red * 255, green * 255, blue * 255


def _house(brush: Brush) -> list[Polygon]:
    wall, roof, frame = brush.color(), brush.color(), _WHITE
    half, eaves = brush.uniform(0.42, 0.62), brush.uniform(0.48, 0.58)
    ridge = 0.0 if brush.chance(0.5) else half * 0.62
    chimney = brush.uniform(-0.3, 0.2) * half
    shapes = [_box(chimney, 0.6, chimney + 0.12, 1.0, mix(wall, _BLACK, 0.35)), _box(-half, 0, half, eaves, wall)]
    shapes.append(_box(-half, 0, half, 0.06, mix(wall, _BLACK, 0.3)))
    slope = ((-half - 0.1, eaves), (half + 0.1, eaves), (ridge, 0.96), (-ridge, 0.96))
    shapes.append(_poly(mix(roof, _BLACK, 0.15), *slope))
    for step in (0.25, 0.5, 0.75):  # courses of tiles
        width = (half + 0.1) * (1 - step) + ridge * step
        height = eaves + (0.96 - eaves) * step
        shapes.append(_box(-width, height, width, height + 0.022, mix(roof, _BLACK, 0.4)))
    door = brush.uniform(-0.5, 0.3) * half
    shapes.append(_box(door, 0, door + 0.15, 0.31, mix(brush.color(), _BLACK, 0.35)))
    glass = (250.0, 220.0, 140.0) if brush.chance(0.4) else _GLASS
    for x in (-half * 0.86, half * 0.5, -half * 0.18):
        if not door - 0.16 < x < door + 0.17:
            shapes.append(_box(x - 0.02, 0.19, x + 0.16, 0.41, frame))
            shapes.append(_box(x + 0.005, 0.215, x + 0.135, 0.385, glass))
    return shapes


def _tree(brush: Brush) -> list[Polygon]:
    leaf = (70.0, 130.0, 60.0) if brush.chance(0.6) else brush.color()
    leaf = mix(leaf, brush.color(), 0.2)
    bark = mix((104, 76, 56), brush.color(), 0.15)
    shapes = [_poly(bark, (-0.07, 0), (0.07, 0), (0.035, 0.5), (-0.035, 0.5))]
    if brush.chance(0.4):
        for step in range(4):
            width, foot = 0.33 - 0.065 * step, 0.16 + 0.18 * step
            shade = mix(mix(leaf, _BLACK, 0.35), leaf, step / 3)
            shapes.append(_poly(shade, (-width, foot), (width, foot), (0, min(foot + 0.36, 1.0))))
        return shapes
    crown = [(brush.uniform(-0.2, 0.2), brush.uniform(0.52, 0.82), brush.uniform(0.15, 0.22)) for _ in range(6)]
    crown.append((0.0, 0.64, 0.27))
    shapes += [_disc(x, y - 0.02, r, r * 0.9, mix(leaf, _BLACK, 0.3)) for x, y, r in crown]
    shapes += [_disc(x * 0.9, y + 0.03, r * 0.72, r * 0.62, mix(leaf, _WHITE, 0.05 + 0.1 * y)) for x, y, r in crown]
    return shapes


def _car(brush: Brush) -> list[Polygon]:
    body, van = brush.color(), brush.chance(0.3)
    dark = mix(body, _BLACK, 0.35)
    back = -0.98 if van else -0.62
    shapes = [_poly(body, (back, 0.5), (back + 0.12, 1.0), (0.28, 1.0), (0.6, 0.58), (0.6, 0.5))]
    low = ((-1.02, 0.16), (-1.02, 0.56), (-0.9, 0.62), (0.6, 0.62), (0.98, 0.5), (1.04, 0.16))
    shapes += [_poly(body, *low), _box(-1.02, 0.16, 1.04, 0.27, dark)]
    shapes.append(_poly(_GLASS, (back + 0.12, 0.6), (back + 0.2, 0.91), (-0.1, 0.91), (-0.1, 0.6)))
    shapes.append(_poly(_GLASS, (-0.02, 0.6), (-0.02, 0.91), (0.24, 0.91), (0.47, 0.6)))
    shapes += [_disc(0.94, 0.42, 0.07, 0.06, (255, 240, 180)), _box(-1.03, 0.4, -0.95, 0.52, (220, 60, 50))]
    for x in (-0.56, 0.58):
        shapes += [_disc(x, 0.2, 0.22, 0.22, _BLACK), _disc(x, 0.2, 0.1, 0.1, (196, 198, 202))]
    return shapes


def _boat(brush: Brush) -> list[Polygon]:
    hull, sail = brush.color(), mix(brush.color(), _WHITE, brush.uniform(0.1, 0.8))
    shapes = [_poly(hull, (-0.5, 0.2), (0.54, 0.22), (0.34, 0.0), (-0.38, 0.0)), _box(-0.47, 0.15, 0.47, 0.19, _WHITE)]
    if brush.chance(0.3):
        cabin = mix(_WHITE, brush.color(), 0.2)
        shapes.append(_poly(cabin, (-0.3, 0.2), (0.22, 0.2), (0.1, 0.46), (-0.3, 0.46)))
        shapes.append(_box(-0.18, 0.46, -0.04, 0.66, hull))
        return shapes + [_box(x, 0.29, x + 0.1, 0.39, _GLASS) for x in (-0.25, -0.11, 0.03)]
    shapes.append(_box(-0.025, 0.18, 0.025, 1.0, (96, 74, 58)))
    shapes.append(_poly(sail, (0.035, 0.27), (0.035, 0.97), (0.44, 0.29)))
    shapes.append(_poly(brush.color(), (0.035, 0.42), (0.035, 0.54), (0.285, 0.54), (0.36, 0.42)))
    shapes.append(_poly(mix(sail, _BLACK, 0.12), (-0.035, 0.3), (-0.035, 0.88), (-0.36, 0.31)))
    return shapes


def _person(brush: Brush) -> list[Polygon]:
    shirt, trousers = brush.color(), mix(brush.color(), _BLACK, 0.35)
    skin = mix((242, 204, 172), (108, 72, 52), brush.uniform(0, 1))
    hair = mix((40, 30, 28), (190, 140, 80), brush.uniform(0, 1))
    step, lift = brush.uniform(0.02, 0.1), brush.uniform(0.3, 0.78)
    shapes = [
        _poly(trousers, (side * 0.13, 0.5), (0, 0.5), (side * step, 0.04), (side * (step + 0.1), 0.04))
        for side in (-1, 1)
    ]
    shapes += [_box(side * (step + 0.05) - 0.07, 0, side * (step + 0.05) + 0.07, 0.06, _BLACK) for side in (-1, 1)]
    for side, hand in ((-1, lift), (1, brush.uniform(0.36, 0.44))):
        sleeve = ((side * 0.12, 0.79), (side * 0.12, 0.66), (side * 0.28, hand), (side * 0.34, hand + 0.06))
        shapes.append(_poly(mix(shirt, _BLACK, 0.15), *sleeve))
        shapes.append(_disc(side * 0.31, hand + 0.02, 0.05, 0.05, skin))
    shapes.append(_poly(shirt, (-0.16, 0.46), (0.16, 0.46), (0.19, 0.76), (0.12, 0.81), (-0.12, 0.81), (-0.19, 0.76)))
    return [*shapes, _disc(0, 0.91, 0.125, 0.125, hair), _disc(0, 0.88, 0.105, 0.1, skin)]


def _ball(brush: Brush) -> list[Polygon]:
    colors = (brush.color(), _WHITE, brush.color(), _WHITE, brush.color(), _WHITE)
    turn = brush.uniform(0, 1)
    shapes = [_disc(0, 0.5, 0.5, 0.5, _WHITE)]
    shapes += [_disc(0, 0.5, 0.5, 0.5, color, turn + i / 6, turn + (i + 1) / 6) for i, color in enumerate(colors)]
    return [*shapes, _disc(0, 0.5, 0.1, 0.1, colors[0])]


def _kite(brush: Brush) -> list[Polygon]:
    colors = (brush.color(), brush.color())
    rim, cross = [(0.0, 1.0), (0.34, 0.66), (0.0, 0.2), (-0.34, 0.66), (0.0, 1.0)], (0.0, 0.66)
    shapes = [_poly(colors[number % 2], *corners, cross) for number, corners in enumerate(pairwise(rim))]
    bow = np.array([(-0.1, 0.07), (-0.1, -0.07), (0.1, 0.07), (0.1, -0.07)])
    for number in range(3):  # on the tail
        middle = (0.06 * (-1) ** number, 0.14 - 0.15 * number)
        shapes.append((bow + middle, colors[1 - number % 2]))
    turn = brush.uniform(-0.6, 0.6)
    rotation = np.array([(np.cos(turn), -np.sin(turn)), (np.sin(turn), np.cos(turn))])
    return [((points - (0, 0.5)) @ rotation + (0, 0.5), color) for points, color in shapes]


def _balloon(brush: Brush) -> list[Polygon]:
    colors = (brush.color(), brush.color())
    turn = np.linspace(-0.13, 0.63, 21) * 2 * np.pi
    outline = np.stack([0.37 * np.cos(turn), 0.63 + 0.37 * np.sin(turn)], axis=1)
    outline = np.vstack([outline, [(-0.09, 0.2), (0.09, 0.2)]])
    shapes: list[Polygon] = [_poly((92, 76, 64), (-0.09, 0.22), (0.09, 0.22), (0.06, 0.1), (-0.06, 0.1))]
    for number, width in enumerate((1.0, 0.74, 0.46, 0.17)):  # gores
        shapes.append((outline * (width, 1.0), colors[number % 2]))
    return [*shapes, _box(-0.09, 0.0, 0.09, 0.13, (132, 92, 58)), _box(-0.1, 0.1, 0.1, 0.14, (96, 66, 44))]


class Thing(NamedTuple):
    """How a class is drawn and where it may stand: height and half width in image heights, stuff below it, depth."""

    draw: Callable[[Brush], list[Polygon]]
    height: float
    half_width: float  # per unit of height
    ground: tuple[str, ...]
    depth: tuple[float, float]  # within its ground, 0 far and 1 near
    most: int


THINGS: dict[str, Thing] = {
    "house": Thing(_house, 0.34, 0.6, ("grass", "sand"), (0.05, 0.5), 3),
    "tree": Thing(_tree, 0.4, 0.36, ("grass", "sand"), (0.05, 0.9), 4),
    "car": Thing(_car, 0.155, 1.0, ("road",), (0.35, 0.9), 3),
    "boat": Thing(_boat, 0.3, 0.5, ("water",), (0.25, 0.9), 3),
    "person": Thing(_person, 0.26, 0.3, ("grass", "sand", "road"), (0.2, 0.95), 4),
    "ball": Thing(_ball, 0.11, 0.5, ("grass", "sand"), (0.45, 0.95), 3),
    "kite": Thing(_kite, 0.2, 0.36, ("sky",), (0.0, 1.0), 3),
    "balloon": Thing(_balloon, 0.3, 0.37, ("sky",), (0.0, 1.0), 3),
}
