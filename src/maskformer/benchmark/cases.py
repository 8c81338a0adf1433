"""The work that is measured: each case prepares its input and returns the call to time.

A case is a function of the side, "ours" or "transformers"; both sides get equal input, drawn from one seed.
Run as a module it measures one side of one case and prints a line of JSON; `runner.py` starts it so.

Shape letters: B batch, Q queries, C classes, N targets, H W image, h w stride-4 map.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Side = Literal["ours", "transformers"]
Work = Callable[[], object]

QUERIES = 100
used_device = torch.device("cpu")  # of logits, targets and networks; pictures start on the CPU
LARGE_SIZE = (1536, 2048)


def _blobs(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Smooth bumps [count, height, width] about -6 to 6: masks as a trained model predicts them, not noise."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.linspace(0, 1, height)[None, :, None]
    x = torch.linspace(0, 1, width)[None, None, :]
    center = torch.rand(2, count, 1, 1, generator=generator)
    radius = 0.05 + 0.25 * torch.rand(count, 1, 1, generator=generator)
    distance = ((y - center[0]) ** 2 + (x - center[1]) ** 2).sqrt()
    rough = torch.randn(count, height, width, generator=generator)
    return ((radius - distance) * 30 + 0.3 * rough).to(used_device)


def _classes(batch: int, num_labels: int, seed: int = 1) -> Tensor:
    """Class logits [batch, Q, C + 1]: a third of the queries sure of a class, the others of none."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, QUERIES, num_labels + 1, generator=generator)
    sure = torch.arange(QUERIES) % 3 == 0
    label = torch.randint(num_labels, (batch, QUERIES), generator=generator)
    label = torch.where(sure, label, num_labels)
    return logits.scatter_add(2, label[..., None], torch.full((batch, QUERIES, 1), 8.0)).to(used_device)


def _criterion(side: Side, num_labels: int) -> Any:
    package: Any = importlib.import_module(
        "maskformer.losses" if side == "ours" else "transformers.models.maskformer.modeling_maskformer"
    )
    weights = {"loss_cross_entropy": 1.0, "loss_mask": 20.0, "loss_dice": 1.0}
    matcher = package.MaskFormerHungarianMatcher(cost_class=1.0, cost_mask=20.0, cost_dice=1.0)
    return package.MaskFormerLoss(num_labels, matcher=matcher, weight_dict=weights, eos_coef=0.1).to(used_device)


def _targets(num_targets: int, height: int, width: int, side: Side) -> tuple[list[Tensor], list[Tensor]]:
    masks = [_blobs(num_targets, height, width, seed=10 + image) > 0 for image in range(2)]
    labels = [torch.arange(num_targets, device=used_device) % 133 for _ in range(2)]
    # transformers computes with float targets, ours with bool ones: each side gets what its processor makes.
    return [mask if side == "ours" else mask.float() for mask in masks], labels


