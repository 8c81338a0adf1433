"""The list of published models: rebuilt from the table it comes from, and held against the networks themselves."""

import ast
import csv
import functools
import json
import re
from importlib import resources
from pathlib import Path

import pytest
import torch

from maskformer.checkpoints.architecture import read_config, recognise
from maskformer.checkpoints.loading import model_class
from maskformer.checkpoints.original import to_original
from maskformer.checkpoints.zoo import find_in_zoo, list_zoo
from maskformer.configuration import MaskFormerConfig

TABLE = Path(__file__).parents[1] / "fixtures" / "zoo.tsv"

TEXT_COLUMNS = {
    "original_config", "model", "backbone", "pixel_decoder", "published_metric", "schedule", "optimizer", "crop_type",
    "dataset_mapper", "image_format",
}  # fmt: skip
SWIN_NAMES = {"Swin-T": "swin-tiny", "Swin-S": "swin-small", "Swin-B": "swin-base", "Swin-L": "swin-large"}
DATASET_NAMES = {
    "ade20k-full-847": "ade20k-847",
    "coco-stuff-10k-171": "coco-stuff-171",
    "mapillary-vistas-65": "mapillary-65",
}
KIND_NAMES = {
    "MaskFormer": "",
    "PerPixelBaseline": "per-pixel-baseline-",
    "PerPixelBaseline+": "per-pixel-baseline-plus-",
}

# Only checkpoints seen to be used under these ids; transformers has no form for "R.. + 6 Enc" and "R..c" networks.
HUB_DATASETS = {"ade20k-150": "ade", "coco-panoptic": "coco"}
HUB_RESNETS = {
    "r50-ade20k-150": "facebook/maskformer-resnet50-ade",
    "r101-ade20k-150": "facebook/maskformer-resnet101-ade",
    "r50-ade20k-847": "facebook/maskformer-resnet50-ade20k-full",
    "r101-cityscapes-19": "facebook/maskformer-resnet101-cityscapes",
    "r101-coco-stuff-171": "facebook/maskformer-resnet101-coco-stuff",
    "r50-mapillary-65": "facebook/maskformer-resnet50-vistas",
}

# The 80 things of COCO come first; of ADE20K's 150 classes these 50 are stuff (the benchmark's own division).
STUFF = {
    "coco-panoptic": list(range(80, 133)),
    "ade20k-150-panoptic": [
        0, 1, 2, 3, 4, 5, 6, 9, 11, 13, 16, 17, 21, 25, 26, 28, 29, 34, 40, 46, 48, 51, 52, 54, 59, 60, 61, 63, 68, 77,
        79, 84, 91, 94, 96, 99, 100, 101, 105, 106, 109, 113, 114, 117, 122, 128, 131, 140, 141, 145,
    ],
}  # fmt: skip


def typed(column, text):
    if text == "":
        return None
    if column in TEXT_COLUMNS:
        return text
    sizes = re.fullmatch(r"(\d+)\.\.(\d+) \((\d+) values, choice\)", text)
    if sizes:
        low, high, count = map(int, sizes.groups())
        return [low + step * (high - low) // (count - 1) for step in range(count)]
    value = ast.literal_eval(text)
    return list(value) if isinstance(value, tuple) else value


def named(row):
    backbone = row["backbone"].split(" ")[0]
    backbone = SWIN_NAMES.get(backbone, backbone.lower())
    dataset = row["original_config"].split("/")[0]
    return f"{KIND_NAMES[row['model']]}{backbone}-{DATASET_NAMES.get(dataset, dataset)}"


def hub_id(row, name):
    backbone, dataset = row["backbone"], row["original_config"].split("/")[0]
    if backbone in SWIN_NAMES:
        return f"facebook/maskformer-{SWIN_NAMES[backbone]}-{HUB_DATASETS[dataset]}"
    return HUB_RESNETS.get(name)


def rebuilt_zoo():
    with TABLE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    zoo = []
    for row in rows:
        row["original_config"] = row.pop("config")
        name = named(row)
        entry = {"name": name, "original_config": row["original_config"]}
        entry["parameters"] = round(float(row["params_M"]) * 1000) * 1000
        entry["hub_id"] = hub_id(row, name)
        entry["stuff_class_ids"] = STUFF.get(row["original_config"].split("/")[0])
        entry.update({column: typed(column, text) for column, text in row.items()})
        zoo.append(entry)
    return zoo


def test_zoo_is_the_table():
    stored = json.loads(resources.files("maskformer.checkpoints").joinpath("zoo.json").read_text(encoding="utf-8"))

    assert stored == rebuilt_zoo()
    assert list_zoo() == stored


def test_names_are_unique_and_both_names_find_the_entry():
    zoo = list_zoo()

    assert len(zoo) == 30
    assert len({entry["name"] for entry in zoo}) == 30
    for entry in zoo:
        assert find_in_zoo(entry["name"]) == find_in_zoo(entry["original_config"]) == entry
    assert (
        find_in_zoo("swin-tiny-ade20k-150")["original_config"] == "ade20k-150/swin/maskformer_swin_tiny_bs16_160k.yaml"
    )
    assert find_in_zoo("nothing of that name") is None


def test_numbers_lists_and_gaps_have_their_types():
    entry = find_in_zoo("r50-ade20k-150")

    assert entry["min_size_train"] == [int(step * 0.1 * 512) for step in range(5, 21)]
    assert entry["crop_train"] == [512, 512]
    assert entry["steps"] == [30000]
    assert entry["color_aug_ssd"] is True
    assert entry["drop_path"] is None
    assert entry["lr"] == 1e-4
    assert entry["parameters"] == 41_255_000
    assert len(find_in_zoo("r50-ade20k-150-panoptic")["stuff_class_ids"]) == 50


@functools.cache
def network(name):
    config = MaskFormerConfig.from_zoo(name)
    with torch.device("meta"):
        return model_class(config.architectures[0])(config)


@pytest.mark.parametrize("entry", list_zoo(), ids=lambda entry: entry["name"])
def test_network_has_the_measured_number_of_parameters(entry):
    trainable = sum(weight.numel() for weight in network(entry["name"]).parameters() if weight.requires_grad)

    assert round(trainable, -3) == entry["parameters"]


@pytest.mark.parametrize("entry", list_zoo(), ids=lambda entry: entry["name"])
def test_configuration_is_read_back_from_the_shapes_of_the_weights(entry):
    published = network(entry["name"]).config
    config = read_config(to_original(published, network(entry["name"]).state_dict()))

    # Where the widths differ the projection exists whatever this field says, and the weights cannot tell; nor of stuff.
    config.enforce_input_projection = published.enforce_input_projection
    config.stuff_class_ids = entry["stuff_class_ids"]
    assert config.to_dict() == published.to_dict()
    assert recognise(config) == entry


if __name__ == "__main__":  # writes the file that the first test compares with
    target = Path(str(resources.files("maskformer.checkpoints").joinpath("zoo.json")))
    target.write_text("[\n" + ",\n".join(json.dumps(entry) for entry in rebuilt_zoo()) + "\n]\n", encoding="utf-8")
