"""Fine-tune a checkpoint on a small folder of images and label maps with transformers' `Trainer`.

    python examples/finetune_with_trainer.py --data DIR --model facebook/maskformer-swin-tiny-coco --out runs/trainer

`DIR` is anything that `maskformer data check DIR` recognises. `Trainer` trains on several processes too (torchrun). Its
own evaluation gathers lists of masks of different lengths and fails there, so this script evaluates with the package's:
the numbers are the official ones, and the same on any number of processes.

With gradient accumulation, `Trainer` divides the loss of each micro-batch by their number, which gives micro-batches
with few targets too much weight: use `maskformer train`, or the bare loop beside this script, for exact accumulation.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import Trainer, TrainingArguments

from maskformer import MaskFormerConfig, MaskFormerForInstanceSegmentation, MaskFormerImageProcessor, Segmenter
from maskformer.checkpoints.loading import resolve_checkpoint
from maskformer.data.collate import Collate
from maskformer.data.recognise import open_dataset
from maskformer.data.transforms import TransformedDataset, paper_transforms
from maskformer.evaluation.evaluate import evaluate


def main(argv: Sequence[str] | None = None) -> dict[str, float | None]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=384, help="shorter edge of the images")
    arguments = parser.parse_args(argv)

    data = open_dataset(arguments.data, "train")
    sizes = [round(arguments.size * scale) for scale in (0.75, 1.0, 1.25)]
    checkpoint = resolve_checkpoint(arguments.model)
    # A ResNet keeps the statistics of its checkpoint: those of a small batch would spoil it.
    is_resnet = MaskFormerConfig.from_pretrained(checkpoint).backbone_config.model_type == "resnet"
    norm = {"backbone_norm": "frozen"} if is_resnet else {}
    training_set = TransformedDataset(data, paper_transforms(sizes, 2 * arguments.size, None, distort_colors=True))
    model = MaskFormerForInstanceSegmentation.from_pretrained(
        checkpoint,
        id2label=data.id2label,
        label2id={name: label for label, name in data.id2label.items()},
        stuff_class_ids=data.stuff_class_ids if data.task == "panoptic" else None,
        use_auxiliary_loss=True,  # a loss on every layer of the decoder
        ignore_mismatched_sizes=True,  # other classes than the checkpoint's: the class predictor starts anew
        dtype=torch.float32,
        **norm,
    )
    processor = MaskFormerImageProcessor(
        size={"shortest_edge": arguments.size, "longest_edge": 2 * arguments.size},
        ignore_index=255,
        label_ids_to_fuse=model.config.stuff_class_ids,
    )
    settings = TrainingArguments(
        output_dir=str(arguments.out / "trainer"),
        max_steps=arguments.steps,
        per_device_train_batch_size=arguments.batch,
        learning_rate=1e-4,
        warmup_steps=arguments.steps // 20,
        max_grad_norm=0.01,
        logging_steps=max(1, arguments.steps // 20),
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,  # samples are no columns
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    trainer = Trainer(
        model=model, args=settings, train_dataset=training_set, data_collator=Collate(multiple=32, with_valid_mask=True)
    )
    trainer.train()
    if trainer.is_world_process_zero():
        model.save_pretrained(arguments.out / "model")
        processor.save_pretrained(arguments.out / "model")
    result = evaluate(Segmenter(model, processor, data.task), open_dataset(arguments.data, "val"))
    if trainer.is_world_process_zero():
        print({name: value for name, value in result.metrics.items() if value is not None})
    return result.metrics


if __name__ == "__main__":
    main()
