"""Adapters of low rank (LoRA, arXiv 2106.09685) by peft on the linear layers of the transformer and of Swin."""

from __future__ import annotations

import re
from typing import Any

import peft
import pytest
import torch
from torch import nn

from maskformer import load_model

# peft asks a transformers model for a property that is deprecated there.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

# What users copy: every linear layer of the transformer decoder and of the Swin backbone.
TRANSFORMER = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
SWIN = ["query", "key", "value", "dense", "reduction"]


def adapted(checkpoint: str) -> Any:
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=[*TRANSFORMER, *SWIN], modules_to_save=["class_predictor"]
    )
    return peft.get_peft_model(load_model(checkpoint), config)


def logits(model: Any, pixel_values: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        outputs = model.eval()(pixel_values=pixel_values)
    return [outputs.class_queries_logits, outputs.masks_queries_logits]


def assert_same_logits(one: Any, other: Any, tolerance: float) -> None:
    pixel_values = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1)).to(one.dtype)
    for ours, theirs in zip(logits(one, pixel_values), logits(other, pixel_values), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * ours.abs().max().item())


def train_a_little(model: Any, steps: int) -> list[float]:
    generator = torch.Generator().manual_seed(2)
    batch = {
        "pixel_values": torch.randn(2, 3, 64, 96, generator=generator),
        "mask_labels": [(torch.rand(count, 64, 96, generator=generator) < 0.4) for count in (3, 1)],
        "class_labels": [torch.tensor([0, 5, 2]), torch.tensor([1])],
    }
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=5e-3)
    losses = []
    model.train()
    for _ in range(steps):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_every_linear_layer_gets_an_adapter(checkpoint) -> None:
    model = adapted(checkpoint)
    linear = {name for name, module in load_model(checkpoint).named_modules() if isinstance(module, nn.Linear)}
    left_out = {name for name in linear if not hasattr(model.base_model.model.get_submodule(name), "lora_A")}
    assert left_out == {"class_predictor", *(f"mask_embedder.{place}.0" for place in range(3))}
    learnt = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(re.search(r"\.lora_[AB]\.|class_predictor\.modules_to_save\.", name) for name in learnt)


def test_adapters_learn_and_everything_else_stays(checkpoint, tmp_path) -> None:
    model = adapted(checkpoint)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    losses = train_a_little(model, 12)
    assert losses[-1] < 0.9 * losses[0]
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    learnt = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    # Where the first layer attends, all queries are still 0: its projections of them have nothing to learn.
    still = {name for name in learnt - moved if ".decoder.layers.0.self_attn." not in name}
    assert moved <= learnt
    assert not still

    model.save_pretrained(tmp_path / "adapter")
    assert sorted(path.name for path in (tmp_path / "adapter").glob("*.safetensors")) == ["adapter_model.safetensors"]
    again = peft.PeftModel.from_pretrained(load_model(checkpoint), tmp_path / "adapter")
    assert_same_logits(model, again, 0)
    # A merged weight is rounded anew: in float32 that is seen in the logits' sixth digit.
    again.merge_and_unload().save_pretrained(tmp_path / "merged")
    assert_same_logits(model, load_model(tmp_path / "merged"), 1e-5)
    merged = peft.PeftModel.from_pretrained(load_model(checkpoint), tmp_path / "adapter").double().merge_and_unload()
    assert_same_logits(model.double(), merged, 1e-6)
