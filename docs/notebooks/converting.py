# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Converting the authors' weights
#
# The authors publish `.pkl` files for detectron2. `maskformer convert` reads them without running anything they contain, and
# writes a directory that this package and transformers load. There is nothing to download here: a file in their layout is made
# first, from random weights.

# %%
import torch

from maskformer import MaskFormerConfig, MaskFormerForInstanceSegmentation, load_model

torch.manual_seed(0)
config = MaskFormerConfig.from_zoo("r50-ade20k-150")
MaskFormerForInstanceSegmentation(config).save_pretrained("random")

# %%
# !maskformer convert random model_final.pkl

# %% [markdown]
# ## From their layout
#
# The architecture (backbone, widths, layers, classes) is read from the shapes of the weights. They do not tell the number of attention
# heads (`--attention-heads`, 8 by default). Image sizes and stuff classes come from the published configuration that fits.

# %%
# !maskformer convert model_final.pkl converted

# %%
with torch.no_grad():
    pixels = torch.randn(1, 3, 96, 128)
    before, after = (load_model(name).eval()(pixels) for name in ("random", "converted"))
print("largest difference", float((before.masks_queries_logits - after.masks_queries_logits).abs().max()))

# %% [markdown]
# ## A file that is not what it seems
#
# A pickle can run code when it is read. The reader used here accepts arrays and plain containers only, and names what it refuses.

# %%
import os
import pickle
from pathlib import Path


class Evil:
    def __reduce__(self):
        return os.system, ("echo this would have run",)


_ = Path("evil.pkl").write_bytes(pickle.dumps({"model": Evil()}))

# %%
# !maskformer convert evil.pkl nowhere || true
