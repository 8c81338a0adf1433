"""Draw how the loss works on drawn scenes: who answers for whom and what it costs, and how the matching found that out.

python docs/figures/loss.py
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import PowerNorm
from matplotlib.patches import Rectangle
from torch import Tensor

from maskformer import MaskFormerImageProcessor, load_model
from maskformer.checkpoints.loading import resolve_checkpoint
from maskformer.data.scenes import CLASSES, Scene, draw_scene
from maskformer.losses import dice_loss, pairwise_dice_cost, pairwise_focal_cost, sigmoid_focal_loss

IMAGES = Path(__file__).parent.parent / "images"
SHOWN = 6
PALETTES = {"light": ("#ffffff", "#1d2433"), "dark": ("#171b24", "#edf0f6")}  # page, text


@dataclass
class Matched:
    """A scene, what the bundled model says of it, and who was matched with whom."""

    scene: Scene
    masks: Tensor  # [N, H, W]
    labels: Tensor  # [N]
    small: Tensor  # [Q, h, w] mask logits
    logits: Tensor  # [Q, H, W]
    probs: Tensor  # [Q, C + 1]
    query_of: dict[int, int]

    def tinted(self, target: int) -> np.ndarray:
        """The picture, pale but for the target."""
        color = np.array(CLASSES[int(self.labels[target])].color) / 255
        tinted, inside = self.scene.image / 255 * 0.45 + 0.55, self.masks[target].numpy()
        tinted[inside] = self.scene.image[inside] / 255 * 0.45 + color * 0.55
        return tinted

    def charges(self, target: int) -> str:
        """What the query of a target is charged."""
        query, label = self.query_of[target], int(self.labels[target])
        mask, logit = self.masks[target].flatten()[None], self.logits[query].flatten()[None]
        share = self.probs[query, label]
        return (
            f"class: {share:.0%} {CLASSES[label].name}\ncross entropy {-float(share.log()):.2f}\n"
            f"focal {float(sigmoid_focal_loss(logit, mask)):.4f}\ndice {float(dice_loss(logit, mask)):.2f}"
        )

    def costs(self) -> Tensor:
        """[Q, N]: what the matching minimises, at the size of the predictions."""
        size = self.small.shape[-2:]
        near = torch.nn.functional.interpolate(self.masks[None].float(), size=size)[0].flatten(1)
        masks = self.small.flatten(1)
        return 20 * pairwise_focal_cost(masks, near) + pairwise_dice_cost(masks, near) - self.probs[:, self.labels]


def matched(seed: int) -> Matched:
    scene = draw_scene(seed)
    processor = MaskFormerImageProcessor.from_pretrained(resolve_checkpoint("scenes"))
    model = load_model("scenes").float().eval()
    masks = torch.from_numpy(np.stack([scene.segmentation == segment["id"] for segment in scene.segments]))
    labels = torch.tensor([segment["category_id"] for segment in scene.segments])
    with torch.no_grad():
        output = model(processor(scene.image, return_tensors="pt")["pixel_values"])
        queries, targets = model.matcher(output.masks_queries_logits, output.class_queries_logits, [masks], [labels])[0]
    logits = torch.nn.functional.interpolate(
        output.masks_queries_logits, size=masks.shape[-2:], mode="bilinear", align_corners=False
    )[0]
    probs = output.class_queries_logits[0].softmax(-1)
    pairs = dict(zip(targets.tolist(), queries.tolist(), strict=True))
    return Matched(scene, masks, labels, output.masks_queries_logits[0], logits, probs, pairs)


def draw_charges(found: Matched, mode: str) -> None:
    """loss-MODE.webp: targets from large to small, their queries, and what these are charged."""
    order = found.masks.flatten(1).sum(1).argsort(descending=True)
    shown = order[torch.linspace(0, len(order) - 1, SHOWN).round().long()].tolist()
    figure, axes = plt.subplots(3, SHOWN, figsize=(2.05 * SHOWN, 4.7), layout="constrained", height_ratios=(1, 1, 0.62))
    for column, target in enumerate(shown):
        axes[0, column].imshow(found.tinted(target))
        axes[0, column].set_title(f"target: {CLASSES[int(found.labels[target])].name}", fontsize=11)
        draw_query(axes[1:, column], found, found.query_of[target], found.charges(target))
    for axis in figure.axes:
        axis.set_axis_off()
    figure.get_layout_engine().set(h_pad=0.02, hspace=0.0)
    save(figure, f"loss-{mode}.webp")


def draw_query(axes: np.ndarray, found: Matched, query: int, charges: str) -> None:
    axes[0].imshow(found.logits[query].sigmoid(), cmap="gray", vmin=0, vmax=1)
    axes[0].set_title(f"query {query}", fontsize=11)
    axes[1].text(0.5, 0.98, charges, ha="center", va="top", fontsize=10.5, linespacing=1.6)


def draw_matching(found: Matched, mode: str) -> None:
    """loss-matching-MODE.webp: the costs of all pairs, the cheapest assignment, and the three fates of a query."""
    figure = plt.figure(figsize=(12.3, 5.6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.25))
    axis, costs = left.subplots(), found.costs()
    picture = axis.imshow(costs, cmap="viridis_r", aspect="auto", norm=PowerNorm(0.4, vmin=-1.0))
    for target, query in found.query_of.items():
        axis.add_patch(Rectangle((target - 0.5, query - 0.5), 1, 1, fill=False, edgecolor="#e4572e", linewidth=2))
    names = [CLASSES[int(label)].name for label in found.labels]
    axis.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=9)
    axis.set_ylabel("query", fontsize=10)
    axis.set_title("cost of each query for each target; boxed: the assignment", fontsize=10.5)
    left.colorbar(picture, ax=axis, shrink=0.6)
    dice = {t: float(dice_loss(found.logits[q].flatten()[None], found.masks[t].flatten()[None]))
            for t, q in found.query_of.items()}  # fmt: skip
    free = [query for query in range(len(found.probs)) if query not in found.query_of.values()]
    query = max(free, key=lambda each: float(found.logits[each].sigmoid().mean()))  # the one that claims the most
    fates = [("a good answer", min(dice, key=dice.get)), ("a poor answer", max(dice, key=dice.get))]
    axes = right.subplots(3, 3, height_ratios=(1, 1, 0.62))
    for column, (title, target) in enumerate(fates):
        axes[0, column].imshow(found.tinted(target))
        axes[0, column].set_title(f"{title}: {names[target]}", fontsize=11)
        draw_query(axes[1:, column], found, found.query_of[target], found.charges(target))
    nothing = found.probs[query, -1]
    axes[0, 2].imshow(found.scene.image / 255 * 0.45 + 0.55)
    axes[0, 2].set_title("no target", fontsize=11)
    said = f'class: {nothing:.0%} "no object"\ncross entropy 0.1 x {-float(nothing.log()):.2f}\nits mask is free'
    draw_query(axes[1:, 2], found, query, said)
    for axis in axes.flat:
        axis.set_axis_off()
    save(figure, f"loss-matching-{mode}.webp")


def save(figure: plt.Figure, name: str) -> None:
    figure.savefig(IMAGES / name, dpi=110, pil_kwargs={"quality": 92})
    plt.close(figure)


if __name__ == "__main__":
    scenes = matched(10_000_003), matched(10_000_027)
    for mode, (page, text) in PALETTES.items():
        colors = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.titlecolor"), text)
        plt.rcParams.update({**colors, "figure.facecolor": page, "axes.facecolor": page})
        draw_charges(scenes[0], mode)
        draw_matching(scenes[1], mode)
