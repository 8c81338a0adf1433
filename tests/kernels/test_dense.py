"""Linear maps and convolutions by oneDNN against torch's own, where this processor has the former."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from maskformer.kernels import dense
from maskformer.kernels.dense import Conv2d, Linear, linear


@pytest.fixture(params=[True, False], ids=["onednn", "torch"])
def calls(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What oneDNN was asked for; with "torch", what would be asked on a processor where it is of no use: nothing."""
    if request.param and (not dense._WIDE or dense._POINTWISE is None):
        pytest.skip("this torch or processor has no AVX-512 with MKL and oneDNN")
    made: list[str] = []

    def counted(x, weight, bias, attribute, *rest):
        made.append(attribute)
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, attribute, *rest)

    monkeypatch.setattr(dense, "_POINTWISE", counted if request.param else None)
    made.append("on" if request.param else "off")
    return made


@torch.no_grad()
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_equals_torch(calls: list[str], gelu: bool, bias: bool) -> None:
    x, weight, offset = torch.randn(2, 7, 5), torch.randn(3, 5), torch.randn(3) if bias else None
    expected = F.linear(x, weight, offset)
    expected = F.gelu(expected) if gelu else expected
    torch.testing.assert_close(linear(x, weight, offset, gelu), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(linear(x, weight.T.contiguous().T, offset, gelu), expected, rtol=1e-5, atol=1e-5)
    across = x.transpose(0, 1)  # not contiguous
    torch.testing.assert_close(linear(across, weight, offset, gelu), expected.transpose(0, 1), rtol=1e-5, atol=1e-5)
    assert calls[1:] == ["gelu" if gelu else "none"] * 3 * (calls[0] == "on")


def test_torch_does_what_is_not_plain_inference(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = Linear(5, 3), torch.randn(2, 5)
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    with torch.no_grad():
        assert layer(torch.randn(0, 5)).shape == (0, 3)
        assert layer.double()(x.double()).dtype == torch.float64
        with torch.autocast("cpu", torch.bfloat16):
            assert layer.float()(x).dtype == torch.bfloat16
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        layer(x)
    assert len(calls) == 1


@torch.no_grad()
def test_torch_does_quantised_weights(calls: list[str]) -> None:
    class Halves(torch.Tensor):
        """As torchao's: says that it is float32, and is something else."""

        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            if func is F.linear:
                x, weight, bias = args
                return F.linear(x, weight.as_subclass(torch.Tensor) / 2, bias)
            return super().__torch_function__(func, types, args, kwargs or {})

    layer, x = Linear(5, 3, bias=False), torch.randn(2, 5)
    expected = layer(x) / 2
    del calls[1:]
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Halves), requires_grad=False)
    torch.testing.assert_close(layer(x).as_subclass(torch.Tensor), expected)
    assert len(calls) == 1


@torch.no_grad()
@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 1},
        {"kernel_size": 1, "stride": 2, "bias": False},
        {"kernel_size": 1, "groups": 2},
        {"kernel_size": 1, "padding": 1},
        {"kernel_size": 3, "padding": 2, "dilation": 2},
        {"kernel_size": 3, "stride": 2, "padding": 1},
    ],
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_convolutions_equal_torch(calls: list[str], settings: dict[str, int], channels_last: bool) -> None:
    ours = Conv2d(4, 6, **settings)
    theirs = nn.Conv2d(4, 6, **settings)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 4, 9, 11)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    is_linear = settings["kernel_size"] == 1 and not {"groups", "padding"} & settings.keys()
    assert calls[1:] == ["none"] * (calls[0] == "on" and is_linear)
