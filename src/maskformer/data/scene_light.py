"""The light of drawn scenes: sky and clouds, the texture of the ground, shading, shadows, haze and sensor noise.

It works on the averaged flat colours of the polygons. Everything but the noise is measured in image heights, so that a
scene looks alike at every size. H W image, P pieces.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

FloatMap = NDArray[np.float32]
Masks = dict[str, NDArray[np.bool_]]
Numbers = NDArray[np.uint8]  # [H, W]: the piece of every pixel, counted from 1


class Light(NamedTuple):
    """Where the light comes from and what it does to colours (0 to 255); lengths in image heights."""

    zenith: tuple[float, float, float]
    haze: tuple[float, float, float]  # the sky at the horizon, and what distance fades to
    tint: tuple[float, float, float]  # factors of red, green, blue
    horizon: float
    sun: tuple[float, float]  # x, y
    clouds: float  # 0 none, 1 overcast
    noise: float  # standard deviation in grey levels


class Outline(NamedTuple):
    """Where one piece stands: middle, foot, half width and height. Stuff keeps the defaults, which fill the picture."""

    x: float = 0.0
    foot: float = 1.0
    half_width: float = 1e6
    height: float = 1e6
    isthing: bool = False
    airborne: bool = False


def illuminate(
    flat: FloatMap, surface: Masks, numbers: Numbers, outlines: list[Outline], light: Light, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Turn flat colours [3, H, W] (the sky's are final, see `paint_sky`) into the picture uint8 [H, W, 3].

    `surface` holds a mask [H, W] for every class in sight; `numbers` [H, W] counts the pieces in `outlines` from 1.
    """
    height, width = numbers.shape
    y = (np.arange(height, dtype=np.float32)[:, None] + 0.5) / height  # [H, 1]
    x = (np.arange(width, dtype=np.float32)[None, :] + 0.5) / height  # [1, W]
    near = np.clip((y - light.horizon) / (1 - light.horizon), 0, 1)  # [H, 1]: 0 at the horizon
    shade = (1 + _texture(surface, near, x, rng)) * (0.9 + 0.16 * near)
    shade += _modelling(numbers, outlines, light, x, y)
    isthing = np.array([False, *(entry.isthing for entry in outlines)])[numbers]
    shade *= 1 - _shadows(numbers, outlines, light) * ~isthing
    # Distance takes the colour of the sky. A thing is as far away as its foot, not as each of its pixels.
    feet = np.array([0, *(1 if entry.airborne else entry.foot for entry in outlines)], np.float32)[numbers]
    veil = np.where(isthing, np.clip((feet - light.horizon) / (1 - light.horizon), 0, 1), near)
    veil = 0.4 * (1 - veil) ** 4
    shade[surface["sky"]] = 1
    for name in {"sky", "mountain"} & surface.keys():
        veil[surface[name]] = 0
    shade *= 1 - veil
    noise = light.noise * rng.standard_normal((height, width), dtype=np.float32)
    picture = np.empty((height, width, 3), np.uint8)
    for channel, (haze, tint) in enumerate(zip(light.haze, light.tint, strict=True)):
        plane = (flat[channel] * shade + np.float32(haze) * veil) * np.float32(tint) + noise
        picture[..., channel] = np.clip(plane, 0, 255, out=plane)
    return picture