def loss(side: Side, num_targets: int, height: int, width: int) -> Work:
    """Forward and backward of the loss with five auxiliary heads, two images."""
    criterion = _criterion(side, 133)
    masks, labels = _targets(num_targets, height, width, side)
    heads = [
        (
            _blobs(2 * QUERIES, height // 4, width // 4, seed=head).unflatten(0, (2, QUERIES)).requires_grad_(),
            _classes(2, 133, seed=head).requires_grad_(),
        )
        for head in range(6)
    ]
    names = ("masks_queries_logits", "class_queries_logits")
    auxiliary = [dict(zip(names, head, strict=True)) for head in heads[1:]]

    def work() -> None:
        terms = criterion(*heads[0], masks, labels, auxiliary)
        torch.stack([term.reshape(()) for term in terms.values()]).sum().backward()

    return work


def matcher(side: Side) -> Work:
    """The assignment of one head, two images of 800x1216 with 40 targets each."""
    criterion = _criterion(side, 133)
    masks, labels = _targets(40, 800, 1216, side)
    predictions = _blobs(2 * QUERIES, 200, 304).unflatten(0, (2, QUERIES)), _classes(2, 133)
    return lambda: criterion.matcher(*predictions, masks, labels)


def _package(side: Side) -> Any:
    return importlib.import_module("maskformer" if side == "ours" else "transformers")


def postprocessing(side: Side, task: str, num_labels: int) -> Work:
    """One image, from 160x216 logits to a map of 1536x2048."""
    outputs = SimpleNamespace(
        class_queries_logits=_classes(1, num_labels), masks_queries_logits=_blobs(QUERIES, 160, 216)[None]
    )
    method = getattr(_package(side).MaskFormerImageProcessor(), f"post_process_{task}_segmentation")
    extra = {"label_ids_to_fuse": set(range(80, 133))} if task == "panoptic" else {}
    return lambda: method(outputs, target_sizes=[LARGE_SIZE], **extra)


def preprocessing(side: Side, with_maps: bool) -> Work:
    """Four pictures of 1080x1920; with label maps of 20 segments each."""
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, (1080, 1920, 3), dtype=np.uint8) for _ in range(4)]
    processor = _package(side).MaskFormerImageProcessor()
    if not with_maps:
        return lambda: processor(images, return_tensors="pt")
    maps = [
        np.kron(generator.permutation(20).reshape(4, 5), np.ones((270, 384))).astype(np.int32) + 1 for _ in range(4)
    ]
    table = {number: number for number in range(21)}
    return lambda: processor(images, segmentation_maps=maps, instance_id_to_semantic_id=table, return_tensors="pt")


