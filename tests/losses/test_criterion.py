"""The criterion: terms, edges (no targets, mixed sizes, ignored pixels, half precision) and its errors."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from maskformer import losses as losses_package
from maskformer.kernels import compiled
from maskformer.losses import LossNormalizer, MaskFormerHungarianMatcher, MaskFormerLoss

TERMS = ["loss_cross_entropy", "loss_mask", "loss_dice"]


def test_exports():
    assert sorted(losses_package.__all__) == losses_package.__all__
    assert all(hasattr(losses_package, name) for name in losses_package.__all__)


def test_names_of_the_terms_and_own_matching_per_head(make_batch, make_criterion):
    batch, auxiliary = make_batch(seed=1), [make_batch(seed=seed) for seed in (2, 3)]
    criterion = make_criterion()
    heads = [{"masks_queries_logits": a.masks, "class_queries_logits": a.classes} for a in auxiliary]
    losses = criterion(*batch.arguments, heads)
    assert list(losses) == [name + suffix for suffix in ("", "_0", "_1") for name in TERMS]
    for suffix, head in zip(("", "_0", "_1"), (batch, *auxiliary), strict=True):
        alone = criterion(head.masks, head.classes, batch.mask_labels, batch.class_labels)
        for name in TERMS:
            torch.testing.assert_close(losses[name + suffix], alone[name])


def test_empty_weight_is_a_buffer_that_can_be_rebuilt():
    matcher = MaskFormerHungarianMatcher()
    plain = MaskFormerLoss(3, matcher, {}, 0.1)
    assert not plain.state_dict()
    torch.testing.assert_close(plain.empty_weight, torch.tensor([1.0, 1.0, 1.0, 0.1]))
    with torch.device("meta"):
        criterion = MaskFormerLoss(3, matcher, {}, 0.2, class_weights=torch.tensor([1.0, 2.0, 3.0], device="cpu"))
    assert criterion.empty_weight.is_meta
    criterion.to_empty(device="cpu")
    criterion.reset_buffers()
    torch.testing.assert_close(criterion.empty_weight, torch.tensor([1.0, 2.0, 3.0, 0.2]))


def test_class_weights_weigh_the_classes(make_batch, make_criterion):
    batch = make_batch((2, 3))
    weights = [0.5, 1.0, 2.0, 3.0, 0.0]
    criterion = make_criterion(class_weights=weights)
    classes = torch.full((2, 6), 5)
    for image, (queries, targets) in enumerate(criterion.matcher(*batch.arguments)):
        classes[image, queries] = batch.class_labels[image][targets]
    expected = F.cross_entropy(batch.classes.flatten(0, 1), classes.flatten(), torch.tensor([*weights, 0.1]))
    torch.testing.assert_close(criterion(*batch.arguments)["loss_cross_entropy"], expected)


@pytest.mark.parametrize("counts", [(0, 0), (0, 3)])
def test_images_without_targets(make_batch, make_criterion, counts):
    batch = make_batch(counts)
    batch.class_labels[0] = torch.tensor([])  # float: how an empty list of labels becomes a tensor
    losses = make_criterion()(*batch.arguments)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert batch.masks.grad[0].count_nonzero() == 0
    # gradients of the cross entropy pull the no-object class up and every other class down
    assert (batch.classes.grad[0, :, -1] < 0).all()
    assert (batch.classes.grad[0, :, :-1] > 0).all()
    if counts == (0, 0):
        assert losses["loss_mask"].item() == losses["loss_dice"].item() == 0
        assert losses["loss_mask"].requires_grad
        assert losses["loss_dice"].requires_grad


def test_one_label_without_a_mask_is_a_placeholder(make_batch, make_criterion):
    batch, criterion = make_batch((0, 3)), make_criterion()
    masks, classes, mask_labels, class_labels = batch.arguments
    expected = criterion(masks, classes, mask_labels, class_labels)
    class_labels = [torch.tensor([0]), class_labels[1]]
    torch.testing.assert_close(criterion(masks, classes, mask_labels, class_labels), expected)
    assert len(criterion.matcher(masks, classes, mask_labels, class_labels)[0][0]) == 0
    with pytest.raises(ValueError, match=r"Image 0 has 0 masks .* 2 labels"):
        criterion(masks, classes, mask_labels, [torch.tensor([0, 1]), class_labels[1]])


def test_targets_as_arrays(make_batch, make_criterion):
    masks, classes, mask_labels, class_labels = make_batch().arguments
    expected = make_criterion()(masks, classes, mask_labels, class_labels)
    arrays = [planes.numpy() for planes in mask_labels], [labels.tolist() for labels in class_labels]
    torch.testing.assert_close(make_criterion()(masks, classes, *arrays), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_equals_float32_of_the_same_values(make_batch, make_criterion, dtype):
    half = make_batch(dtype=dtype)
    full = make_batch()
    full.masks, full.classes = (t.detach().float().requires_grad_() for t in (half.masks, half.classes))
    criterion = make_criterion()
    expected = criterion(*full.arguments)
    sum(expected.values()).backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = criterion(*half.arguments)
    sum(losses.values()).backward()
    for name in TERMS:
        assert losses[name].dtype == torch.float32
        assert torch.equal(losses[name], expected[name])
    assert half.masks.grad.dtype == dtype
    torch.testing.assert_close(half.masks.grad, full.masks.grad.to(dtype))
    torch.testing.assert_close(half.classes.grad, full.classes.grad.to(dtype))


@pytest.mark.parametrize("counts", [(2, 3), (9, 0)])
@pytest.mark.parametrize(("dtype", "device"), [(torch.float64, "cpu"), (torch.bfloat16, "cpu"), (None, "meta")])
def test_torchs_defaults_change_nothing(make_batch, make_criterion, monkeypatch, counts, dtype, device):
    criterion, batch = make_criterion(), make_batch(counts)
    criterion.matcher._warned_of_surplus = True
    for loops in (compiled.available, False):
        monkeypatch.setattr(compiled, "available", loops)
        expected = criterion(*batch.arguments)
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype or before)
        try:
            with torch.device(device):  # what torch.set_default_device sets
                losses = criterion(*batch.arguments)
        finally:
            torch.set_default_dtype(before)
        for name in TERMS:
            assert losses[name].dtype == torch.float32
            assert torch.equal(losses[name], expected[name])


def test_a_criterion_in_bfloat16_runs(make_batch, make_criterion):
    losses = make_criterion().bfloat16()(*make_batch(dtype=torch.bfloat16).arguments)
    expected = make_criterion()(*make_batch(dtype=torch.bfloat16).arguments)
    for name in TERMS:
        torch.testing.assert_close(losses[name], expected[name], rtol=2e-3, atol=0)  # 0.1 is 0.10009765625 in bfloat16


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16, torch.float64])
def test_targets_of_other_types_and_as_one_tensor(make_batch, make_criterion, dtype):
    batch, criterion = make_batch((3, 3)), make_criterion()
    expected = criterion(*batch.arguments)
    stacked = torch.stack(batch.mask_labels).to(dtype), torch.stack(batch.class_labels).to(torch.int32)
    losses = criterion(batch.masks, batch.classes, *stacked)
    for name in TERMS:
        assert torch.equal(losses[name], expected[name])


def test_mixed_sizes_are_padded_with_zeros(make_batch, make_criterion):
    batch, criterion = make_batch((3, 2), size=(32, 32)), make_criterion()
    whole = [mask.clone() for mask in batch.mask_labels]
    whole[0][:, :, 20:], whole[1][:, 12:] = False, False
    mixed = [whole[0][:, :, :20], whole[1][:, :12]]
    expected = criterion(batch.masks, batch.classes, whole, batch.class_labels)
    losses = criterion(batch.masks, batch.classes, mixed, batch.class_labels)
    for name in TERMS:
        assert torch.equal(losses[name], expected[name])


def test_valid_mask_equals_cropping(make_batch, make_criterion):
    """Loss and gradients of a padded batch are those of the crop, whatever is predicted or said of the padding."""
    crop, criterion = make_batch((3, 2), size=(16, 24)), make_criterion()
    expected = criterion(*crop.arguments)
    sum(expected.values()).backward()

    # One cell of replicated border, because bilinear upsampling reads across it; anything beyond.
    masks = F.pad(F.pad(crop.masks.detach(), (0, 1, 0, 1), mode="replicate"), (0, 2, 0, 1), value=7.0)
    masks.requires_grad_()
    targets = [F.pad(mask, (0, 12, 0, 8), value=True) for mask in crop.mask_labels]
    valid = torch.zeros(2, 24, 36, dtype=torch.bool)
    valid[:, :16, :24] = True
    losses = criterion(masks, crop.classes, targets, crop.class_labels, valid_mask=valid)
    for name in TERMS:
        torch.testing.assert_close(losses[name], expected[name])
    (gradient,) = torch.autograd.grad(sum(losses.values()), masks)
    assert gradient[:, :, 5:].count_nonzero() == gradient[:, :, :, 7:].count_nonzero() == 0
    # the replicated cells pass on to the border what clamping gives to the border itself
    inside = gradient[:, :, :4, :6].clone()
    inside[:, :, 3] += gradient[:, :, 4, :6]
    inside[:, :, :, 5] += gradient[:, :, :4, 6]
    inside[:, :, 3, 5] += gradient[:, :, 4, 6]
    torch.testing.assert_close(inside, crop.masks.grad)


def test_an_image_without_valid_pixel_adds_no_mask_loss(make_batch, make_criterion):
    batch = make_batch((2, 2))
    valid = torch.ones(2, 24, 32, dtype=torch.bool)
    valid[1] = False
    losses = make_criterion()(*batch.arguments, normalizer=LossNormalizer(1.0, 1.0), valid_mask=valid)
    (losses["loss_mask"] + losses["loss_dice"]).backward()
    assert batch.masks.grad[1].count_nonzero() == 0
    assert batch.masks.grad[0].count_nonzero() > 0


def test_more_targets_than_queries(make_batch, make_criterion):
    batch, criterion = make_batch((15, 2), num_queries=10), make_criterion()
    with pytest.warns(UserWarning, match="15 targets .* 10 queries") as caught:
        losses = criterion(
            *batch.arguments, [{"masks_queries_logits": batch.masks, "class_queries_logits": batch.classes}]
        )
    assert len(caught) == 1
    assert all(loss.isfinite() for loss in losses.values())


def test_a_matcher_with_four_arguments(make_batch, make_criterion):
    class InOrder(torch.nn.Module):
        def forward(self, masks_queries_logits, class_queries_logits, mask_labels, class_labels):
            assert not torch.is_autocast_enabled("cpu")  # costs of an own matcher are in full precision, too
            return [(torch.arange(len(labels)), torch.arange(len(labels))) for labels in class_labels]

    batch, criterion = make_batch(), make_criterion()
    criterion.matcher = InOrder()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert criterion(*batch.arguments)["loss_mask"] > make_criterion()(*batch.arguments)["loss_mask"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["masks_queries_logits", "class_queries_logits"])
@pytest.mark.parametrize("head", ["the final head", "auxiliary head 1"])
@pytest.mark.parametrize("counts", [(2, 3), (0, 0)])
def test_non_finite_predictions_name_tensor_head_and_image(make_batch, make_criterion, value, name, head, counts):
    batches = {suffix: make_batch(counts) for suffix in ("the final head", "auxiliary head 0", "auxiliary head 1")}
    tensor = batches[head].masks if name.startswith("masks") else batches[head].classes
    tensor.data[1].view(-1)[3] = value
    final, *auxiliary = batches.values()
    heads = [{"masks_queries_logits": a.masks, "class_queries_logits": a.classes} for a in auxiliary]
    with pytest.raises(FloatingPointError, match=f"{name} of {head} is non-finite .* image 1"):
        make_criterion()(*final.arguments, heads)


def _set(batch, **changes):
    for name, change in changes.items():
        setattr(batch, name, change(getattr(batch, name)))


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        (r"image 1 holds label 77, .* 0\.\.4 ", {"class_labels": lambda v: [v[0], torch.tensor([0, 77, 1])]}),
        (r"image 0 holds label -1, .* 0\.\.4 ", {"class_labels": lambda v: [torch.tensor([1, -1]), v[1]]}),
        (r"image 0 holds label 5, .* 0\.\.4 ", {"class_labels": lambda v: [torch.tensor([1, 5]), v[1]]}),
        (r"image 0 is torch\.float32, expected an integer", {"class_labels": lambda v: [v[0].float(), v[1]]}),
        (r"image 1 is torch\.bool, expected an integer", {"class_labels": lambda v: [v[0], v[1] > 1]}),
        (r"image 1 has shape \[1, 3\]", {"class_labels": lambda v: [v[0], v[1][None]]}),
        (r"class_labels has 1 entries, .* 2", {"class_labels": lambda v: v[:1]}),
        (r"mask_labels has 3 entries, .* 2", {"mask_labels": lambda v: [*v, v[0]]}),
        (r"Image 1 has 2 masks .* 3 labels", {"mask_labels": lambda v: [v[0], v[1][:2]]}),
        (r"image 0 has shape \[24, 32\]", {"mask_labels": lambda v: [v[0][0], v[1]]}),
        (r"image 0 has shape \[2, 0, 32\]", {"mask_labels": lambda v: [v[0][:, :0], v[1]]}),
        (r"image 0 is torch\.int64", {"mask_labels": lambda v: [v[0].long(), v[1]]}),
        (r"image 1 holds the value 255,", {"mask_labels": lambda v: [v[0], v[1].float() * 255]}),
        (r"image 0 holds the value 2,", {"mask_labels": lambda v: [v[0].byte() * 2, v[1]]}),
        (r"image 0 holds the value nan,", {"mask_labels": lambda v: [v[0].float() / 0, v[1]]}),
        (r"masks_queries_logits \[2, 6, 48\]", {"masks": lambda v: v.flatten(2)}),
        (r"class_queries_logits \[2, 5, 6\]", {"classes": lambda v: v[:, :5]}),
        (r"torch\.int64", {"masks": lambda v: v.long()}),
        (r"final head has shape \[2, 6, 5\], expected \[2, 6, 6\]", {"classes": lambda v: v[:, :, :5]}),
    ],
)
def test_wrong_arguments_are_named(make_batch, make_criterion, message, changes):
    batch = make_batch((2, 3))
    _set(batch, **changes)
    with pytest.raises(ValueError, match=message):
        make_criterion()(*batch.arguments)


def test_wrong_auxiliary_predictions_are_named(make_batch, make_criterion):
    batch = make_batch()
    with pytest.raises(ValueError, match=r"auxiliary_predictions\[0\] has no class_queries_logits"):
        make_criterion()(*batch.arguments, [{"masks_queries_logits": batch.masks}])
    head = {"masks_queries_logits": batch.masks[:1], "class_queries_logits": batch.classes[:1]}
    with pytest.raises(ValueError, match="auxiliary head 0"):
        make_criterion()(*batch.arguments, [head])


@pytest.mark.parametrize("valid", [torch.ones(2, 24, 32), torch.ones(2, 6, 8, dtype=torch.bool)])
def test_wrong_valid_mask(make_batch, make_criterion, valid):
    with pytest.raises(ValueError, match=r"valid_mask is .* expected torch\.bool of shape \[2, 24, 32\]"):
        make_criterion()(*make_batch().arguments, valid_mask=valid)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"class_weights": [1.0, 2.0]}, "2 entries, expected num_labels=3"),
        ({"class_weights": [1.0, -2.0, 1.0]}, "got -2.0"),
        ({"class_weights": [1.0, float("nan"), 1.0]}, "got nan"),
        ({"eos_coef": -0.1}, "got -0.1"),
    ],
)
def test_wrong_weights(arguments, message):
    with pytest.raises(ValueError, match=message):
        MaskFormerLoss(3, MaskFormerHungarianMatcher(), {}, **{"eos_coef": 0.1, **arguments})
