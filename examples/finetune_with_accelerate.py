"""Fine-tune a checkpoint on a small folder of images and label maps in a loop of your own on Accelerate.

    python examples/finetune_with_accelerate.py --data DIR --model facebook/maskformer-swin-tiny-coco --out runs/loop
    torchrun --nproc-per-node 2 examples/finetune_with_accelerate.py ...

`DIR` is anything that `maskformer data check DIR` recognises. What a loop must get right is the divisor of the loss:
one for all micro-batches of a step (`normalizer`), and no further division by their number. Then accumulation and more
processes change nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

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
    parser.add_argument("--batch", type=int, default=2, help="images of a micro-batch")
    parser.add_argument("--accumulation", type=int, default=2, help="micro-batches of a step")
    parser.add_argument("--size", type=int, default=384, help="shorter edge of the images")
    arguments = parser.parse_args(argv)

    accelerator = Accelerator()  # its own gradient accumulation divides by the number of micro-batches: not used
    torch.manual_seed(0)
    data = open_dataset(arguments.data, "train")
    sizes = [round(arguments.size * scale) for scale in (0.75, 1.0, 1.25)]
    checkpoint = resolve_checkpoint(arguments.model)
    # A ResNet keeps the statistics of its checkpoint: those of a small batch would spoil it.
    is_resnet = MaskFormerConfig.from_pretrained(checkpoint).backbone_config.model_type == "resnet"
    norm = {"backbone_norm": "frozen"} if is_resnet else {}
    training_set = TransformedDataset(data, paper_transforms(sizes, 2 * arguments.size, None, distort_colors=True))
    loader = DataLoader(
        training_set, arguments.batch, shuffle=True, collate_fn=Collate(multiple=32, with_valid_mask=True)
    )
    network = MaskFormerForInstanceSegmentation.from_pretrained(
        checkpoint,
        id2label=data.id2label,
        label2id={name: label for label, name in data.id2label.items()},
        stuff_class_ids=data.stuff_class_ids if data.task == "panoptic" else None,
        use_auxiliary_loss=True,  # a loss on every layer of the decoder
        ignore_mismatched_sizes=True,  # other classes than the checkpoint's: the class predictor starts anew
        dtype=torch.float32,
        **norm,
    ).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=0.01)
    model, optimizer, loader = accelerator.prepare(network, optimizer, loader)

    endless = itertools.chain.from_iterable(itertools.repeat(loader))
    num_queries = network.config.decoder_config.num_queries
    for step in range(1, arguments.steps + 1):
        batches = [next(endless) for _ in range(arguments.accumulation)]
        labels = [image for batch in batches for image in batch["class_labels"]]
        normalizer = network.criterion.compute_normalizer(labels, num_queries)
        total = 0.0
        for number, batch in enumerate(batches, start=1):
            is_last = number == len(batches)
            with contextlib.nullcontext() if is_last else accelerator.no_sync(model):
                loss = model(**batch, normalizer=normalizer).loss
                accelerator.backward(loss)
                total += loss.item()
        accelerator.clip_grad_norm_(model.parameters(), 0.01)
        optimizer.step()
        optimizer.zero_grad()
        if step % max(1, arguments.steps // 20) == 0:
            accelerator.print(f"step {step}: loss {total:.3f} (of process 0)")

    processor = MaskFormerImageProcessor(
        size={"shortest_edge": arguments.size, "longest_edge": 2 * arguments.size},
        ignore_index=255,
        label_ids_to_fuse=network.config.stuff_class_ids,
    )
    if accelerator.is_main_process:
        network.save_pretrained(arguments.out / "model")
        processor.save_pretrained(arguments.out / "model")
    result = evaluate(Segmenter(network, processor, data.task), open_dataset(arguments.data, "val"))
    accelerator.print({name: value for name, value in result.metrics.items() if value is not None})
    accelerator.end_training()
    return result.metrics


if __name__ == "__main__":
    main()
