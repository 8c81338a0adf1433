# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Fine-tuning with transformers' Trainer
#
# If you already train with `Trainer`, keep doing so: the model returns its loss when it is given labels, as every model of
# transformers does. Two things differ from a classifier. Targets are lists, because pictures have different numbers of segments;
# and `Trainer` cannot gather such lists from several processes, so the evaluation is `maskformer`'s.

# %%
import torch
from transformers import Trainer, TrainingArguments

from maskformer import MaskFormerForInstanceSegmentation, MaskFormerImageProcessor, Segmenter
from maskformer.checkpoints.loading import resolve_checkpoint
from maskformer.data.collate import Collate
from maskformer.data.example import write_example
from maskformer.data.recognise import open_dataset
from maskformer.data.transforms import TransformedDataset, paper_transforms
from maskformer.evaluation.evaluate import evaluate

write_example("pictures", 8, (128, 160))
dataset = open_dataset("pictures", "train")
checkpoint = resolve_checkpoint("scenes")
processor = MaskFormerImageProcessor.from_pretrained(checkpoint, size={"shortest_edge": 128, "longest_edge": 160})
model = MaskFormerForInstanceSegmentation.from_pretrained(checkpoint, backbone_norm="frozen").float()
len(dataset), dataset.layout

# %% [markdown]
# `backbone_norm="frozen"` keeps the statistics that the ResNet has learnt. `Trainer` puts the whole model into training mode before
# each step; batch norms would then use the statistics of four pictures, and forget better ones. (Swin has no batch norms.)
#
# The model knows these classes already. That is what training must not spoil:

# %%
before = evaluate(Segmenter(model.eval(), processor, "panoptic"), open_dataset("pictures", "val"))
print(f"PQ before training {before.metrics['PQ']:.1f}")


# %% [markdown]
# `Collate` makes a batch of samples: pictures padded to one size, and lists of masks and labels. `valid_mask` marks the pixels that
# count: all but padding and those the annotation ignores.

# %%
training_set = TransformedDataset(dataset, paper_transforms([128], 160, None))
collate = Collate(multiple=32, with_valid_mask=True)
batch = collate([training_set[0], training_set[1]])
{name: [tuple(entry.shape) for entry in value] for name, value in batch.items()}

# %%
arguments = TrainingArguments(
    output_dir="run",
    max_steps=20,
    per_device_train_batch_size=4,
    learning_rate=5e-5,
    remove_unused_columns=False,  # the labels are not columns that Trainer knows
    logging_steps=5,
    report_to="none",
    save_strategy="no",
    use_cpu=not torch.cuda.is_available(),
    dataloader_pin_memory=False,
)
trainer = Trainer(model, arguments, train_dataset=training_set, data_collator=collate)
result = trainer.train()
print(f"loss {result.training_loss:.3f}")

# %% [markdown]
# Save the model and its processor, then evaluate by the official rules. (Twenty steps on eight pictures teach nothing new: that the
# quality stays is what there is to see.)

# %%
trainer.save_model("run/model")
processor.save_pretrained("run/model")
evaluation = evaluate(Segmenter.from_pretrained("run/model"), open_dataset("pictures", "val"))
{name: round(value, 1) for name, value in evaluation.metrics.items()}
