"""Sine position encoding of a feature map (DETR, arXiv 2005.12872, section A.4; MaskFormer section 3.3).

Shape letters: B batch, D width, H W the map's size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

TEMPERATURE = 10000.0
EPSILON = 1e-6


def sine_position_encoding(features: Tensor) -> Tensor:
    """Encoding of every cell of `features` [B, D, H, W], as tokens [1, H * W, D] in its type and on its device.

    Cell centres count from 1 and are scaled to (0, 2 pi], first half of the channels for y, second for x. Computed in
    float32 whatever the features are: half precision cannot hold the angles.
    """
    width, height, columns = features.shape[-3:]
    y = _angles(height, width // 2, features.device)  # [H, D / 2]
    x = _angles(columns, width // 2, features.device)  # [W, D / 2]
    y, x = y[:, None].expand(-1, columns, -1), x[None].expand(height, -1, -1)  # [H, W, D / 2] each
    return torch.cat((y, x), dim=-1).flatten(0, 1)[None].to(features.dtype)  # [1, H * W, D]


def _angles(length: int, num_features: int, device: torch.device) -> Tensor:
    position = torch.arange(1, length + 1, dtype=torch.float32, device=device)
    position = position / (length + EPSILON) * (2 * math.pi)
    index = torch.arange(num_features, dtype=torch.float32, device=device)
    frequency = TEMPERATURE ** (2 * torch.div(index, 2, rounding_mode="floor") / num_features)
    angles = position[:, None] / frequency  # [length, D / 2]
    return torch.stack((angles[:, 0::2].sin(), angles[:, 1::2].cos()), dim=-1).flatten(1)
