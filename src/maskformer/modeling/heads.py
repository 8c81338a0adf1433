"""From per-segment embeddings to predictions: the class predictor, the mask embedder and the one product that makes
masks (paper section 3.3, "Segmentation module").

Shape letters: B batch, Q queries, C classes, D decoder width, E mask embedding, h w stride-4 map.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from maskformer.kernels.dense import Linear, linear


class MaskEmbedder(nn.Sequential):
    """MLP with two hidden layers and ReLU, [.., D] -> [.., E].

    Source: arXiv 2107.06278, section 3.3 (segmentation module).

    Raises:
        Nothing: the model checks its input, before.

    Examples:
        >>> embed = MaskEmbedder(width=32, mask_width=24)
        >>> tuple(embed(torch.zeros(2, 10, 32)).shape)  # [B, Q, E]
        (2, 10, 24)
    """

    def __init__(self, width: int, mask_width: int):
        super().__init__(
            nn.Sequential(Linear(width, width), nn.ReLU()),
            nn.Sequential(Linear(width, width), nn.ReLU()),
            nn.Sequential(Linear(width, mask_width)),
        )


def predict_masks(mask_embeddings: Tensor, pixel_embeddings: Tensor) -> Tensor:
    """Mask logits [B, Q, h, w]: the product of [B, Q, E] with [B, E, h, w]."""
    if not torch.compiler.is_compiling() and len(mask_embeddings) == 1:
        cells = pixel_embeddings[0].permute(1, 2, 0)  # [h, w, E]
        masks = linear(mask_embeddings[0], cells.flatten(0, 1))  # [Q, h * w]
        return masks.unflatten(1, cells.shape[:2])[None]
    return torch.einsum("bqe,behw->bqhw", mask_embeddings, pixel_embeddings)
