"""Draw the figure of the architecture (paper, figure 2) with the names of the code, light and dark.

    python docs/figures/architecture.py

Every box that is code leads to its page of the reference.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path

OUT = Path(__file__).parent.parent / "images"
API = "../api/network/#maskformer."
WIDTH, HEIGHT = 1240, 560


@dataclass(frozen=True)
class Palette:
    page: str
    text: str
    faint: str
    line: str
    pixel: str  # the side that works on pixels
    segment: str  # the side that works on segments
    both: str


PALETTES = {
    "light": Palette("#ffffff", "#1d2433", "#5c6579", "#8892a6", "#dbeafe", "#fde7c8", "#dcf3e3"),
    "dark": Palette("#171b24", "#edf0f6", "#a3adc2", "#71809d", "#1f3d66", "#5f431b", "#1e4f35"),
}


class Drawing:
    def __init__(self, palette: Palette):
        self.palette, self.parts = palette, []

    def text(self, x: float, y: float, words: str, size: int = 14, color: str = "", mono: bool = False, bold=False):
        font = "ui-monospace, 'DejaVu Sans Mono', monospace" if mono else "Inter, 'Helvetica Neue', Arial, sans-serif"
        weight = ' font-weight="600"' if bold else ""
        self.parts.append(
            f'<text x="{x}" y="{y}" font-family="{font}" font-size="{size}" text-anchor="middle"{weight} '
            f'fill="{color or self.palette.text}">{escape(words)}</text>'
        )

    def box(self, x: float, y: float, w: float, h: float, title: str, name: str, fill: str, link: str, note: str = ""):
        lines = 1 + bool(name) + bool(note)
        top = y + h / 2 - 9 * (lines - 1) + 5
        if link:
            self.parts.append(f'<a href="{API}{link}" target="_top">')
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="10" fill="{fill}" '
            f'stroke="{self.palette.line}" stroke-width="1.2"><title>{escape(name or title)}</title></rect>'
        )
        self.text(x + w / 2, top, title, 15, bold=True)
        if name:
            self.text(x + w / 2, top + 18, name, 12, mono=True)
        if note:
            self.text(x + w / 2, top + 18 * (lines - 1), note, 12, self.palette.faint)
        if link:
            self.parts.append("</a>")

    def arrow(self, *points: tuple[float, float]):
        path = " L ".join(f"{x} {y}" for x, y in points)
        self.parts.append(
            f'<path d="M {path}" fill="none" stroke="{self.palette.line}" stroke-width="1.8" marker-end="url(#tip)"/>'
        )

    def shape(self, x: float, y: float, words: str):
        self.text(x, y, words, 12, self.palette.faint, mono=True)

    def svg(self) -> str:
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'aria-label="MaskFormer: a backbone and a pixel decoder make per-pixel embeddings, a transformer decoder '
            f'makes per-segment embeddings, and their product makes the masks">'
            f'<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            f'orient="auto"><path d="M 0 0 L 8 4 L 0 8 z" fill="{self.palette.line}"/></marker></defs>'
            f'<rect width="{WIDTH}" height="{HEIGHT}" rx="14" fill="{self.palette.page}"/>'
        )
        return head + "\n".join(self.parts) + "</svg>\n"


def draw(palette: Palette) -> str:
    pixel, segment, both = palette.pixel, palette.segment, palette.both
    d = Drawing(palette)
    # The pixel side, above.
    d.box(24, 96, 104, 84, "image", "pixel_values", palette.page, "")
    d.shape(76, 200, "[B, 3, H, W]")
    d.box(190, 84, 170, 108, "backbone", "encoder", pixel, "modeling.backbones.build_backbone", "Swin or ResNet")
    d.box(470, 84, 190, 108, "pixel decoder", "decoder", pixel, "modeling.pixel_decoder.PixelDecoder", "FPN")
    d.box(800, 96, 190, 84, "per-pixel embeddings", "pixel_embeddings", palette.page, "")
    d.shape(895, 200, "[B, E, h, w]")
    d.arrow((128, 138), (188, 138))
    for row, stride in enumerate((4, 8, 16, 32)):
        y = 102 + 24 * row
        d.arrow((360, y), (468, y))
        d.shape(414, y - 5, f"1/{stride}")
    d.arrow((660, 138), (798, 138))
    d.text(275, 70, "model.pixel_level_module", 12, palette.faint, mono=True)
    # The segment side, below: the decoder reads the backbone's lowest map.
    d.box(190, 390, 170, 84, "queries", "queries_embedder", segment, "modeling.transformer_decoder.TransformerModule")
    d.shape(275, 494, "[Q, D] learned")
    d.box(
        470, 378, 190, 108, "transformer decoder", "decoder",
        segment, "modeling.transformer_decoder.TransformerDecoder", "6 layers, as DETR's",
    )  # fmt: skip
    d.arrow((360, 432), (468, 432))
    d.arrow((414, 174), (414, 290), (565, 290), (565, 376))
    d.shape(492, 282, "lowest map")
    d.text(565, 512, "model.transformer_module", 12, palette.faint, mono=True)
    d.shape(698, 424, "[B, Q, D]")
    d.box(800, 310, 190, 72, "mask embedder", "mask_embedder", segment, "modeling.heads.MaskEmbedder")
    d.box(800, 440, 190, 72, "class predictor", "class_predictor", segment, "MaskFormerForInstanceSegmentation")
    d.arrow((660, 432), (740, 432), (740, 346), (798, 346))
    d.arrow((740, 432), (740, 476), (798, 476))
    # Their product.
    d.parts.append(f'<circle cx="895" cy="252" r="19" fill="{both}" stroke="{palette.line}" stroke-width="1.2"/>')
    d.text(895, 258, "×", 20, bold=True)
    d.arrow((895, 208), (895, 231))
    d.arrow((895, 310), (895, 273))
    d.shape(945, 298, "[B, Q, E]")
    d.box(1040, 216, 178, 72, "masks", "masks_queries_logits", both, "MaskFormerForInstanceSegmentationOutput")
    d.shape(1129, 308, "[B, Q, h, w]")
    d.box(1040, 440, 178, 72, "classes", "class_queries_logits", both, "MaskFormerForInstanceSegmentationOutput")
    d.shape(1129, 532, "[B, Q, C + 1]")
    d.arrow((914, 252), (1038, 252))
    d.arrow((990, 476), (1038, 476))
    d.text(
        620,
        34,
        "one mask and one class per query: semantic, instance and panoptic segmentation by the same network",
        15,
    )
    return d.svg()


if __name__ == "__main__":
    for name, palette in PALETTES.items():
        (OUT / f"architecture-{name}.svg").write_text(draw(palette), encoding="utf-8")
