"""Whole files: what they answer, what they carry, what is refused, and that nothing half-written remains."""

import json
import subprocess
import sys
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch

from maskformer import Segmenter
from maskformer.checkpoints.exported import load_exported
from maskformer.export import file
from maskformer.export.check import Comparison
from maskformer.export.file import Exported, export_checkpoint

from .conftest import LABELS, RESNET, SWIN, pictures, save

PER_PIXEL = ("PerPixelBaseline", "PerPixelBaselinePlus")


def test_logits_of_any_size(checkpoint: str, logits_file: Path) -> None:
    session = onnxruntime.InferenceSession(logits_file, providers=["CPUExecutionProvider"])
    assert [each.name for each in session.get_outputs()] == ["class_queries_logits", "masks_queries_logits"]
    (given,) = session.get_inputs()
    assert (given.name, given.shape) == ("pixel_values", ["batch", 3, "height", "width"])
    model = Segmenter.from_pretrained(checkpoint, device="cpu").model
    for shape in ((1, 3, 64, 96), (3, 3, 75, 50), (2, 3, 33, 130)):
        pixel_values = torch.randn(shape)
        with torch.inference_mode():
            expected = model(pixel_values=pixel_values)
        found = session.run(None, {"pixel_values": pixel_values.numpy()})
        for wanted, value in zip((expected.class_queries_logits, expected.masks_queries_logits), found, strict=True):
            assert (wanted - torch.from_numpy(value)).abs().max() <= 1e-4 * wanted.abs().max()


def test_the_file_carries_what_one_needs_to_use_it(logits_file: Path) -> None:
    texts = {entry.key: entry.value for entry in onnx.load(logits_file).metadata_props}
    assert json.loads(texts["config.json"])["id2label"] == {str(number): name for number, name in LABELS.items()}
    processor = json.loads(texts["preprocessor_config.json"])
    assert processor["size"] == {"shortest_edge": 96, "longest_edge": 160}
    assert len(processor["image_mean"]) == len(processor["image_std"]) == 3
    assert (texts["task"], texts["outputs"]) == ("", "class_queries_logits masks_queries_logits")
    # no path of the machine it was made on
    assert str(logits_file.parent).encode() not in logits_file.read_bytes()
    assert __file__.rsplit("/tests/", 1)[0].encode() not in logits_file.read_bytes()


@pytest.mark.parametrize("task", ["semantic", "panoptic", "instance"])
def test_segmenter_runs_logits_like_the_checkpoint(checkpoint: str, logits_file: Path, task: str) -> None:
    expected = Segmenter.from_pretrained(checkpoint, task, "cpu").predict(pictures())
    segmenter = Segmenter.from_pretrained(logits_file, task)
    for wanted, found in zip(expected, segmenter.predict(pictures()), strict=True):
        assert (wanted.segmentation == found.segmentation).mean() > 0.999
        assert [segment.label for segment in wanted.segments] == [segment.label for segment in found.segments]


@pytest.mark.slow  # a second file to be made
def test_segmenter_runs_maps_in_the_graph(checkpoint: str, panoptic_file: Path) -> None:
    expected = Segmenter.from_pretrained(checkpoint, "panoptic", "cpu").predict(pictures())
    segmenter = Segmenter.from_pretrained(panoptic_file)
    assert segmenter.task == "panoptic"
    assert max(len(result.segments) for result in expected) > 1
    for wanted, found in zip(expected, segmenter.predict(pictures()), strict=True):
        assert found.segmentation.shape == wanted.segmentation.shape
        # resized as a map, not as probabilities: borders move
        assert (wanted.segmentation == found.segmentation).mean() > 0.95
        assert [(s.label, s.is_thing) for s in wanted.segments] == [(s.label, s.is_thing) for s in found.segments]
    with pytest.raises(ValueError, match="exported for task 'panoptic' and cannot do 'semantic'"):
        Segmenter.from_pretrained(panoptic_file, "semantic")
    with pytest.raises(ValueError, match="threshold is fixed"):
        segmenter.predict(pictures(), threshold=0.7)


def test_segmenter_needs_no_model_code(logits_file: Path) -> None:
    code = (
        "import sys, numpy\nfrom maskformer import Segmenter\n"
        f"segmenter = Segmenter.from_pretrained({str(logits_file)!r})\n"
        "print(segmenter.predict(numpy.zeros((64, 64, 3), numpy.uint8))[0].task)\n"
        "assert not [name for name in sys.modules if name.startswith(('maskformer.modeling', 'maskformer.export'))]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "panoptic\n"), done.stderr


def test_what_a_segmenter_refuses(tmp_path: Path, logits_file: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(logits_file.read_bytes()[:5000])
    (tmp_path / "broken.pt2").write_bytes(b"no archive")
    model = onnx.load(logits_file)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    for name, words in {
        "missing.onnx": "there is no file",
        "broken.onnx": "no ONNX file that onnxruntime can run",
        "broken.pt2": "no torch program that this torch can read",
        "foreign.onnx": "expected a file of `maskformer export`",
    }.items():
        with pytest.raises(ValueError, match=words):
            Segmenter.from_pretrained(tmp_path / name, device="cpu")
    with pytest.raises(ValueError, match="cannot use mps"):
        Segmenter.from_pretrained(logits_file, device="mps")
    with pytest.raises(ValueError, match="leave out revision, dtype"):
        Segmenter.from_pretrained(logits_file, dtype=torch.float16, revision="main")


def test_a_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, logits_file: Path) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"pip install 'maskformer\[export\]'"):
        Segmenter.from_pretrained(logits_file)
    with pytest.raises(ImportError, match=r"pip install 'maskformer\[export\]'"):
        export_checkpoint("scenes", tmp_path / "scenes.onnx")


