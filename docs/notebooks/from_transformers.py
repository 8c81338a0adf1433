# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Moving from transformers
#
# The same checkpoint in both libraries: what stays, what changes, and why. Random weights stand in for a published checkpoint here;
# `"facebook/maskformer-swin-tiny-ade"` loads in both, too.

# %%
import warnings

import torch
import transformers

import maskformer

torch.manual_seed(0)
swin = transformers.SwinConfig(
    image_size=64, embed_dim=24, depths=[1, 1, 2, 1], num_heads=[1, 2, 3, 4], window_size=4,
    out_features=["stage1", "stage2", "stage3", "stage4"],
)  # fmt: skip
theirs = transformers.MaskFormerForInstanceSegmentation(transformers.MaskFormerConfig(backbone_config=swin)).eval()
theirs.save_pretrained("checkpoint")
ours = maskformer.MaskFormerForInstanceSegmentation.from_pretrained("checkpoint").eval()

# %% [markdown]
# ## What stays
#
# The logits and the loss, up to the rounding of float32.

# %%
pixels = torch.randn(2, 3, 96, 128)
masks = [torch.rand(n, 96, 128) > 0.7 for n in (3, 1)]
labels = [torch.tensor([0, 1, 1]), torch.tensor([0])]
with torch.no_grad():
    there = theirs(pixels, mask_labels=[mask.float() for mask in masks], class_labels=labels)
    here = ours(pixels, mask_labels=masks, class_labels=labels)
for name in ("class_queries_logits", "masks_queries_logits", "loss"):
    print(f"{name:24} {(there[name] - here[name]).abs().max():.1e}")

# %% [markdown]
# ## What changes
#
# **Auxiliary losses** raise an error there.

# %%
theirs.config.use_auxiliary_loss = True
try:
    theirs(pixels, mask_labels=[mask.float() for mask in masks], class_labels=labels)
except Exception as error:
    print("there:", type(error).__name__, error)
deep = maskformer.MaskFormerForInstanceSegmentation.from_pretrained("checkpoint", use_auxiliary_loss=True)
print("here: ", float(deep(pixels, mask_labels=masks, class_labels=labels).loss.detach()))
theirs.config.use_auxiliary_loss = False

# %% [markdown]
# **Panoptic ids** collide there when stuff is fused: two segments, one id.

# %%
from types import SimpleNamespace

logits = torch.full((1, 4, 32, 32), -9.0)
for query in range(4):
    logits[0, query, :, 8 * query : 8 * query + 8] = 9.0  # four stripes
classes = torch.full((1, 4, 3), -9.0)
classes[0, [0, 1, 2, 3], [0, 1, 0, 1]] = 9.0  # stuff, thing, stuff, thing
output = SimpleNamespace(class_queries_logits=classes, masks_queries_logits=logits)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    processors = (transformers.MaskFormerImageProcessorPil(), maskformer.MaskFormerImageProcessor())
for place, processor in zip(("there", "here"), processors, strict=True):
    result = processor.post_process_panoptic_segmentation(output, label_ids_to_fuse={0}, target_sizes=[(32, 32)])[0]
    print(f"{place:5}", [(segment["id"], segment["label_id"]) for segment in result["segments_info"]])

# %% [markdown]
# The [full list](../transformers.md) has eighteen such rows, each with its test.
#
# ## What to change in your code
#
# 1. The import.
# 2. Hand `pixel_mask` to the post-processors, so that the padding of a batch is cropped.
# 3. Nothing about thresholds: the defaults are the same. But a `threshold` below 0.5, which has no effect there, has one here.
