"""Backbones: `build_backbone` makes one from a transformers configuration (paper section 3.3, pixel-level module).

Swin and ResNet are ours (`swin.py`, `resnet.py`); any other that transformers' AutoBackbone knows is taken from there.
`contract.py` says what a decoder may ask of all of them. This is the one file of the folder that knows transformers.
"""

from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import AutoBackbone, PreTrainedConfig
from transformers.activations import ACT2FN

from maskformer.modeling.backbones.contract import NUM_MAPS
from maskformer.modeling.backbones.resnet import FrozenBatchNorm2d, ResNetBackbone
from maskformer.modeling.backbones.swin import SwinBackbone

PYRAMID_STRIDES = (4, 8, 16, 32)


def build_backbone(
    config: PreTrainedConfig,
    *,
    norm: Literal["batch", "frozen"] = "batch",
    stem: Literal["basic", "deeplab"] = "basic",
) -> nn.Module:
    """A backbone (see `contract.py`) with random weights for a `backbone_config` of transformers.

    `norm` and `stem` are for ResNet: "frozen" holds the batch normalisation's four tensors constant, "deeplab" is the
    three-convolution stem with the dilated last stage. For Swin and ResNet all four maps come out, whatever
    `out_features` says; for any other backbone it must name the four maps with strides 4, 8, 16 and 32.

    Raises ValueError for a `norm` or `stem` the backbone does not have, for an unknown activation, and for a backbone
    without exactly four maps; wrong strides show, as a ValueError, when the first image goes through.

    Source: arXiv 2107.06278, section 3.3 (pixel-level module).

    Examples:
        >>> from transformers import ResNetConfig
        >>> backbone = build_backbone(ResNetConfig(out_features=["stage1", "stage2", "stage3", "stage4"]))
        >>> [tuple(each.shape) for each in backbone(torch.zeros(1, 3, 64, 96)).feature_maps]  # [B, channels, h, w]
        [(1, 256, 16, 24), (1, 512, 8, 12), (1, 1024, 4, 6), (1, 2048, 2, 3)]
    """
    if norm not in ("batch", "frozen") or stem not in ("basic", "deeplab"):
        raise ValueError(f"Got norm={norm!r} and stem={stem!r}, expected 'batch' or 'frozen' and 'basic' or 'deeplab'.")
    if config.model_type == "resnet":
        norms = {"batch": nn.BatchNorm2d, "frozen": FrozenBatchNorm2d}
        return ResNetBackbone(config, _activation(config), norms[norm], stem)
    if norm != "batch" or stem != "basic":
        raise ValueError(
            f"Got norm={norm!r} and stem={stem!r} for a {config.model_type!r} backbone, expected 'batch' and 'basic': "
            "the others exist for ResNet alone."
        )
    if config.model_type in ("swin", "maskformer-swin"):
        return SwinBackbone(config, _activation(config))
    return _build_any(config)


def _build_any(config: PreTrainedConfig) -> nn.Module:
    """transformers' own module, so that its weights keep their names; `strides` and a look at the sizes are added."""
    try:
        backbone: Any = cast(Any, AutoBackbone).from_config(config)
    except ValueError as error:
        # Only "no backbone class for this configuration" is ours to explain; it says so by listing the ones there are.
        if "Unrecognized configuration class" not in str(error):
            raise
        raise ValueError(
            f"Got a {config.model_type!r} configuration as backbone_config, expected one that transformers' "
            "AutoBackbone knows: for example 'swin', 'resnet' or 'convnext'."
        ) from error
    num_maps = len(backbone.channels)
    if num_maps != NUM_MAPS:
        raise ValueError(
            f"The {config.model_type!r} backbone has {num_maps} feature maps (out_features={backbone.out_features}), "
            f"expected {NUM_MAPS} with strides {PYRAMID_STRIDES}: set out_features in backbone_config to four of "
            f"{backbone.stage_names}."
        )
    backbone.strides = list(PYRAMID_STRIDES)
    backbone.register_forward_hook(_check_pyramid, with_kwargs=True)
    return backbone


def _check_pyramid(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    # A traced graph has symbols for sizes, which a comparison would pin; there the first eager call has looked.
    if torch.compiler.is_compiling():
        return
    pixel_values: Tensor = args[0] if args else kwargs["pixel_values"]
    image_size, sizes = pixel_values.shape[-2:], [tuple(each.shape[-2:]) for each in output.feature_maps]
    # A cell of tolerance, because some backbones round down, others up, and unpadded convolutions lose a border.
    fits = len(sizes) == NUM_MAPS and all(
        abs(cells * stride - pixels) <= stride
        for size, stride in zip(sizes, PYRAMID_STRIDES, strict=True)
        for cells, pixels in zip(size, image_size, strict=True)
    )
    if not fits:
        raise ValueError(
            f"The backbone made feature maps of sizes {sizes} from an image of {tuple(image_size)}, expected "
            f"{NUM_MAPS} maps with strides {list(PYRAMID_STRIDES)}: choose out_features in backbone_config that have "
            "them."
        )


def _activation(config: Any) -> nn.Module:
    if (name := config.hidden_act) not in ACT2FN:
        raise ValueError(f"Got hidden_act={name!r} in backbone_config, expected one of {', '.join(ACT2FN)}.")
    if name == "gelu":
        return nn.GELU()  # torch's own class, which linear layers know
    # In place is safe: it follows a normalisation or a sum, whose results nobody else reads.
    return nn.ReLU(inplace=True) if name == "relu" else ACT2FN[name]
