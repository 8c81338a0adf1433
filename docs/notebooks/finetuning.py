# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Fine-tuning on your own folder
#
# From a folder of annotated pictures to a checkpoint, for panoptic, instance and semantic segmentation, by the command line. The
# folder is drawn here, so that nothing has to be downloaded; bring your own in any of the [formats](../data.md). All of it takes a few
# minutes on two CPU cores.

# %%
# !maskformer data example pictures --limit 12

# %% [markdown]
# ## Look at the data first
#
# The check says what each value of the annotation becomes and what is wrong, and draws a contact sheet of what training will see.

# %%
# !maskformer data check pictures --split train

# %%
from PIL import Image

Image.open("data-check.png")

# %% [markdown]
# ## Panoptic
#
# These data allow all three tasks, and panoptic is their default. The recipe `small` starts from the bundled model, which knows these
# classes already, so a few steps add little. For photographs, start from a published checkpoint:
# `--model facebook/maskformer-swin-tiny-coco`.

# %%
# !maskformer train --data pictures --out panoptic --steps 30 --batch-size 4 --eval-every 15 --workers 0

# %%
# !maskformer evaluate --model panoptic/model --data pictures

# %%
from maskformer import Segmenter

Segmenter.from_pretrained("panoptic/model").predict("pictures/val/000001.jpg")[0].overlay()

# %% [markdown]
# ## Instance
#
# Things only: what is stuff in the annotation becomes background. The metric is average precision.

# %%
# !maskformer train --data pictures --out instance --task instance --steps 30 --batch-size 4 --eval-every 15 --workers 0

# %%
# !maskformer evaluate --model instance/model --data pictures --task instance

# %%
Segmenter.from_pretrained("instance/model", task="instance").predict("pictures/val/000001.jpg")[0].overlay()

# %% [markdown]
# ## Semantic
#
# A class per pixel; the metric is mean IoU.

# %%
# !maskformer train --data pictures --out semantic --task semantic --steps 30 --batch-size 4 --eval-every 15 --workers 0

# %%
# !maskformer evaluate --model semantic/model --data pictures --task semantic

# %%
Segmenter.from_pretrained("semantic/model", task="semantic").predict("pictures/val/000001.jpg")[0].overlay()

# %% [markdown]
# ## What is in a run
#
# The settings, the log, the checkpoints that `--resume` goes on from, sample predictions, and `model`, which transformers loads too.

# %%
import json
from pathlib import Path

print(sorted(path.name for path in Path("panoptic").iterdir()))
for line in Path("panoptic/log.jsonl").read_text().splitlines()[-2:]:
    print(json.loads(line))
