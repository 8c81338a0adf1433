"""ResNet (He et al., arXiv 1512.03385), 18 to 152 layers, the paper's convolutional backbone (section 4.1).

Two families share this file. transformers' has trainable batch normalisation. The authors' has a normalisation of
constants ("frozen") and, in the variant they call R101c, a stem of three 3x3 convolutions and a dilated last stage
(DeepLab's, arXiv 1706.05587). Module names are the published checkpoints'; the three convolutions of the "c" stem are
`embedder.embedder.0` to `.2`.

B batch, H W image, h w size of a map, C channels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from maskformer.kernels.dense import Conv2d
from maskformer.modeling.backbones.contract import FeatureMaps, check_four_stages, check_pixel_values
from maskformer.modeling.recomputation import Recomputing

# DeepLabv3's "multi grid" for the blocks of the last stage, whose stride stays 32.
MULTI_GRID = (1, 2, 4)
# Channels that a bottleneck's 3x3 convolution works on, as a fraction of the block's.
BOTTLENECK_REDUCTION = 4


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation whose four tensors are constants, in training too: buffers, which no optimizer ever sees."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, features: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C, h, w]."""
        # One multiply-add, which keeps nothing for the backward pass but C numbers. They are made in float32 whatever
        # the precision of the module and rounded once.
        scale = self.weight * (self.running_var.float() + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        scale, shift = (each.to(features.dtype).view(1, -1, 1, 1) for each in (scale, shift))  # [C] -> [1, C, 1, 1]
        return torch.addcmul(shift, features, scale)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}"


@dataclass(frozen=True)
class LayerOptions:
    """What all residual layers of one ResNet share.

    `norm` makes a normalisation for so many channels. `downsample_in_bottleneck` puts a bottleneck's stride into its
    first 1x1 convolution (the paper's arrangement) instead of the 3x3 (everybody's since).
    """

    activation: nn.Module
    norm: Callable[[int], nn.Module]
    layer_type: Literal["basic", "bottleneck"]
    downsample_in_bottleneck: bool


class ConvNorm(nn.Module):
    """Convolution without bias, normalisation, activation: [B, C_in, h, w] -> [B, C_out, h', w']."""

    def __init__(self, convolution: nn.Conv2d, options: LayerOptions, activation: nn.Module) -> None:
        super().__init__()
        self.convolution = convolution
        self.normalization = options.norm(convolution.out_channels)
        self.activation = activation

    def forward(self, features: Tensor) -> Tensor:
        return self.activation(self.normalization(self.convolution(features)))


def conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    """A convolution that keeps the size up to its stride."""
    padding = dilation * (kernel_size // 2)
    return Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, bias=False)


class ResNetBlock(nn.Module):
    """Two 3x3 convolutions (basic) or 1x1, 3x3, 1x1 (bottleneck), and a shortcut around them."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, options: LayerOptions, dilation: int = 1
    ) -> None:
        super().__init__()
        if options.layer_type == "bottleneck":
            width = out_channels // BOTTLENECK_REDUCTION
            early = stride if options.downsample_in_bottleneck else 1
            convolutions = [
                conv(in_channels, width, 1, early),
                conv(width, width, 3, stride // early, dilation),
                conv(width, out_channels, 1),
            ]
        else:
            convolutions = [conv(in_channels, out_channels, 3, stride, dilation), conv(out_channels, out_channels, 3)]
        # Inside a layer it is always ReLU, whatever the configuration's hidden_act: the published weights expect that.
        self.layer = nn.Sequential(
            *(ConvNorm(each, options, nn.ReLU(inplace=True)) for each in convolutions[:-1]),
            ConvNorm(convolutions[-1], options, nn.Identity()),
        )
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels or stride != 1:
            self.shortcut = ConvNorm(conv(in_channels, out_channels, 1, stride), options, nn.Identity())
        self.activation = options.activation

    def forward(self, features: Tensor) -> Tensor:
        """[B, C_in, h, w] -> [B, C_out, h / stride, w / stride]."""
        residual = self.layer(features)
        residual += self.shortcut(features)
        return self.activation(residual)


class ResNetStage(Recomputing):
    """The residual layers of one resolution, the first of which changes size and channels; one dilation per layer."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, dilations: Sequence[int], options: LayerOptions
    ) -> None:
        super().__init__()
        first = ResNetBlock(in_channels, out_channels, stride, options, dilations[0])
        others = (ResNetBlock(out_channels, out_channels, 1, options, dilation) for dilation in dilations[1:])
        self.layers = nn.Sequential(first, *others)

    def forward(self, features: Tensor) -> Tensor:
        """[B, C_in, h, w] -> [B, C_out, h / stride, w / stride]."""
        for layer in self.layers:
            features = self.run(layer, features)
        return features


