"""Converting files: what is written, that it loads, and that nothing is left behind by a failure."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from maskformer.checkpoints import conversion
from maskformer.checkpoints.conversion import build_processor, convert_original, export_original
from maskformer.checkpoints.loading import load_model
from maskformer.checkpoints.zoo import find_in_zoo
from maskformer.configuration import MaskFormerConfig

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden"
NETWORKS = sorted(path.parent.name for path in GOLDEN.glob("*/model.pkl"))
SWIN = GOLDEN / "swin-fpn" / "model.pkl"


def arrays(path):
    with path.open("rb") as file:
        return pickle.load(file)["model"]


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    directory = tmp_path_factory.mktemp("converted") / "swin"
    convert_original(SWIN, directory, attention_heads=4)
    return directory


@pytest.mark.parametrize("name", NETWORKS)
def test_files_survive_both_directions_unchanged(tmp_path, name):
    source = GOLDEN / name / "model.pkl"

    convert_original(source, tmp_path / "ours", attention_heads=4)
    export_original(tmp_path / "ours", tmp_path / "theirs.pkl")

    before, after = arrays(source), arrays(tmp_path / "theirs.pkl")
    assert before.keys() == after.keys()
    for key in before:
        assert before[key].dtype == after[key].dtype
        np.testing.assert_array_equal(before[key], after[key])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours", "theirs.pkl"]


def test_directory_holds_weights_configuration_and_processor(converted):
    assert {path.name for path in converted.iterdir()} == {
        "config.json", "model.safetensors", "preprocessor_config.json",
    }  # fmt: skip
    config = json.loads((converted / "config.json").read_text())
    assert config["deep_supervision"] is True
    assert config["use_auxiliary_loss"] is False
    processor = json.loads((converted / "preprocessor_config.json").read_text())
    assert processor["image_processor_type"] == "MaskFormerImageProcessor"
    assert (processor["size_divisor"], processor["pad_size_divisor"]) == (0, 32)
    assert processor["image_mean"] == [0.485, 0.456, 0.406]
    assert processor["image_std"] == [0.229, 0.224, 0.225]
    assert processor["num_labels"] == 9


def test_loaded_model_has_the_authors_weights(converted):
    model = load_model(converted)

    weight = model.get_parameter("model.transformer_module.queries_embedder.weight")
    np.testing.assert_array_equal(weight.detach().numpy(), arrays(SWIN)["sem_seg_head.predictor.query_embed.weight"])
    assert not model.training


def test_transformers_finds_every_weight_it_expects(converted):
    transformers = pytest.importorskip("transformers")

    _, info = transformers.MaskFormerForInstanceSegmentation.from_pretrained(converted, output_loading_info=True)

    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]


def test_result_tells_what_was_converted(tmp_path):
    result = convert_original(GOLDEN / "per-pixel-baseline-plus" / "model.pkl", tmp_path / "out", attention_heads=4)

    assert result.path == str(tmp_path / "out")
    assert (result.architecture, result.backbone, result.num_labels) == ("PerPixelBaselinePlus", "resnet", 12)
    assert result.num_parameters == sum(
        value.numel()
        for key, value in load_file(tmp_path / "out" / "model.safetensors").items()
        if ".normalization." not in key
    )
    assert result.zoo_name is None


def test_settings_of_a_published_model():
    entry = find_in_zoo("swin-tiny-coco-panoptic")
    config = MaskFormerConfig(num_labels=133, stuff_class_ids=entry["stuff_class_ids"])

    processor = build_processor(config, {}, entry)

    assert processor.size == {"shortest_edge": 800, "longest_edge": 1333}
    assert (processor.size_divisor, processor.pad_size_divisor) == (0, 0)
    assert processor.label_ids_to_fuse == list(range(80, 133))
    mapillary = build_processor(MaskFormerConfig(num_labels=65), {}, find_in_zoo("r50-mapillary-65"))
    assert mapillary.size == {"shortest_edge": 2048, "longest_edge": 2048}
    assert (mapillary.ignore_index, mapillary.pad_size_divisor) == (65, 32)
    assert mapillary.label_ids_to_fuse is None


def test_mean_and_deviation_of_the_file_win():
    stored = {
        "pixel_mean": torch.tensor([127.5, 102.0, 51.0]).reshape(3, 1, 1),
        "pixel_std": torch.full((3, 1, 1), 51.0),
    }

    processor = build_processor(MaskFormerConfig(), stored, None)

    assert list(processor.image_mean) == [0.5, 0.4, 0.2]
    assert list(processor.image_std) == [0.2, 0.2, 0.2]


def test_published_architecture_brings_its_settings(tmp_path, monkeypatch):
    entry = {**find_in_zoo("swin-tiny-coco-panoptic"), "num_classes": 9, "stuff_class_ids": [4, 5]}
    monkeypatch.setattr(conversion, "recognise", lambda config: entry)

    result = convert_original(SWIN, tmp_path / "out", attention_heads=4)

    assert result.zoo_name == "swin-tiny-coco-panoptic"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["stuff_class_ids"] == [4, 5]
    assert json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())["label_ids_to_fuse"] == [4, 5]


@pytest.mark.parametrize(
    ("zoo_name", "complaint"),
    [
        ("nothing", "no published model called 'nothing'"),
        ("r50-cityscapes", "no published model called 'r50-cityscapes'"),
        ("r50-ade20k-150", "r50-ade20k-150 has 150 classes but the checkpoint has 9"),
    ],
)
def test_zoo_names_that_do_not_fit_are_refused(tmp_path, zoo_name, complaint):
    with pytest.raises(ValueError, match=complaint):
        convert_original(SWIN, tmp_path / "out", attention_heads=4, zoo_name=zoo_name)
    assert not any(tmp_path.iterdir())


def test_empty_directory_is_filled(tmp_path):
    (tmp_path / "out").mkdir()

    convert_original(SWIN, tmp_path / "out", attention_heads=4)

    assert (tmp_path / "out" / "config.json").is_file()


def test_missing_parents_are_made(tmp_path):
    convert_original(SWIN, tmp_path / "a" / "b", attention_heads=4)

    assert (tmp_path / "a" / "b" / "model.safetensors").is_file()


def test_destination_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")

    with pytest.raises(ValueError, match="out is not empty"):
        convert_original(SWIN, tmp_path / "out", attention_heads=4)
    with pytest.raises(ValueError, match="file is a file, expected a directory"):
        convert_original(SWIN, tmp_path / "file", attention_heads=4)
    with pytest.raises(ValueError, match="file exists already"):
        export_original(SWIN.parent, tmp_path / "file")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("existing", [True, False])
def test_failure_half_way_leaves_nothing(tmp_path, monkeypatch, existing):
    out = tmp_path / "out"
    if existing:
        out.mkdir()
    seen = []

    def fails(*_):
        seen.extend(path.name for path in tmp_path.iterdir())
        raise OSError("disk full")

    monkeypatch.setattr(conversion, "build_processor", fails)

    with pytest.raises(OSError, match="disk full"):
        convert_original(SWIN, out, attention_heads=4)
    assert any("partial" in name for name in seen)
    assert [path.name for path in tmp_path.iterdir()] == (["out"] if existing else [])


def test_shapes_that_do_not_belong_together_are_refused(tmp_path):
    weights = arrays(SWIN)
    weights["sem_seg_head.predictor.mask_embed.layers.1.weight"] = np.zeros((31, 32), np.float32)
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"model": weights}))

    with pytest.raises(ValueError, match=r"'mask_embedder.1.0.weight' has shape \[31, 32\], expected \[32, 32\]"):
        convert_original(tmp_path / "model.pkl", tmp_path / "out", attention_heads=4)
    assert not (tmp_path / "out").exists()