def paint_sky(light: Light, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """The whole picture as sky, RGB of `size` (height, width): a gradient, the sun's glow, clouds lit from above.

    Everything in it is smooth, so it is computed for every fourth pixel of that size and enlarged.
    """
    height, width = max(size[0] // 4, 8), max(size[1] // 4, 8)
    y = (np.arange(height, dtype=np.float32)[:, None] + 0.5) / height
    x = (np.arange(width, dtype=np.float32)[None, :] + 0.5) / height
    depth = np.clip(y / light.horizon, 0, 1) ** np.float32(1.3)  # [h, 1]
    distance = np.hypot(x - light.sun[0], y - light.sun[1])  # [h, w]
    glow = np.clip(0.55 * np.exp(-distance / 0.16) + np.clip((0.05 - distance) * 100, 0, 1), 0, 1)
    cells = ((5, 6), (14, 9), (36, 26))
    broad, puffs, wisps = (_noise(rng, count, (height, width)) for count in cells)
    billows = 1.1 * broad + 0.7 * puffs + 0.3 * wisps
    cover = np.clip((billows - 0.42 + 0.6 * light.clouds) * 3.2, 0, 1) * (0.85 - 0.5 * depth)
    relief = 22 * np.clip(2 * billows, -1, 1)
    picture = np.empty((height, width, 3), np.uint8)
    for channel, (zenith, haze, sun) in enumerate(zip(light.zenith, light.haze, (255, 250, 226), strict=True)):
        plane = zenith + (haze - zenith) * depth
        plane = plane + (0.45 * haze + 140 - relief - plane) * cover
        plane = plane + (sun - plane) * glow
        picture[..., channel] = np.clip(plane, 0, 255)
    return Image.fromarray(picture).resize((size[1], size[0]), Image.Resampling.BICUBIC)


def _noise(rng: np.random.Generator, cells: tuple[float, float], shape: tuple[int, ...]) -> FloatMap:
    """Smooth noise [H, W] between about -0.5 and 0.5, with that many cells per image height downwards and across."""
    rows, columns = cells[0], cells[1] * shape[1] / shape[0]
    grid = rng.random((max(round(rows), 2), max(round(columns), 2)), dtype=np.float32) - np.float32(0.5)
    return np.asarray(Image.fromarray(grid).resize((shape[1], shape[0]), Image.Resampling.BICUBIC))


def _texture(surface: Masks, near: FloatMap, x: FloatMap, rng: np.random.Generator) -> FloatMap:
    """[H, W]: what each class does to its brightness; this and the place, not the colour, tell the stuff classes."""
    shape = (near.shape[0], x.shape[1])
    # Rows are taken denser towards the horizon, which is all the perspective a ripple or a blade of grass needs.
    rows = (near[:, 0] ** 0.65 * (shape[0] - 1)).astype(np.intp)  # [H]
    broad, grain = _noise(rng, (5, 6), shape), _noise(rng, (130, 130), shape)
    clump = _noise(rng, (26, 26), shape)
    shade = grain * np.float32(0.07)
    lag = max(shape[0] // 60, 1)  # pixels over which a fold of the mountain is compared with itself: its slope
    for name, mask in surface.items():
        if name == "grass":
            value = 0.54 * _noise(rng, (34, 120), shape)[rows] * (0.55 + 0.75 * near) + 0.22 * broad
        elif name == "water":
            ripples = _noise(rng, (62, 9), shape)[rows]
            value = 0.5 * ripples + 0.5 * np.maximum(ripples - 0.24, 0) * 4
        elif name == "sand":
            dunes = np.sin(46 * near**0.7 + 9 * broad + 3 * x)
            value = 0.26 * grain + 0.06 * dunes * (0.3 + near)
        elif name == "mountain":
            folds = _noise(rng, (6, 13), shape) + 0.35 * clump
            slope = np.clip(1.6 * (folds[:, lag:] - folds[:, :-lag]), -0.24, 0.24) + 0.2 * grain[:, lag:]
            value = np.pad(slope, ((0, 0), (lag, 0)), mode="edge")
        elif name == "tree":
            value = 0.5 * clump + 0.2 * grain
        elif name == "road":
            value = 0.16 * grain + 0.08 * broad
        else:
            continue
        np.copyto(shade, value, where=mask)
    return shade


def _modelling(numbers: Numbers, outlines: list[Outline], light: Light, x: FloatMap, y: FloatMap) -> FloatMap:
    """[H, W]: things are brighter on the side of the sun and towards their top."""
    table = np.array([(0, 0, 1e6, 1e6), *(entry[:4] for entry in outlines)], np.float32)  # [P + 1, 4]
    middle, foot, half_width, height = (table[:, column][numbers] for column in range(4))
    side = np.sign(light.sun[0] - table[:, 0])[numbers]
    across = np.clip((x - middle) / half_width, -1, 1) * side
    upwards = np.clip((foot - y) / height, 0, 1) - 0.5
    return 0.2 * across + np.where(height < 1e5, 0.14 * upwards, 0)


def _shadows(numbers: Numbers, outlines: list[Outline], light: Light) -> FloatMap:
    """[H, W]: how much light is missing (0 to 0.45): soft ellipses at the feet, away from the sun."""
    height, width = numbers.shape
    canvas = Image.new("L", (width, height))
    draw = ImageDraw.Draw(canvas)
    for body in outlines:
        if not body.isthing or body.airborne:
            continue
        away = np.sign(body.x - light.sun[0]) * body.half_width * 0.45
        reach, thick = body.half_width * 1.1, body.height * 0.055 + 0.004
        x, y = body.x + away, body.foot
        draw.ellipse([(x - reach) * height, (y - thick) * height, (x + reach) * height, (y + thick) * height], fill=115)
    return np.asarray(canvas.filter(ImageFilter.BoxBlur(0.008 * height)), np.float32) / np.float32(255)
