"""What every backbone promises, so that a decoder never asks which one it has (paper section 3.3, pixel-level module).

A backbone is a module with the attributes `channels` and `strides` (four integers each, finest map first). Called with
`pixel_values` [B, 3, H, W] it returns an object whose `feature_maps` are four tensors [B, channels[i], h_i, w_i] with
h_i, w_i the image's size over `strides[i]`, rounded down or up.

B batch, H W image, h_i w_i size of map i.
"""

from typing import Any, NamedTuple

from torch import Tensor

NUM_MAPS = 4


class FeatureMaps(NamedTuple):
    """Four feature maps [B, channels[i], h_i, w_i], finest first: a tuple, and under the name transformers uses.

    A named tuple, not a class of its own, because torch.export and torch.compile take it apart without being told how.
    """

    stage1: Tensor
    stage2: Tensor
    stage3: Tensor
    stage4: Tensor

    @property
    def feature_maps(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The same four maps as a plain tuple."""
        return (self.stage1, self.stage2, self.stage3, self.stage4)


def check_four_stages(name: str, **per_stage: tuple[int, ...]) -> None:
    """Raise a ValueError unless every sequence in `per_stage` has one entry for each of the four maps."""
    for field, values in per_stage.items():
        if len(values) != NUM_MAPS:
            raise ValueError(
                f"{name} got {field}={list(values)} with {len(values)} entries, expected {NUM_MAPS}, one for each of "
                "the feature maps with strides 4, 8, 16 and 32: give four stages."
            )


def check_pixel_values(pixel_values: Any, num_channels: int) -> None:
    """Raise a ValueError unless `pixel_values` is a tensor [B, num_channels, H, W]."""
    # A list is what the processor gives without return_tensors="pt".
    shape = list(pixel_values.shape) if isinstance(pixel_values, Tensor) else []
    if len(shape) != 4 or shape[1] != num_channels:
        kind = "nothing" if pixel_values is None else f"a {type(pixel_values).__name__}"
        got = f"a tensor of shape {shape}" if isinstance(pixel_values, Tensor) else kind
        raise ValueError(
            f"pixel_values is {got}, expected [batch, {num_channels}, height, width]: prepare the images with "
            'MaskFormerImageProcessor(...)(images, return_tensors="pt"), or set num_channels in backbone_config.'
        )