class ResNetStem(nn.Module):
    """The first convolution or convolutions, then a max-pooling: [B, 3, H, W] -> [B, C, H / 4, W / 4]."""

    def __init__(
        self, num_channels: int, out_channels: int, kind: Literal["basic", "deeplab"], options: LayerOptions
    ) -> None:
        super().__init__()
        self.num_channels = num_channels
        if kind == "deeplab":
            half = out_channels // 2
            convolutions = [conv(num_channels, half, 3, stride=2), conv(half, half, 3), conv(half, out_channels, 3)]
            self.embedder = nn.Sequential(*(ConvNorm(each, options, options.activation) for each in convolutions))
        else:
            self.embedder = ConvNorm(conv(num_channels, out_channels, 7, stride=2), options, options.activation)
        self.pooler = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)

    def forward(self, pixel_values: Tensor) -> Tensor:
        check_pixel_values(pixel_values, self.num_channels)
        # All that follows keeps this layout: convolutions are a tenth faster in it on a CPU, and Swin's maps have it.
        pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        return self.pooler(self.embedder(pixel_values))


class ResNetBackbone(nn.Module):
    """ResNet, as a `ResNetConfig` of transformers describes it.

    `stem="deeplab"` is the authors' "c" variant: three convolutions to begin with, a dilated last stage.
    """

    def __init__(
        self, config: Any, activation: nn.Module, norm: Callable[[int], nn.Module], stem: Literal["basic", "deeplab"]
    ) -> None:
        super().__init__()
        depths: Sequence[int] = config.depths
        hidden_sizes: Sequence[int] = config.hidden_sizes
        options = LayerOptions(activation, norm, config.layer_type, config.downsample_in_bottleneck)
        check_four_stages("ResNet", depths=tuple(depths), hidden_sizes=tuple(hidden_sizes))
        if stem == "deeplab" and (depths[-1] > len(MULTI_GRID) or options.layer_type != "bottleneck"):
            raise ValueError(
                f"The deeplab stem got layer_type={options.layer_type!r} and {depths[-1]} layers in the last stage, "
                f"expected 'bottleneck' and at most {len(MULTI_GRID)}, with dilations {MULTI_GRID}: use stem='basic'."
            )
        first_stride = 2 if config.downsample_in_first_stage else 1
        self.channels = list(hidden_sizes)
        self.strides = [4 * first_stride * 2**stage for stage in range(len(depths))]
        self.embedder = ResNetStem(config.num_channels, config.embedding_size, stem, options)
        stages = nn.ModuleList()
        for index, (depth, out_channels) in enumerate(zip(depths, hidden_sizes, strict=True)):
            in_channels = hidden_sizes[index - 1] if index > 0 else config.embedding_size
            dilated = stem == "deeplab" and index == len(depths) - 1
            dilations = MULTI_GRID[:depth] if dilated else (1,) * depth
            stages.append(ResNetStage(in_channels, out_channels, 2 if index > 0 else first_stride, dilations, options))
        self.encoder = nn.ModuleDict({"stages": stages})

    def forward(self, pixel_values: Tensor) -> FeatureMaps:
        """[B, 3, H, W] -> four maps [B, C_i, h_i, w_i], h_i = ceil(H / strides[i])."""
        features = self.embedder(pixel_values)
        maps: list[Tensor] = []
        for stage in cast(nn.ModuleList, self.encoder["stages"]):
            features = stage(features)
            maps.append(features)
        return FeatureMaps(*maps)
