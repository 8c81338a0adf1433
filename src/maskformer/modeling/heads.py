"""From per-segment embeddings to predictions: the class predictor, the mask embedder and the one product that makes
masks (paper section 3.3, "Segmentation module").

Shape letters: B batch, Q queries, C classes, D decoder width, E mask embedding, h w stride-4 map.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MaskEmbedder(nn.Sequential):
    """MLP with two hidden layers and ReLU, [.., D] -> [.., E]."""

    def __init__(self, width: int, mask_width: int, num_layers: int = 3):
        widths = [width] * num_layers + [mask_width]
        blocks: list[nn.Module] = [
            nn.Sequential(nn.Linear(widths[i], widths[i + 1]), nn.ReLU() if i + 1 < num_layers else nn.Identity())
            for i in range(num_layers)
        ]
        super().__init__(*blocks)


def predict_masks(mask_embeddings: Tensor, pixel_embeddings: Tensor) -> Tensor:
    """Mask logits [B, Q, h, w]: the product of [B, Q, E] with [B, E, h, w]."""
    return torch.einsum("bqe,behw->bqhw", mask_embeddings, pixel_embeddings)