_SWIN_T = {"model_type": "swin", "embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7}
_SWIN_B = {**_SWIN_T, "embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "window_size": 12}
_BACKBONES: dict[str, dict[str, Any]] = {"r50": {"model_type": "resnet"}, "swin-t": _SWIN_T, "swin-b": _SWIN_B}


def _model(side: Side, backbone: str) -> Any:
    package = _package(side)
    stages = ["stage1", "stage2", "stage3", "stage4"]
    config = package.MaskFormerConfig(backbone_config={**_BACKBONES[backbone], "out_features": stages}, num_labels=150)
    torch.manual_seed(0)
    return package.MaskFormerForInstanceSegmentation(config).eval().to(used_device)


def forward(side: Side, backbone: str, size: int, bf16: bool = False) -> Work:
    """The network on one square picture, in float32 or under bfloat16 autocast."""
    model, pixel_values = _model(side, backbone), torch.randn(1, 3, size, size).to(used_device)

    def work() -> None:
        with torch.inference_mode(), torch.autocast(used_device.type, torch.bfloat16, enabled=bf16):
            model(pixel_values)

    return work


def picture(side: Side) -> Work:
    """A photograph-sized JPEG file in, panoptic map and segments out, Swin-T."""
    path = Path(tempfile.mkdtemp()) / "picture.jpg"
    from maskformer.data.scenes import draw_scene

    Image.fromarray(draw_scene(0, (384, 512)).image).resize((LARGE_SIZE[1], LARGE_SIZE[0])).save(path, quality=90)
    model, processor = _model(side, "swin-t"), _package(side).MaskFormerImageProcessor()
    if side == "ours":
        from maskformer.inference import Segmenter

        segmenter = Segmenter(model, processor, task="panoptic")
        return lambda: segmenter.predict(path)

    def work() -> np.ndarray:
        with torch.inference_mode():
            image = Image.open(path).convert("RGB")
            outputs = model(**processor(image, return_tensors="pt").to(used_device))
            result = processor.post_process_panoptic_segmentation(
                outputs, target_sizes=[image.size[::-1]], label_ids_to_fuse=set()
            )
            return result[0]["segmentation"].cpu().numpy()

    return work


CASES: dict[str, Callable[[Side], Work]] = {
    "loss-512": lambda side: loss(side, 20, 512, 512),
    "loss-800": lambda side: loss(side, 40, 800, 1216),
    "matcher": matcher,
    "semantic-150": lambda side: postprocessing(side, "semantic", 150),
    "semantic-847": lambda side: postprocessing(side, "semantic", 847),
    "panoptic": lambda side: postprocessing(side, "panoptic", 133),
    "instance": lambda side: postprocessing(side, "instance", 133),
    "preprocess": lambda side: preprocessing(side, with_maps=False),
    "preprocess-maps": lambda side: preprocessing(side, with_maps=True),
    "forward-r50": lambda side: forward(side, "r50", 512),
    "forward-swin-t": lambda side: forward(side, "swin-t", 512),
    "forward-swin-b": lambda side: forward(side, "swin-b", 640),
    "forward-swin-t-bf16": lambda side: forward(side, "swin-t", 512, bf16=True),
    "forward-swin-b-bf16": lambda side: forward(side, "swin-b", 640, bf16=True),
    "picture": picture,
}


def _resident(field: str) -> int:
    """A memory figure of this process in bytes, by its name in the kernel's status file."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(f"this system does not report {field}; the memory of a process is measured on Linux only")


def _wake_torch() -> None:
    """Threads and scratch buffers that torch's first operations allocate, whoever calls them, are nobody's memory."""
    small = torch.randn(4, 8, 128, 128, requires_grad=True)
    large = torch.nn.functional.interpolate(small.sigmoid(), scale_factor=4.0, mode="bilinear")
    (large.flatten(1) @ large.flatten(1).T).softmax(-1).sum().backward()


def _release() -> None:
    """What was freed goes back to the system, so that the next call cannot hide its memory in it."""
    gc.collect()
    release = getattr(ctypes.CDLL(None), "malloc_trim", None)  # the C library's, where it has one
    if release is not None:
        release(0)


def _repeat(work: Work, seconds: float) -> dict[str, float]:
    """Shortest time of at least one call and as many as fit, and their memory above the start."""
    _release()
    on_gpu = used_device.type == "cuda"
    start = torch.cuda.memory_allocated() if on_gpu else _resident("VmRSS")
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # forget the highest memory so far
    times: list[float] = []
    while not times or (sum(times) < seconds and len(times) < 50):
        began = time.perf_counter()
        work()
        if on_gpu:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    most = torch.cuda.max_memory_allocated() if on_gpu else _resident("VmHWM")
    return {"seconds": min(times), "bytes": float(max(0, most - start))}


def measure(work: Work, seconds: float) -> dict[str, float]:
    """Shortest time and memory above the start, after a call that is not counted: it compiles and fills caches.

    A call of more than ten times `seconds` is its own warm-up.
    """
    _wake_torch()
    first = _repeat(work, 0.0)
    return first if first["seconds"] > 10 * seconds else _repeat(work, seconds)


def ceilings() -> dict[str, float]:
    """What the machine can do at best: a plain matrix product in float32 and bfloat16, and copying memory."""
    found: dict[str, float] = {}
    for name, dtype in (("matmul_float32", torch.float32), ("matmul_bfloat16", torch.bfloat16)):
        left, right = torch.randn(2, 2048, 2048).to(used_device, dtype)
        found[f"{name}_gflops"] = 2 * 2048**3 / measure(lambda a=left, b=right: a @ b, 1.0)["seconds"] / 1e9
    source = torch.empty(2**27, dtype=torch.uint8, device=used_device)
    target = torch.empty_like(source)
    found["copy_gbytes"] = 2 * source.numel() / measure(lambda: target.copy_(source), 1.0)["seconds"] / 1e9
    return found


if __name__ == "__main__":
    name, side_word, limit, device = sys.argv[1:]
    used_device = torch.device(device)
    side: Side = "ours" if side_word == "ours" else "transformers"
    print(json.dumps(ceilings() if name == "ceilings" else measure(CASES[name](side), float(limit))))
