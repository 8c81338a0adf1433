"""Linear maps by the library that runs them fastest in float32 on this processor.

torch hands float32 products to MKL, which uses half the width of a processor that is not Intel's: on AMD's with
AVX-512, 110 of 235 GFLOP/s a core. oneDNN, which comes with torch too and which torch uses for other types, uses all
of it; torch reaches it through the operation that its own compiler puts in the place of linear layers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_WIDE = torch.backends.mkl.is_available() and "AVX512" in torch.backends.cpu.get_cpu_capability()
_POINTWISE: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """[..., C_in] -> [..., C_out] with a weight [C_out, C_in], then GELU if asked for; equal up to rounding to torch's.

    Where a gradient, another type or a graph is wanted it is torch's.
    """
    if _is_for_onednn(x, weight):
        return _POINTWISE(x, weight, bias, "gelu" if gelu else "none", [], "none" if gelu else "")
    y = F.linear(x, weight, bias)
    return F.gelu(y) if gelu else y


def _is_for_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        _WIDE
        and _POINTWISE is not None
        and not torch.compiler.is_compiling()  # first: what follows would pin the sizes of a graph
        and type(x) is Tensor
        and type(weight) in (Tensor, nn.Parameter)  # quantised ones are neither
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and x.numel() > 0
        and torch.backends.mkldnn.enabled
        and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
        and not torch.is_autocast_enabled("cpu")
        and not torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage] (documented all the same)
    )


class Linear(nn.Linear):
    """torch's layer, computed by `linear`."""

    def forward(self, input: Tensor, gelu: bool = False) -> Tensor:
        return linear(input, self.weight, self.bias, gelu)


class Conv2d(nn.Conv2d):
    """torch's layer. Where oneDNN is in place, it reads and writes channels-last, and 1x1 kernels are linear maps.

    torch would hand the latter to MKL, and re-arrange the channels of the others before and after.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not _is_for_onednn(input, self.weight) or input.ndim != 4:
            return super().forward(input)
        if self.kernel_size == (1, 1) and self.padding == (0, 0) and self.groups == 1:
            pixels = input[:, :, :: self.stride[0], :: self.stride[1]].permute(0, 2, 3, 1)
            return linear(pixels, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)
        return super().forward(input.contiguous(memory_format=torch.channels_last))
