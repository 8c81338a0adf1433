"""What goes with a trained model to whoever uses it: a card that says how it came about, and the way to the hub."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData
from huggingface_hub.utils import validate_repo_id

from maskformer.checkpoints.unpickling import first_line
from maskformer.data.dataset import SegmentationDataset
from maskformer.training.config import TrainingConfig
from maskformer.training.recipes import resolve

_SHOWN_CLASSES = 200
_USAGE = """from maskformer import Segmenter

segmenter = Segmenter.from_pretrained("{}")  # an id on the hub, or the directory of this file
result = segmenter.predict("picture.png")[0]
print([(segment.label, segment.score) for segment in result.segments])
result.overlay().save("overlay.png")"""


def build_card(config: TrainingConfig, dataset: SegmentationDataset, metrics: dict[str, Any], step: int) -> ModelCard:
    """The card of a model after `step` steps; `metrics` of its last evaluation, in percent, may be empty.

    Of files and directories it names the last part alone: the rest is nobody's business.
    """
    numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    model_name = (config.push_to_hub or "").rpartition("/")[2] or config.out.resolve().name
    data_name, start = _name(config.data), config.model or config.network or "small"
    results = [
        EvalResult("image-segmentation", dataset.layout, data_name, name, value, dataset_split=config.eval_split)
        for name, value in numbers.items()
    ]
    is_on_hub = config.model is not None and config.model.count("/") == 1 and not Path(config.model).exists()
    data = ModelCardData(
        base_model=config.model if is_on_hub else None,
        library_name="maskformer",
        pipeline_tag="image-segmentation",
        tags=["maskformer", f"{dataset.task}-segmentation"],
        model_name=model_name,
        eval_results=results or None,
    )
    base = resolve({"recipe": config.recipe, "data": config.data, "out": config.out})
    changed = [name for name in base.changes(config) if name != "data"]
    names = [category.name for category in dataset.categories]
    more = f", and {len(names) - _SHOWN_CLASSES} more" if len(names) > _SHOWN_CLASSES else ""
    origin = f"the checkpoint `{_name(start)}`" if config.model else f"random weights of the network `{start}`"
    if config.backbone_weights:
        origin += f" with the backbone of `{_name(config.backbone_weights)}`"
    lines = [
        *("---", data.to_yaml(), "---", "", f"# {model_name}", ""),
        f"A MaskFormer for {dataset.task} segmentation, trained with `maskformer train`.",
        *("", "```python", _USAGE.format(config.push_to_hub or model_name), "```", ""),
        *("## Data", "", f"`{data_name}` ({dataset.layout}, split {config.split}): {len(dataset)} images of"),
        *(f"{len(names)} classes: {', '.join(names[:_SHOWN_CLASSES])}{more}.", ""),
        *("## Training", "", f"{step} of {config.steps} steps of the recipe `{config.recipe}`, from {origin}."),
        *("", *(f"- `{name}`: {_name(getattr(config, name))}" for name in changed), ""),
        *("## Evaluation", "", *_table(numbers, config), ""),
        *("## Versions", "", f"maskformer {version('maskformer')}, torch {torch.__version__}, transformers"),
        f"{version('transformers')}, Python {sys.version.split()[0]}.",
    ]
    return ModelCard("\n".join(lines) + "\n")


def check_hub(config: TrainingConfig) -> None:
    """Whether an upload can work, asked before a training.

    Raises:
        ValueError: no such name can be, nobody is logged in, the log-in may not write there, or no hub is in reach.
    """
    if config.push_to_hub is None:
        return
    validate_repo_id(config.push_to_hub)
    try:
        who: dict[str, Any] = HfApi().whoami()
    except Exception as error:  # of the network, of the hub or of a missing token: the kinds change with its versions
        raise ValueError(
            f"push_to_hub {config.push_to_hub} cannot work: the hub does not say who is logged in "
            f"({first_line(error)}); log in with `hf auth login`, or train without it and upload later"
        ) from error
    owner = config.push_to_hub.rpartition("/")[0]
    may = [who["name"], *(each["name"] for each in who.get("orgs", []))]
    if owner and owner not in may:
        raise ValueError(
            f"push_to_hub {config.push_to_hub}: you are {may[0]}, expected {' or '.join(may)} before the /"
        )
    if ((who.get("auth") or {}).get("accessToken") or {}).get("role") == "read":
        raise ValueError(f"push_to_hub {config.push_to_hub}: your token may only read, log in with one that may write")


def push(config: TrainingConfig, directory: Path) -> str:
    """Uploads a directory; a sentence about where it is.

    Raises:
        ValueError: it did not work; the directory is as it was.
    """
    assert config.push_to_hub is not None, "else nobody asked"
    try:
        api = HfApi()
        repository = api.create_repo(config.push_to_hub, private=config.private, exist_ok=True)
        api.upload_folder(
            repo_id=repository.repo_id, folder_path=directory, commit_message=f"Trained by the recipe {config.recipe}"
        )
    except Exception as error:  # as above
        raise ValueError(
            f"the model is whole in {directory}, but could not be uploaded to {config.push_to_hub} "
            f"({first_line(error)}): the same command with --resume tries it again"
        ) from error
    return f"uploaded to {repository}"


def _table(numbers: dict[str, Any], config: TrainingConfig) -> list[str]:
    if not numbers:
        return ["Not evaluated."]
    some = "" if config.eval_images is None else f", at most {config.eval_images} images"
    rows = [f"| {name} | {value:.2f} |" for name, value in numbers.items()]
    return [f"On the split {config.eval_split}{some}, in percent:", "", "| metric | value |", "|---|---|", *rows]


def _name(value: Any) -> Any:
    """Of a path the last part; all else as it is."""
    return Path(value).resolve().name if isinstance(value, str) and Path(value).expanduser().exists() else value
