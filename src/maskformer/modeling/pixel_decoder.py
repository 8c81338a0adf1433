"""The pixel decoder: backbone maps in, per-pixel embeddings out (paper sections 3.3 and 4.1, "Pixel decoder").

Two kinds: a light feature pyramid, and the same with a transformer encoder on the lowest map (the authors' "+ 6 Enc"
models, which also hand the encoder's output to the transformer decoder).

Shape letters: B batch, F pyramid width, E mask embedding, h w stride-4 map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from maskformer.kernels.dense import Conv2d
from maskformer.modeling.attention import TransformerLayer
from maskformer.modeling.position import sine_position_encoding
from maskformer.modeling.recomputation import Recomputing

GROUPS = 32


class PixelDecoderOutput(NamedTuple):
    """Per-pixel embeddings [B, E, h, w], the map the transformer decoder reads, and the pyramid's three maps."""

    pixel_embeddings: Tensor
    transformer_features: Tensor
    hidden_states: tuple[Tensor, ...]


def _convolution(in_width: int, width: int, kernel: int, *activation: nn.Module) -> nn.Sequential:
    convolution = Conv2d(in_width, width, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.GroupNorm(GROUPS, width), *activation)


class FPNLayer(nn.Module):
    """One step down the pyramid: the map above, enlarged with nearest, plus the projected backbone map."""

    def __init__(self, lateral_width: int, width: int):
        super().__init__()
        self.proj = _convolution(lateral_width, width, 1)
        self.block = _convolution(width, width, 3, nn.ReLU(inplace=True))

    def forward(self, above: Tensor, lateral: Tensor) -> Tensor:
        lateral = self.proj(lateral)
        lateral += F.interpolate(above, size=lateral.shape[-2:], mode="nearest")
        return self.block(lateral)


class FPN(nn.Module):
    """Top-down path over maps of rising stride; returns the maps from the lowest lateral to stride 4."""

    def __init__(self, lateral_widths: Sequence[int], lowest_width: int, width: int):
        super().__init__()
        self.stem = _convolution(lowest_width, width, 3, nn.ReLU(inplace=True))
        self.layers = nn.ModuleList(FPNLayer(lateral, width) for lateral in reversed(lateral_widths))

    def forward(self, laterals: Sequence[Tensor], lowest: Tensor) -> tuple[Tensor, ...]:
        maps = [self.stem(lowest)]
        for layer, lateral in zip(self.layers, reversed(laterals), strict=True):
            maps.append(layer(maps[-1], lateral))
        return tuple(maps[1:])


class EncoderLayer(TransformerLayer):
    """Self-attention over the cells of the lowest map, then the feed-forward block."""

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        return self.feed_forward(self.attend(tokens, positions))


class PixelEncoder(Recomputing):
    """Transformer encoder over a map [B, F, H, W]; no norm at the end (the authors normalise after each sum)."""

    def __init__(self, layers: Sequence[EncoderLayer]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, features: Tensor) -> Tensor:
        positions = sine_position_encoding(features)
        tokens = features.flatten(2).transpose(1, 2)  # [B, H * W, F]
        for layer in self.layers:
            tokens = self.run(layer, tokens, positions)
        return tokens.transpose(1, 2).unflatten(2, features.shape[-2:])  # [B, F, H, W]


class PixelDecoder(nn.Module):
    """Pyramid and mask projection; with an encoder, the lowest map is projected and encoded first.

    Source: arXiv 2107.06278, sections 3.3 and 4.1 (pixel decoder); arXiv 1612.03144, section 3.

    Raises:
        ValueError: the pyramid's width is not a multiple of 32, the number of groups of its norms.

    Examples:
        >>> decoder = PixelDecoder([8, 16, 32, 64], width=32, mask_width=24)
        >>> maps = [torch.zeros(1, 8 * 2**level, 32 // 2**level, 48 // 2**level) for level in range(4)]
        >>> tuple(decoder(maps).pixel_embeddings.shape)  # [B, E, h, w]
        (1, 24, 32, 48)
    """

    def __init__(
        self, backbone_widths: Sequence[int], width: int, mask_width: int, encoder: PixelEncoder | None = None
    ):
        super().__init__()
        if width % GROUPS:
            raise ValueError(
                f"fpn_feature_size is {width}, expected a multiple of {GROUPS}, the groups of the group norms"
            )
        lowest_width = backbone_widths[-1]
        self.input_projection = Conv2d(lowest_width, width, 1) if encoder is not None else None
        self.encoder = encoder
        self.transformer_width = lowest_width if encoder is None else width
        self.fpn = FPN(backbone_widths[:-1], self.transformer_width, width)
        self.mask_projection = Conv2d(width, mask_width, 3, padding=1)

    def forward(self, feature_maps: Sequence[Tensor]) -> PixelDecoderOutput:
        lowest = feature_maps[-1]
        if self.encoder is not None and self.input_projection is not None:
            lowest = self.encoder(self.input_projection(lowest))
        maps = self.fpn(feature_maps[:-1], lowest)
        return PixelDecoderOutput(self.mask_projection(maps[-1]), lowest, maps)
