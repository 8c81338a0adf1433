"""Train the small model that is bundled with the package, on drawn scenes, with the package's own loss.

    python examples/train_scenes.py --out runs/scenes
    python examples/train_scenes.py --out runs/scenes --resume      # after an interruption

Every picture is new: a step draws its own scenes from its own seeds, far from those the demo is judged on. The first
part of the run sees small pictures, the rest the size the model is made for. The log (`log.csv`) and the exported
checkpoint (`model/`) are what is committed.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, IterableDataset

from maskformer import MaskFormerConfig, MaskFormerForInstanceSegmentation, MaskFormerImageProcessor
from maskformer.data.scenes import LABELS, STUFF_IDS, draw_scene

SIZE = (192, 256)
SMALL_SIZE = (128, 160)
SMALL_PART = 0.45
TARGET_STRIDE = 2
MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32) * 255
STD = np.array([0.229, 0.224, 0.225], dtype=np.float32) * 255


def bundled_config() -> MaskFormerConfig:
    """A ResNet-18 of half the width, a pyramid of 64 channels and a four-layer decoder: four million weights."""
    return MaskFormerConfig(
        backbone_config={
            "model_type": "resnet",
            "embedding_size": 32,
            "hidden_sizes": [32, 64, 128, 256],
            "depths": [2, 2, 2, 2],
            "layer_type": "basic",
            "out_features": ["stage1", "stage2", "stage3", "stage4"],
        },
        decoder_config={
            "model_type": "detr",
            "backbone_config": None,
            "use_timm_backbone": False,
            "d_model": 128,
            "num_queries": 32,
            "decoder_layers": 4,
            "decoder_ffn_dim": 512,
            "decoder_attention_heads": 8,
            "encoder_attention_heads": 8,
            "encoder_layers": 0,
            "dropout": 0.0,
        },
        fpn_feature_size=64,
        mask_feature_size=64,
        # Small things weigh little in a mean over pixels; the dice term is what holds their masks.
        mask_weight=20.0,
        dice_weight=4.0,
        cross_entropy_weight=2.0,
        deep_supervision=True,
        id2label=LABELS,
        label2id={name: number for number, name in LABELS.items()},
        stuff_class_ids=STUFF_IDS,
    )


class Scenes(IterableDataset):
    """Batches of scenes by step: seed = step * batch + index, so that a resumed run sees what it would have seen."""

    def __init__(self, first: int, steps: int, batch: int):
        self.first, self.steps, self.batch = first, steps, batch

    def __iter__(self) -> Iterator[dict]:
        torch.set_num_threads(1)
        worker = torch.utils.data.get_worker_info()
        stride, offset = (worker.num_workers, worker.id) if worker else (1, 0)
        for step in range(self.first + offset, self.steps, stride):
            size = SMALL_SIZE if step < SMALL_PART * self.steps else SIZE
            yield self.draw(step, size)

    def draw(self, step: int, size: tuple[int, int]) -> dict:
        pixels, masks, labels = [], [], []
        for seed in range(step * self.batch, (step + 1) * self.batch):
            scene = draw_scene(seed, size)
            image, ids = scene.image, scene.segmentation[::TARGET_STRIDE, ::TARGET_STRIDE]
            if seed % 2:
                image, ids = image[:, ::-1], ids[:, ::-1]
            pixels.append(((image - MEAN) / STD).transpose(2, 0, 1))
            masks.append(torch.from_numpy(np.stack([ids == segment["id"] for segment in scene.segments])))
            labels.append(torch.tensor([segment["category_id"] for segment in scene.segments]))
        return {"pixel_values": torch.from_numpy(np.stack(pixels)), "mask_labels": masks, "class_labels": labels}


def learning_rate(step: int, steps: int, peak: float, warm_up: int = 200) -> float:
    if step < warm_up:
        return peak * (step + 1) / warm_up
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up))))


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict]:
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    vectors = [weight for weight in model.parameters() if weight.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def loss_terms(model: MaskFormerForInstanceSegmentation, batch: dict) -> dict[str, Tensor]:
    pixel_values = batch["pixel_values"].to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(pixel_values, output_auxiliary_logits=True)
    return model.get_loss_dict(
        output.masks_queries_logits,
        output.class_queries_logits,
        batch["mask_labels"],
        batch["class_labels"],
        output.auxiliary_logits,
    )


def train(arguments: argparse.Namespace) -> None:
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = MaskFormerForInstanceSegmentation(bundled_config()).train().to(memory_format=torch.channels_last)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.998), use_buffers=True)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.05), lr=arguments.lr)
    first, state_file = 0, out / "state.pt"
    if arguments.resume and state_file.exists():
        state = torch.load(state_file)
        first = state["step"]
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
    loader = DataLoader(
        Scenes(first, arguments.steps, arguments.batch),
        batch_size=None,
        num_workers=arguments.workers,
        prefetch_factor=4,
    )
    started, log = time.time(), out / "log.csv"
    with log.open("a" if first else "w", newline="") as file:
        writer = csv.writer(file)
        if not first:
            writer.writerow(["step", "lr", "loss", "cross_entropy", "mask", "dice", "images_per_second"])
        sums = np.zeros(4)
        for step, batch in enumerate(loader, start=first):
            rate = learning_rate(step, arguments.steps, arguments.lr)
            for group in optimizer.param_groups:
                group["lr"] = rate
            terms = loss_terms(model, batch)
            loss = torch.stack(list(terms.values())).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            average.update_parameters(model)
            sums += [loss.item(), *(terms[f"loss_{name}"].item() for name in ("cross_entropy", "mask", "dice"))]
            if (step + 1) % arguments.every == 0:
                speed = (step + 1 - first) * arguments.batch / (time.time() - started)
                row = [step + 1, f"{rate:.2e}", *(f"{value:.4f}" for value in sums / arguments.every), f"{speed:.1f}"]
                writer.writerow(row)
                file.flush()
                print(*row, flush=True)
                sums[:] = 0
            if (step + 1) % (10 * arguments.every) == 0 or step + 1 == arguments.steps:
                save_state(state_file, step + 1, model, average, optimizer)
                export(average.module, out / "model")


def save_state(path: Path, step: int, model, average, optimizer) -> None:
    state = {"step": step, "model": model.state_dict(), "average": average.state_dict()}
    torch.save({**state, "optimizer": optimizer.state_dict()}, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


def export(model: MaskFormerForInstanceSegmentation, directory: Path) -> None:
    """The averaged weights in half precision, and the processor that goes with them."""
    copy = MaskFormerForInstanceSegmentation(model.config)
    copy.load_state_dict(model.state_dict())
    copy.half().save_pretrained(directory)
    MaskFormerImageProcessor(
        size={"shortest_edge": SIZE[0], "longest_edge": 2 * SIZE[1]}, ignore_index=255, label_ids_to_fuse=STUFF_IDS
    ).save_pretrained(directory)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=9000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--resume", action="store_true")
    train(parser.parse_args())
