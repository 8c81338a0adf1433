"""Reading and writing `preprocessor_config.json`, in every published spelling, and with transformers."""

from __future__ import annotations

import enum
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import AutoImageProcessor
from transformers import MaskFormerImageProcessorPil as Peer

from maskformer.processing.image_processor import MaskFormerImageProcessor
from maskformer.processing.settings import ProcessorSettings

PUBLISHED = {
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "MaskFormerFeatureExtractor",
    "ignore_index": 255,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "max_size": 2560,
    "num_labels": 150,
    "reduce_labels": True,
    "resample": 2,
    "size": 640,
    "size_divisibility": 32,
}
SHARED = (
    "do_resize", "resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std", "ignore_index",
    "do_reduce_labels", "num_labels", "size_divisor", "pad_size", "model_input_names",
)  # fmt: skip


def test_defaults_and_their_file_are_the_peers():
    ours, peer = MaskFormerImageProcessor(), Peer()
    for name in SHARED:
        assert getattr(ours, name) == getattr(peer, name), name
    assert ours.size == dict(peer.size)
    assert json.loads(ours.to_json_string()) == json.loads(peer.to_json_string())


@pytest.mark.parametrize(
    "options",
    [
        {"size": 512, "max_size": 2048},
        {"max_size": 900},
        {"size": {"height": 100, "width": 50}, "size_divisor": 0, "resample": Image.Resampling.BICUBIC},
        {"ignore_index": 255, "do_reduce_labels": True, "num_labels": 150, "do_pad": True},
        {"pad_size": {"height": 900, "width": 1400}},
        {"image_mean": [0.5, 0.5, 0.5], "do_normalize": False, "rescale_factor": 1 / 127.5},
    ],
)
def test_options_are_read_and_saved_as_the_peer_does(options):
    ours = json.loads(MaskFormerImageProcessor(**options).to_json_string())
    theirs = json.loads(Peer(**options).to_json_string())
    theirs.pop("do_pad", None)  # padding is the default, which we do not write
    assert ours == theirs


@pytest.mark.parametrize("loader", [Peer, AutoImageProcessor])
def test_our_file_loads_in_transformers(tmp_path: Path, loader):
    ours = MaskFormerImageProcessor(size=96, max_size=160, ignore_index=255, label_ids_to_fuse={3, 1})
    ours.save_pretrained(tmp_path)
    peer = loader.from_pretrained(tmp_path)
    assert type(peer) is Peer
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    assert (
        peer(image, return_tensors="pt")["pixel_values"].shape == ours(image, return_tensors="pt")["pixel_values"].shape
    )
    assert peer.ignore_index == 255


def test_their_file_loads_here(tmp_path: Path):
    Peer(size={"shortest_edge": 640, "longest_edge": 2560}, ignore_index=255, do_reduce_labels=True).save_pretrained(
        tmp_path
    )
    ours = MaskFormerImageProcessor.from_pretrained(tmp_path)
    assert (ours.size, ours.do_reduce_labels) == ({"shortest_edge": 640, "longest_edge": 2560}, True)


def test_a_published_file_of_the_old_kind(tmp_path: Path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PUBLISHED))
    ours = MaskFormerImageProcessor.from_pretrained(tmp_path)
    assert ours.size == {"shortest_edge": 640, "longest_edge": 2560}
    assert (ours.do_reduce_labels, ours.size_divisor, ours.num_labels) == (True, 32, 150)
    saved = ours.to_dict()
    assert not set(saved) & {"feature_extractor_type", "max_size", "reduce_labels", "size_divisibility"}
    assert MaskFormerImageProcessor(**PUBLISHED).to_dict() == saved


def test_the_newer_of_two_names_wins():
    both = {"reduce_labels": True, "do_reduce_labels": False, "size_divisor": 16, "size_divisibility": 32}
    for options in (both, dict(reversed(both.items()))):
        settings = ProcessorSettings.from_options(options)
        assert (settings.do_reduce_labels, settings.size_divisor) == (False, 16)


