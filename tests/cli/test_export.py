"""`maskformer export` as a user meets it: what it prints, what it refuses."""

import json
import subprocess
import sys

import pytest

from maskformer import Segmenter
from maskformer.cli import BAD_USAGE, DONE, FAILED, main

from ..export.conftest import save


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save(tmp_path_factory.mktemp("checkpoint") / "tiny")


def test_a_torch_program_as_json(tmp_path, checkpoint, capsys):
    out = tmp_path / "tiny.pt2"
    assert main(["export", "--model", checkpoint, "--format", "torch", "--out", str(out), "--json"]) == DONE
    shown = capsys.readouterr()
    printed = json.loads(shown.out)
    assert printed["path"] == str(out)
    assert printed["size"] == out.stat().st_size
    assert printed["outputs"] == ["class_queries_logits", "masks_queries_logits"]
    assert len(printed["comparisons"]) == 6
    assert printed["largest_difference"] == max(each["difference"] for each in printed["comparisons"]) <= 1e-4
    assert "comparing with the network" in shown.err
    assert Segmenter.from_pretrained(out, device="cpu").task == "panoptic"
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.pt2"]


@pytest.mark.slow
def test_an_onnx_file_as_a_table(tmp_path, checkpoint, capsys):
    out = tmp_path / "tiny.onnx"
    assert main(["export", "--model", checkpoint, "--task", "semantic", "--out", str(out)]) == DONE
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines[0].startswith(f"{out}: semantic maps, float32, ")
    assert lines[1] == "outputs: segmentation, class_scores"
    assert [line.split()[:4] for line in lines[3:9:3]] == [["192", "x", "256", "1"], ["256", "x", "192", "3"]]
    assert lines[-1].endswith("as a share of the pixels")
    for step in ("loading", "tracing the network", f"writing {out}", "comparing with the network"):
        assert step in shown.err


@pytest.mark.parametrize(
    ("words", "code", "complaint"),
    [
        (["--out", "x.onnx"], BAD_USAGE, "Missing from maskformer export: --model MODEL"),
        (["--model", "scenes"], BAD_USAGE, "Missing from maskformer export: --out FILE"),
        (["--model", "scenes", "--out", "x.pb"], BAD_USAGE, "ending in .onnx or .pt2"),
        (["--model", "scenes", "--out", "x.pt2", "--format", "onnx"], BAD_USAGE, "expected .onnx for the format onnx"),
        (["--model", "scenes", "--out", "x.pt2", "--precision", "int8"], BAD_USAGE, "int8 weights exist in ONNX"),
        (["--model", "scenes", "--out", "x.onnx", "--task", "instance"], BAD_USAGE, "semantic"),
        (["--model", "./nothing", "--out", "x.pt2"], FAILED, "there is no checkpoint at ./nothing"),
        (["--model", "scenes", "--out", "nowhere/x.pt2"], FAILED, "there is no directory nowhere"),
        (["--model", "x.onnx", "--out", "y.onnx"], FAILED, "is an exported file already"),
    ],
)
def test_refusals(words, code, complaint, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["export", *words]) == code
    shown = capsys.readouterr()
    sentence = shown.err.splitlines()[-1]
    assert sentence.startswith("maskformer: ")
    assert complaint in sentence
    assert shown.out == ""
    assert not list(tmp_path.iterdir())


def test_help_without_torch():
    code = "import sys; from maskformer.cli import main; main(['export', '--help']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    for option in ("--model", "--out", "--format", "--task", "--precision", "--json"):
        assert option in done.stdout
