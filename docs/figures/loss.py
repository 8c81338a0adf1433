"""Draw who answers for whom: targets of a drawn scene, the queries matched with them, and their losses.

python docs/figures/loss.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from maskformer import MaskFormerImageProcessor, load_model
from maskformer.checkpoints.loading import resolve_checkpoint
from maskformer.data.scenes import CLASSES, draw_scene
from maskformer.losses import dice_loss, sigmoid_focal_loss

OUT = Path(__file__).parent.parent / "images" / "loss.png"
SEED, SHOWN = 10_000_003, 6


def main() -> None:
    scene = draw_scene(SEED)
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
    order = masks.flatten(1).sum(1).argsort(descending=True)
    shown = order[torch.linspace(0, len(order) - 1, SHOWN).round().long()].tolist()  # from large to small
    query_of = dict(zip(targets.tolist(), queries.tolist(), strict=True))
    figure, axes = plt.subplots(
        3, SHOWN, figsize=(2.05 * SHOWN, 4.7), layout="constrained", facecolor="white", height_ratios=(1, 1, 0.62)
    )
    for column, target in enumerate(shown):
        query, label = query_of[target], int(labels[target])
        mask, logit = masks[target].flatten()[None], logits[query].flatten()[None]
        focal, dice = float(sigmoid_focal_loss(logit, mask)), float(dice_loss(logit, mask))
        color = np.array(CLASSES[label].color) / 255
        tinted = scene.image / 255 * 0.45 + 0.55
        tinted[masks[target].numpy()] = scene.image[masks[target].numpy()] / 255 * 0.45 + color * 0.55
        axes[0, column].imshow(tinted)
        axes[0, column].set_title(f"target: {CLASSES[label].name}", fontsize=11)
        axes[1, column].imshow(logits[query].sigmoid(), cmap="gray", vmin=0, vmax=1)
        axes[1, column].set_title(f"query {query}", fontsize=11)
        best = probs[query]
        lines = (
            f"class: {best[label]:.0%} {CLASSES[label].name}",
            f"cross entropy {-float(best[label].log()):.2f}",
            f"focal {focal:.4f}",
            f"dice {dice:.2f}",
        )
        axes[2, column].text(0.5, 0.98, "\n".join(lines), ha="center", va="top", fontsize=10.5, linespacing=1.6)
    for axis in axes.flat:
        axis.set_axis_off()
    figure.get_layout_engine().set(h_pad=0.02, hspace=0.0)
    figure.savefig(OUT, dpi=110)


if __name__ == "__main__":
    main()