def test_unknown_entries_of_a_file_are_ignored(tmp_path: Path):
    entries = {"some_future_field": 3, "_max_size": 900, "processor_class": None, "device": None, "size": None}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(entries))
    ours = MaskFormerImageProcessor.from_pretrained(tmp_path, do_rescale=False)
    assert ours.size == {"shortest_edge": 800, "longest_edge": 900}
    assert ours.do_rescale is False
    _, unused = MaskFormerImageProcessor.from_dict(entries, some_argument=1, return_unused_kwargs=True)
    assert unused == {"some_argument": 1}


@pytest.mark.parametrize("content", ["[]", "3"])
def test_a_damaged_file_is_told(tmp_path: Path, content: str):
    (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises(ValueError, match=r"preprocessor_config.json holds .*, expected names and values"):
        MaskFormerImageProcessor.from_pretrained(tmp_path)


def test_our_own_options_survive_and_are_left_out_at_their_defaults(tmp_path: Path):
    own = {"pad_size_divisor": 32, "num_channels": 3, "label_ids_to_fuse": [1, 7], "do_pad": False}
    assert not set(own) & set(MaskFormerImageProcessor().to_dict())
    MaskFormerImageProcessor(size_divisor=0, **own).save_pretrained(tmp_path)
    again = MaskFormerImageProcessor.from_pretrained(tmp_path)
    assert {name: getattr(again, name) for name in own} == own
    assert again.size_divisor == 0


def test_attributes_can_be_changed_and_calls_can_override():
    processor = MaskFormerImageProcessor(size={"height": 64, "width": 64})
    processor.size = {"height": 32, "width": 64}
    image = np.zeros((10, 10, 3), np.uint8)
    assert processor(image, return_tensors="pt")["pixel_values"].shape[-2:] == (32, 64)
    assert processor(image, return_tensors="pt", size=96, max_size=100)["pixel_values"].shape[-2:] == (96, 96)
    assert processor(image, return_tensors="pt", do_resize=False)["pixel_values"].shape[-2:] == (10, 10)


def test_a_misspelt_option_is_named():
    with pytest.raises(TypeError, match=r"do_resizee.*did you mean do_resize"):
        MaskFormerImageProcessor(do_resizee=False)
    with pytest.raises(TypeError, match="crop"):
        MaskFormerImageProcessor()(np.zeros((8, 8, 3), np.uint8), crop=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": {"width": 3}}, "size must hold"),
        ({"size": {"height": 0, "width": 3}}, "size must hold"),
        ({"size": "large"}, "size must hold"),
        ({"pad_size": {"shortest_edge": 3}}, "pad_size must hold"),
        ({"resample": 9}, "resample must be"),
        ({"resample": "linear"}, "resample must be .* got linear"),
        ({"size_divisor": -1}, "size_divisor must be"),
        ({"image_mean": [0.5] * 5}, "image_std has 3 values for images of 5 channels"),
        ({"num_channels": 4}, "image_mean has 3 values for images of 4 channels"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(ValueError, match=message):
        MaskFormerImageProcessor(**options)


def test_a_filter_by_its_name_or_of_torchvision():
    class InterpolationMode(enum.Enum):  # torchvision's, which is not installed here
        BICUBIC = "bicubic"

    for resample in (InterpolationMode.BICUBIC, "bicubic", Image.Resampling.BICUBIC, 3):
        assert ProcessorSettings.from_options({"resample": resample}).resample == 3


def test_none_means_the_default_except_where_it_is_a_value():
    assert ProcessorSettings.from_options({"do_resize": None, "size_divisor": None}) == ProcessorSettings()
    processor = MaskFormerImageProcessor(ignore_index=0)
    batch = processor(np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), int), do_resize=False, ignore_index=None)
    assert batch["class_labels"][0].tolist() == [0]
