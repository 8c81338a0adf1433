# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What the queries see
#
# The network has a fixed number of queries (100 in the published models, 32 in the bundled one). For every picture, each query
# answers with one class, possibly "no object", and one mask. This notebook looks at them one by one.

# %%
import matplotlib.pyplot as plt
import torch

from maskformer import MaskFormerImageProcessor, load_model
from maskformer.checkpoints.loading import resolve_checkpoint
from maskformer.data.scenes import draw_scene

checkpoint = resolve_checkpoint("scenes")
processor = MaskFormerImageProcessor.from_pretrained(checkpoint)
model = load_model(checkpoint).float().eval()
picture = draw_scene(10_000_004).image
inputs = processor(picture, return_tensors="pt")
with torch.no_grad():
    output = model(inputs["pixel_values"], output_attentions=True)
print("classes", tuple(output.class_queries_logits.shape), "masks", tuple(output.masks_queries_logits.shape))

# %% [markdown]
# ## Classes and masks, query by query
#
# Sorted by how sure each query is of having an object. The masks of those that answer "no object" are not used.

# %%
probs = output.class_queries_logits[0].softmax(-1)
scores, labels = probs[:, :-1].max(-1)
order = (1 - probs[:, -1]).argsort(descending=True)
masks = output.masks_queries_logits[0].sigmoid()

rows = -(-len(order) // 8)  # 4 rows of 8 here, 13 for the 100 queries of a published checkpoint
figure, axes = plt.subplots(rows, 8, figsize=(14, 1.55 * rows), layout="constrained")
for axis in axes.flat:
    axis.set_axis_off()
for axis, query in zip(axes.flat, order.tolist(), strict=False):
    axis.imshow(masks[query], cmap="gray", vmin=0, vmax=1)
    none = float(probs[query, -1])
    name = "no object" if none > 0.5 else model.config.id2label[int(labels[query])]
    axis.set_title(f"{query}: {name} {max(none, float(scores[query])):.0%}", fontsize=9)
plt.show()

# %% [markdown]
# ## Where a query looks
#
# In every decoder layer, each query attends to the backbone's smallest map, at 1/32 of the picture's size. Below is the attention of
# the last layer (mean over its heads) for the six surest queries, drawn over the picture. A query also looks beside its segment: what
# is next to it tells where it ends.

# %%
attention = output.cross_attentions[-1][0].mean(0)  # [Q, cells]
height, width = (size // 32 for size in inputs["pixel_values"].shape[-2:])

figure, axes = plt.subplots(1, 6, figsize=(14, 2.2), layout="constrained")
for axis, query in zip(axes, order[:6].tolist(), strict=True):
    axis.imshow(picture)
    grid = attention[query].reshape(1, 1, height, width)
    heat = torch.nn.functional.interpolate(grid, size=picture.shape[:2], mode="bicubic")[0, 0]
    axis.imshow(heat, cmap="magma", alpha=0.6)
    axis.set_title(f"{query}: {model.config.id2label[int(labels[query])]}", fontsize=9)
    axis.set_axis_off()
plt.show()

# %% [markdown]
# ## From queries to a class map
#
# Semantic segmentation is one product (paper, section 3.4): for each pixel, the sum over queries of class probability times mask
# probability.

# %%
scores = torch.einsum("qc,qhw->chw", probs[:, :-1], masks)
by_hand = scores.argmax(0)
by_processor = processor.post_process_semantic_segmentation(output)[0]
print("the same at", f"{(by_hand == by_processor).float().mean():.2%}", "of the pixels")
assert torch.equal(by_hand, by_processor.to(by_hand.dtype))