def test_a_difference_is_refused_and_leaves_the_old_file(
    tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "model.pt2"
    out.write_bytes(b"before")
    monkeypatch.setattr(file, "trace", lambda *_: None)
    monkeypatch.setattr(file, "write_program", lambda program, path, texts: path.write_bytes(b"new"))
    monkeypatch.setattr(file, "open_exported", lambda *_: None)
    monkeypatch.setattr(
        file,
        "compare",
        lambda *_: [
            Comparison((64, 96), batch, difference, 1.0, 1.0)
            for batch, difference in ((2, 0.0), (1, float("nan")), (3, 0.0))
        ],
    )
    with pytest.raises(ValueError, match=r"differs from the network by nan \(allowed 0.0001\) for 1 x 64 x 96"):
        export_checkpoint(checkpoint, out)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]
    assert out.read_bytes() == b"before"


def test_what_export_refuses(tmp_path: Path, checkpoint: str) -> None:
    per_pixel = save(tmp_path / "baseline", RESNET, "PerPixelBaseline")
    with pytest.raises(ValueError, match="a per-pixel baseline knows no segments"):
        export_checkpoint(per_pixel, tmp_path / "x.onnx", "panoptic")
    with pytest.raises(ValueError, match="there is no directory"):
        export_checkpoint(checkpoint, tmp_path / "nowhere" / "x.onnx")
    with pytest.raises(ValueError, match="is an exported file already"):
        export_checkpoint(tmp_path / "x.onnx", tmp_path / "y.onnx")


def checked(exported: Exported, outputs: int) -> None:
    assert len(exported.outputs) == outputs
    assert {(each.size, each.batch) for each in exported.comparisons} == {
        (size, batch) for size in ((192, 256), (256, 192), (203, 301)) for batch in (1, 3)
    }
    assert exported.largest_difference <= (1e-4 if exported.task is None else 1e-3)


@pytest.mark.slow  # Swin takes half a minute to trace
@pytest.mark.parametrize("backbone", [RESNET, SWIN], ids=["resnet", "swin"])
@pytest.mark.parametrize(("task", "outputs"), [(None, 2), ("semantic", 2), ("panoptic", 3)])
def test_onnx_against_the_network(tmp_path: Path, backbone: dict, task: str, outputs: int) -> None:
    checked(export_checkpoint(save(tmp_path / "model", backbone), tmp_path / "m.onnx", task), outputs)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", [RESNET, SWIN], ids=["resnet", "swin"])
@pytest.mark.parametrize("task", [None, "semantic", "panoptic"])
def test_torch_program_against_the_network(tmp_path: Path, backbone: dict, task: str) -> None:
    model = save(tmp_path / "model", backbone)
    checked(export_checkpoint(model, tmp_path / "m.pt2", task), 3 if task == "panoptic" else 2)
    expected = Segmenter.from_pretrained(model, task, "cpu").predict(pictures())
    found = Segmenter.from_pretrained(tmp_path / "m.pt2", device="cpu").predict(pictures())
    assert [r.task for r in found] == [task or "panoptic"] * 2
    for wanted, result in zip(expected, found, strict=True):
        assert (wanted.segmentation == result.segmentation).mean() > (0.95 if task else 0.999)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", PER_PIXEL)
@pytest.mark.parametrize("task", [None, "semantic"])
def test_per_pixel_baselines(tmp_path: Path, architecture: str, task: str) -> None:
    model = save(tmp_path / "model", RESNET, architecture)
    checked(export_checkpoint(model, tmp_path / "m.onnx", task), 2 if task else 1)
    assert Segmenter.from_pretrained(tmp_path / "m.onnx").predict(pictures())[0].task == "semantic"


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_half_precision_halves_the_file(suffix: str, tmp_path: Path) -> None:
    """Of the trained checkpoint, whose maps have to stay the same."""
    exported = export_checkpoint("scenes", tmp_path / f"half{suffix}", "panoptic", "float16")
    assert exported.size < 10_500_000  # of 17 million in float32
    assert exported.largest_difference < 1e-3
    assert load_exported(exported.path).graph_task == "panoptic"
