"""The fast mask losses against their definitions in float64: values, gradients, degenerate masks, memory."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskformer.kernels import compiled, mask_loss
from maskformer.kernels.mask_loss import mask_losses

pytestmark = pytest.mark.usefixtures("implementation")


def make_pairs(small, large, counts=(2, 3), dtype=torch.float32):
    """Logits that require gradients, per image one mask more than is matched, and the matches in a shuffled order."""
    logits = (3 * torch.randn(sum(counts), *small)).to(dtype).requires_grad_()
    masks = [torch.rand(count + 1, *large) > 0.6 for count in counts]
    return logits, masks, [torch.randperm(count + 1)[:count] for count in counts]


def assert_same(plain, logits, masks, index, valid=None, rtol=1e-5):
    """Values, and the gradients of both losses with another weight for each pair, relative to their largest entry."""
    actual, expected = mask_losses(logits, masks, index, valid), plain(logits, masks, index, valid)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=rtol, atol=1e-7)
        weights = torch.randn(len(logits), dtype=torch.float64)
        (gradient,) = torch.autograd.grad((ours * weights).sum(), logits, retain_graph=True)
        (wanted,) = torch.autograd.grad((theirs * weights).sum(), logits, retain_graph=True)
        assert gradient.dtype == logits.dtype
        scale = wanted.double().abs().amax(dim=(1, 2), keepdim=True)
        # p (1 - p) of a single pixel that is confidently wrong has an absolute error; in a map it does not show
        rounding = 1e-6 / min(mask[0].numel() for mask in masks if len(mask))
        assert ((gradient.double() - wanted.double()).abs() <= rtol * scale + rounding).all()


@pytest.mark.parametrize(
    ("small", "large"),
    [
        ((12, 20), (48, 80)),
        ((13, 7), (52, 28)),
        ((64, 64), (256, 256)),  # several blocks
        ((65, 33), (257, 130)),  # several tiles
        ((7, 9), (25, 35)),
        ((6, 6), (6, 6)),
        ((9, 8), (3, 5)),
        ((1, 1), (1, 1)),
        ((1, 1), (4, 4)),
        ((1, 5), (300, 2)),
    ],
)
def test_values_and_gradients(plain, small, large):
    assert_same(plain, *make_pairs(small, large))


def test_threads(plain, num_threads):
    assert_same(plain, *make_pairs((12, 20), (48, 80), (4, 7)))


@pytest.mark.parametrize("large", [(24, 32), (25, 31)])
def test_pixels_that_are_not_valid_count_for_nothing(plain, large):
    logits, masks, index = make_pairs((6, 8), large)
    valid = [torch.rand(large) > 0.3, torch.zeros(large, dtype=torch.bool)]
    assert_same(plain, logits, masks, index, valid)
    focal, dice = mask_losses(logits, masks, index, valid)
    assert focal[2:].eq(0).all()
    assert dice[2:].eq(0).all()
    flipped = [image_masks ^ ~image_valid for image_masks, image_valid in zip(masks, valid, strict=True)]
    assert torch.equal(focal, mask_losses(logits, flipped, index, valid)[0])
    assert torch.equal(dice, mask_losses(logits, flipped, index, valid)[1])


def test_images_of_different_sizes_and_without_pairs(plain):
    logits = torch.randn(3, 5, 6, requires_grad=True)
    masks = [torch.rand(2, 20, 24) > 0.5, torch.zeros(0, 9, 9, dtype=torch.bool), torch.rand(4, 17, 24) > 0.5]
    assert_same(plain, logits, masks, [torch.tensor([1]), torch.tensor([], dtype=torch.int64), torch.tensor([3, 0])])


def test_no_pairs_at_all():
    logits = torch.randn(0, 5, 6, requires_grad=True)
    focal, dice = mask_losses(logits, [torch.zeros(0, 20, 24, dtype=torch.bool)], [torch.tensor([], dtype=torch.int64)])
    assert focal.shape == dice.shape == (0,)
    (focal.sum() + dice.sum()).backward()
    assert logits.grad.shape == (0, 5, 6)


@pytest.mark.parametrize("value", [True, False])
def test_full_and_empty_targets(plain, value):
    logits, _, _ = make_pairs((6, 8), (24, 32), (2,))
    assert_same(plain, logits, [torch.full((2, 24, 32), value)], [torch.tensor([0, 1])])


def test_confident_masks_keep_their_digits(plain):
    right = torch.where(torch.rand(3, 6, 8) > 0.5, 9.0, -9.0)
    target = torch.nn.functional.interpolate(right[None], size=(24, 32), mode="bilinear")[0] > 0
    focal, dice = mask_losses(right, [target], [torch.arange(3)])
    expected = plain(right, [target], [torch.arange(3)])
    torch.testing.assert_close(focal.double(), expected[0], rtol=1e-5, atol=0)
    torch.testing.assert_close(dice.double(), expected[1], rtol=1e-5, atol=0)
    # the form 1 - fraction has no digit left of a loss this small
    sure = torch.full((1, 6, 8), -14.0)
    empty = torch.zeros(1, 24, 32, dtype=torch.bool)
    dice = mask_losses(sure, [empty], [torch.tensor([0])])[1]
    torch.testing.assert_close(dice.double(), plain(sure, [empty], [torch.tensor([0])])[1], rtol=1e-5, atol=0)


@pytest.mark.parametrize("sign", [1e4, -1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_saturated_logits(sign, dtype):
    logits = torch.full((2, 4, 4), sign, dtype=dtype, requires_grad=True)
    targets = torch.stack([torch.ones(16, 16), torch.zeros(16, 16)]).bool()
    focal, dice = mask_losses(logits, [targets], [torch.tensor([0, 1])])
    wrong = torch.tensor([sign < 0, sign > 0])
    torch.testing.assert_close(focal, torch.where(wrong, torch.tensor([2500.0, 7500.0]), 0.0))
    torch.testing.assert_close(dice, torch.where(wrong, 256 / 257, 0.0))
    (focal.sum() + dice.sum()).backward()
    # where the mask is wrong, the focal loss is linear in the logit; a small pixel is 16 of the 256
    slope = torch.where(wrong, torch.tensor([-0.25, 0.75]), 0.0) / 16
    torch.testing.assert_close(logits.grad, slope.to(dtype)[:, None, None].expand(2, 4, 4))


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.bfloat16, 1e-2), (torch.float16, 1e-3), (torch.float64, 1e-12)])
def test_types(plain, dtype, rtol):
    logits, masks, index = make_pairs((6, 8), (24, 32), dtype=dtype)
    focal, dice = mask_losses(logits, masks, index)
    assert focal.dtype == dice.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    # half precision loses digits in the returned gradient, not in the loss
    torch.testing.assert_close(focal.double(), plain(logits, masks, index)[0], rtol=min(rtol, 1e-5), atol=0)
    assert_same(plain, logits, masks, index, rtol=rtol)


@pytest.mark.parametrize("large", [(8, 12), (7, 13)])
def test_gradcheck(large):
    logits, masks, index = make_pairs((2, 3), large, dtype=torch.float64)
    valid = [torch.rand(large) > 0.2 for _ in masks]
    assert torch.autograd.gradcheck(lambda x: mask_losses(x, masks, index), logits)
    assert torch.autograd.gradcheck(lambda x: mask_losses(x, masks, index, valid), logits)


def test_views_are_read_in_place(plain):
    logits = torch.randn(3, 8, 6).transpose(1, 2).requires_grad_()
    masks = (torch.rand(32, 24, 8) > 0.5).permute(2, 1, 0)[::2]
    assert_same(plain, logits, [masks], [torch.tensor([3, 0, 1])])
    odd = (torch.rand(1, 1, 31) > 0.5).expand(4, 25, 31)
    assert_same(plain, logits, [odd], [torch.tensor([3, 0, 1])])


def test_one_loss_alone_and_a_second_backward(plain):
    logits, masks, index = make_pairs((6, 8), (24, 32))
    focal, dice = mask_losses(logits, masks, index)
    (first,) = torch.autograd.grad(dice.sum(), logits, retain_graph=True)
    (again,) = torch.autograd.grad(dice.sum(), logits, retain_graph=True)
    assert torch.equal(first, again)
    (both,) = torch.autograd.grad(2 * dice.sum() + 20 * focal.sum(), logits)
    (focal_alone,) = torch.autograd.grad(mask_losses(logits, masks, index)[0].sum(), logits)
    torch.testing.assert_close(both, 2 * first + 20 * focal_alone)


def test_no_second_derivative():
    logits, masks, index = make_pairs((6, 8), (24, 32))
    with pytest.raises(NotImplementedError, match="differentiated only once"):
        torch.autograd.grad(mask_losses(logits, masks, index)[0].sum(), logits, create_graph=True)


def test_modes_of_torch_change_nothing(num_threads):
    logits, masks, index = make_pairs((6, 8), (24, 32))
    expected = [loss.detach() for loss in mask_losses(logits, masks, index)]
    for mode in (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16)):
        with mode:
            # a tensor that was born in inference mode may be read but not written outside of it
            actual = mask_losses(logits.detach().clone(), masks, index)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(actual, expected, strict=True))


def test_no_gradient_is_made_where_none_is_needed(monkeypatch):
    logits, masks, index = make_pairs((6, 8), (24, 32))
    expected = mask_losses(logits, masks, index)

    def fail(*_):
        raise AssertionError("a gradient was made")

    monkeypatch.setattr(mask_loss, "_differentiate", fail)
    if compiled.available:
        walk = mask_loss.walk
        monkeypatch.setattr(mask_loss, "walk", lambda *rest: fail() if rest[-1] is not None else walk(*rest))
    with torch.no_grad():
        without = mask_losses(logits, masks, index)
    for ours, theirs in zip([*without, *mask_losses(logits.detach(), masks, index)], [*expected] * 2, strict=True):
        assert not ours.requires_grad
        assert torch.equal(ours, theirs)


def test_errors():
    logits, masks, index = make_pairs((6, 8), (24, 32), (2,))
    with pytest.raises(AssertionError, match="matched_mask_losses does the same"):
        mask_losses(logits.to("meta"), masks, index)
    with pytest.raises(AssertionError, match="masks must be bool"):
        mask_losses(logits, [masks[0].float()], index)
    with pytest.raises(IndexError):
        mask_losses(logits, masks, [torch.tensor([0, 3])])


@given(
    small=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    large=st.tuples(st.integers(1, 25), st.integers(1, 25)),
    counts=st.lists(st.integers(0, 2), min_size=1, max_size=3).filter(any),
    scale=st.sampled_from([0.0, 0.1, 3.0, 20.0, 1e4]),
    density=st.sampled_from([0.0, 0.03, 0.5, 1.0]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=40, deadline=None)
def test_any_pairs(plain, small, large, counts, scale, density, seed):
    from_seed = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(sum(counts), *small, generator=from_seed)
    if scale > 1e3:
        # Between large logits of both signs, float32 knows an interpolated one near 0 to three digits only, in any
        # order of operations: here they and their interpolation are exact numbers.
        logits, large = (logits / 64).round() * 64, (4 * small[0], 4 * small[1])
    logits.requires_grad_()
    masks = [torch.rand(count, *large, generator=from_seed) < density for count in counts]
    index = [torch.arange(count) for count in counts]
    focal, dice = mask_losses(logits, masks, index)
    expected_focal, expected_dice = plain(logits, masks, index)
    torch.testing.assert_close(focal.double(), expected_focal, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(dice.double(), expected_dice, rtol=1e-5, atol=1e-7)
    (gradient,) = torch.autograd.grad(20 * focal.sum() + dice.sum(), logits)
    (wanted,) = torch.autograd.grad(20 * expected_focal.sum() + expected_dice.sum(), logits)
    # The loops' smallest probability, 7e-13 a pixel, is all that their gradient keeps where everything is saturated.
    floor = 7e-13 * large[0] * large[1] if compiled.available else 0.0
    torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()) + floor)


MEMORY = """
import re
from pathlib import Path
import torch
import sys
from maskformer.kernels import compiled
from maskformer.kernels.mask_loss import mask_losses
compiled.available = sys.argv[1] == "compiled"
torch.set_num_threads(2)
mask_losses(torch.zeros(2, 4, 4, requires_grad=True), [torch.ones(1, 16, 16).bool()], [torch.tensor([0, 0])])
logits = torch.zeros(40, 200, 304, requires_grad=True)
masks = torch.ones(1, 800, 1216, dtype=torch.bool).expand(40, -1, -1)
def read(name):
    return int(re.search(rf"{name}:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
Path("/proc/self/clear_refs").write_text("5")  # the peak starts from now
before = read("VmRSS")
focal, dice = mask_losses(logits, [masks], [torch.arange(40)])
(focal.sum() + dice.sum()).backward()
print(read("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_memory(implementation):
    done = subprocess.run([sys.executable, "-c", MEMORY, implementation], capture_output=True, text=True, check=True)
    # two gradients per mask are kept and one is returned, 28 MB; full-size float maps of all masks would be 148 MB each
    assert 20 < float(done.stdout) < 28 + 50
