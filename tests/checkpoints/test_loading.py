"""Finding checkpoints by name, and loading them into the class they were made with."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from maskformer.checkpoints import loading
from maskformer.checkpoints.conversion import convert_original
from maskformer.checkpoints.loading import load_model, model_class, resolve_checkpoint
from maskformer.checkpoints.zoo import list_zoo

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden"


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    for name in ("swin-fpn", "resnet50-transformer-encoder", "per-pixel-baseline", "per-pixel-baseline-plus"):
        convert_original(GOLDEN / name / "model.pkl", root / name, attention_heads=4)
    return root


@pytest.fixture
def copy(directories, tmp_path):
    return Path(shutil.copytree(directories / "swin-fpn", tmp_path / "copy"))


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("swin-fpn", "MaskFormerForInstanceSegmentation"),
        ("resnet50-transformer-encoder", "MaskFormerForInstanceSegmentation"),
        ("per-pixel-baseline", "PerPixelBaseline"),
        ("per-pixel-baseline-plus", "PerPixelBaselinePlus"),
    ],
)
def test_class_is_the_one_of_the_configuration(directories, name, architecture):
    model = load_model(directories / name)

    assert type(model) is model_class(architecture)
    assert not model.training
    assert all(not value.is_meta for value in model.state_dict().values())


def test_options_reach_from_pretrained(directories):
    model = load_model(str(directories / "swin-fpn"), num_labels=4, ignore_mismatched_sizes=True, dtype=torch.float16)

    assert model.class_predictor.weight.shape == (5, 32)
    assert model.dtype == torch.float16


def test_loading_information_is_returned_when_asked_for(directories):
    model, info = load_model(directories / "swin-fpn", output_loading_info=True)

    assert type(model).__name__ == "MaskFormerForInstanceSegmentation"
    assert not info["missing_keys"]


def test_another_number_of_classes_needs_a_word(directories):
    with pytest.raises(ValueError, match="pass ignore_mismatched_sizes=True"):
        load_model(directories / "swin-fpn", num_labels=4)


def test_configuration_without_architectures_is_a_maskformer(copy):
    config = json.loads((copy / "config.json").read_text())
    del config["architectures"]
    (copy / "config.json").write_text(json.dumps(config))

    assert type(load_model(copy)).__name__ == "MaskFormerForInstanceSegmentation"


def test_checkpoint_that_lacks_weights_is_refused(copy):
    weights = load_file(copy / "model.safetensors")
    del weights["mask_embedder.1.0.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})

    for options in ({}, {"num_labels": 4, "ignore_mismatched_sizes": True}):
        with pytest.raises(ValueError, match=r"copy lacks 1 weights .* 'mask_embedder.1.0.weight' for one"):
            load_model(copy, **options)


@pytest.mark.parametrize("damage", [lambda whole: whole[:-99], lambda whole: b"", lambda whole: b"version https", dict])
def test_damaged_or_hostile_weights_of_torch_are_told(copy, damage) -> None:
    weights = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    torch.save(weights, copy / "pytorch_model.bin")
    assert load_model(copy).config.num_labels
    if damage is dict:
        torch.save({**weights, "more": Path("/")}, copy / "pytorch_model.bin")
    else:
        (copy / "pytorch_model.bin").write_bytes(damage((copy / "pytorch_model.bin").read_bytes()))
    with pytest.raises(ValueError, match=r"copy are damaged, or hold more than weights"):
        load_model(copy)


@pytest.mark.parametrize(
    ("file", "content", "complaint"),
    [
        ("model.safetensors", b"damaged", "are damaged|holds no readable checkpoint"),
        ("config.json", b"{not json", "are damaged|holds no readable checkpoint"),
        ("config.json", b"[]", "are damaged: config.json has no names and values"),
        ("config.json", b"3", "are damaged: config.json has no names and values"),
        ("config.json", b'{"model_type": "bert", "architectures": ["BertModel"]}', "model of type 'bert', expected a"),
        (
            "config.json",
            b'{"model_type": "maskformer", "architectures": ["Mask2Former"]}',
            "the architecture is 'Mask2Former', expected one of",
        ),
    ],
)
def test_files_that_are_not_those_of_a_checkpoint_are_named(copy, file, content, complaint):
    (copy / file).write_bytes(content)

    with pytest.raises(ValueError, match=complaint) as error:
        load_model(copy)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("content", "complaint"), [("[]", "index.json has no names"), ("{}", "'weight_map'")])
def test_damaged_list_of_the_files_with_weights_is_told(copy, content, complaint):
    (copy / "model.safetensors").rename(copy / "model-00001-of-00001.safetensors")
    (copy / "model.safetensors.index.json").write_text(content)

    with pytest.raises(ValueError, match=f"copy are damaged: .*{complaint}"):
        load_model(copy)


def test_errors_of_whoever_calls_are_no_damage(copy):
    with pytest.raises(TypeError, match="unexpected keyword argument 'nonsense'"):
        load_model(copy, nonsense=3)


def test_directories_without_files_are_named(tmp_path, copy):
    with pytest.raises(ValueError, match=r"holds no readable checkpoint, expected config.json and model.safetensors"):
        load_model(tmp_path)
    (copy / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"holds no readable checkpoint, expected config.json and model.safetensors"):
        load_model(copy)
    copy.rename(tmp_path / "run")  # as the model of a training lies in the training's directory
    (tmp_path / "run" / "model").mkdir()
    (tmp_path / "run" / "config.json").rename(tmp_path / "run" / "model" / "config.json")
    with pytest.raises(ValueError, match=r"in it; did you mean .*run/model\?"):
        load_model(tmp_path / "run")


def test_what_the_hub_does_not_give_is_one_sentence():
    with pytest.raises(ValueError, match="no checkpoint of that id can be had from the hub") as error:
        load_model("nobody/no-such-maskformer", local_files_only=True)
    assert "\n" not in str(error.value)


def test_originals_need_converting():
    with pytest.raises(ValueError, match=r"run `maskformer convert .*model.pkl DIR`"):
        load_model(GOLDEN / "swin-fpn" / "model.pkl")


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "a/b/c", "~/nowhere-either", "gone.pkl"])
def test_paths_where_nothing_is_do_not_go_to_the_hub(name):
    with pytest.raises(ValueError, match="there is no checkpoint at"):
        resolve_checkpoint(name)


def test_other_files_are_no_checkpoints(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")

    with pytest.raises(ValueError, match="is a file, expected the directory"):
        resolve_checkpoint(tmp_path / "model.safetensors")


def test_names_are_directories_zoo_names_or_hub_ids(tmp_path):
    assert resolve_checkpoint(tmp_path) == str(tmp_path)
    assert resolve_checkpoint("facebook/maskformer-swin-tiny-ade") == "facebook/maskformer-swin-tiny-ade"
    for entry in list_zoo():
        if entry["hub_id"]:
            assert resolve_checkpoint(entry["name"]) == entry["hub_id"]
        else:
            with pytest.raises(ValueError, match="run `maskformer convert"):
                resolve_checkpoint(entry["name"])


def test_bundled_checkpoint_is_found_by_its_name_and_loads_in_single_precision(copy, monkeypatch, tmp_path):
    half = {key: value.half() if value.is_floating_point() else value for key, value in
            load_file(copy / "model.safetensors").items()}  # fmt: skip
    save_file(half, copy / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "dtype": "float16"}))
    bundled = tmp_path / "package" / "bundled" / "scenes"
    shutil.copytree(copy, bundled)
    monkeypatch.setattr(loading.resources, "files", lambda package: tmp_path / "package")

    assert resolve_checkpoint("scenes") == str(bundled)
    assert {value.dtype for value in load_model("scenes").parameters()} == {torch.float32}
    (bundled / "config.json").unlink()
    with pytest.raises(ValueError, match="'scenes' is not part of this installation"):
        load_model("scenes")
