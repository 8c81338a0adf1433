# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Three tasks, one network
#
# One checkpoint answers three questions about a picture: which class each pixel has (semantic), which things there are, one by one
# (instance), and both at once (panoptic). The bundled model `scenes`, which is used here, knows drawn scenes and needs no download.
# For photographs, write `"facebook/maskformer-swin-base-coco"` instead, and the name of a file where the scene is drawn.

# %%
from PIL import Image

from maskformer import Segmenter
from maskformer.data.scenes import draw_scene

segmenter = Segmenter.from_pretrained("scenes")
picture = Image.fromarray(draw_scene(10_000_004).image)
picture.resize((512, 384))

# %% [markdown]
# ## Panoptic
#
# A pixel belongs to one segment at most; where no segment is sure enough, it is void (0) and stays uncoloured. Uncountable classes
# (sky, water) are one segment each, and every thing is a segment of its own.

# %%
panoptic = segmenter.predict(picture, task="panoptic")[0]
panoptic.overlay()

# %%
for segment in panoptic.segments:
    kind = "thing" if segment.is_thing else "stuff"
    print(
        f"{segment.id:3} {segment.label:10} {kind} score {segment.score:.2f} area {segment.area:6} box {segment.bbox}"
    )

# %% [markdown]
# ## Instance
#
# Every query that is sure of an object gives one result, the best first. Results may overlap, so each has its own mask.

# %%
instance = segmenter.predict(picture, task="instance")[0]
best = instance.segments[0]
print(best.label, best.mask.shape, best.mask.dtype, best.mask.sum(), "pixels")
instance.overlay()

# %% [markdown]
# ## Semantic
#
# A class per pixel, whatever it belongs to.

# %%
semantic = segmenter.predict(picture, task="semantic")[0]
semantic.overlay()

# %% [markdown]
# ## What to do with the answers
#
# `segmentation` is an array of ids; `to_coco`, `to_panoptic` and `to_json` give what other tools read; `save` writes overlay, map and
# JSON. Thresholds are arguments of `predict`.

# %%
strict = segmenter.predict(picture, task="panoptic", threshold=0.95)[0]
print(len(panoptic.segments), "segments,", len(strict.segments), "with a score above 0.95")
print(panoptic.segmentation.shape, panoptic.segmentation.dtype)
panoptic.to_coco(image_id=1, compressed=True)[0]

# %% [markdown]
# Several pictures at once, of any size: only those of one size share a forward pass, so no result depends on its neighbours.

# %%
pictures = [Image.fromarray(draw_scene(seed, size).image) for seed, size in ((1, (192, 256)), (2, (256, 192)))]
[(result.image_size, len(result.segments)) for result in segmenter.predict(pictures)]
