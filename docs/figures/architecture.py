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
WIDTH, HEIGHT = 1036, 524


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
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="{self.palette.page}"/>'
        )
        return head + "\n".join(self.parts) + "</svg>\n"


def draw(palette: Palette) -> str:
    pixel, segment, both = palette.pixel, palette.segment, palette.both
    d = Drawing(palette)
    # The pixel side, above.
    d.box(16, 96, 104, 84, "image", "pixel_values", palette.page, "")
    d.shape(68, 200, "[B, 3, H, W]")
    d.box(158, 84, 150, 108, "backbone", "encoder", pixel, "modeling.backbones.build_backbone", "Swin or ResNet")
    d.box(392, 84, 170, 108, "pixel decoder", "decoder", pixel, "modeling.pixel_decoder.PixelDecoder", "FPN")
    d.box(650, 96, 176, 84, "per-pixel embeddings", "pixel_embeddings", palette.page, "")
    d.shape(738, 200, "[B, E, h, w]")
    d.arrow((120, 138), (156, 138))
    for row, stride in enumerate((4, 8, 16, 32)):
        y = 102 + 24 * row
        d.arrow((308, y), (390, y))
        d.shape(350, y - 5, f"1/{stride}")
    d.arrow((562, 138), (648, 138))
    d.text(233, 70, "model.pixel_level_module", 12, palette.faint, mono=True)
    # The segment side, below: the decoder reads the backbone's smallest map.
    d.box(158, 350, 150, 84, "queries", "queries_embedder", segment, "modeling.transformer_decoder.TransformerModule")
    d.shape(233, 454, "[Q, D] learned")
    d.box(
        392, 338, 170, 108, "transformer decoder", "decoder",
        segment, "modeling.transformer_decoder.TransformerDecoder", "6 layers, as DETR's",
    )  # fmt: skip
    d.arrow((308, 392), (390, 392))
    d.arrow((350, 174), (350, 270), (477, 270), (477, 336))
    d.shape(414, 262, "smallest map")
    d.text(477, 470, "model.transformer_module", 12, palette.faint, mono=True)
    d.shape(598, 384, "[B, Q, D]")
    d.box(650, 308, 176, 72, "mask embedder", "mask_embedder", segment, "modeling.heads.MaskEmbedder")
    d.box(650, 410, 176, 72, "class predictor", "class_predictor", segment, "MaskFormerForInstanceSegmentation")
    d.arrow((562, 392), (636, 392), (636, 344), (648, 344))
    d.arrow((636, 392), (636, 446), (648, 446))
    # Their product.
    d.parts.append(f'<circle cx="738" cy="252" r="19" fill="{both}" stroke="{palette.line}" stroke-width="1.2"/>')
    d.text(738, 258, "×", 20, bold=True)
    d.arrow((738, 208), (738, 231))
    d.arrow((738, 308), (738, 273))
    d.shape(780, 298, "[B, Q, E]")
    d.box(856, 216, 164, 72, "masks", "masks_queries_logits", both, "MaskFormerForInstanceSegmentationOutput")
    d.shape(938, 308, "[B, Q, h, w]")
    d.box(856, 410, 164, 72, "classes", "class_queries_logits", both, "MaskFormerForInstanceSegmentationOutput")
    d.shape(938, 502, "[B, Q, C + 1]")
    d.arrow((757, 252), (854, 252))
    d.arrow((826, 446), (854, 446))
    said = "one mask and one class per query: semantic, instance and panoptic segmentation by the same network"
    d.text(WIDTH / 2, 34, said, 15)
    return d.svg()


if __name__ == "__main__":
    for name, palette in PALETTES.items():
        (OUT / f"architecture-{name}.svg").write_text(draw(palette), encoding="utf-8")
