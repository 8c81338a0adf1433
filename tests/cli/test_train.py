"""`maskformer train`: options, files and refusals; the loop itself is tested in tests/training."""

import json
import subprocess
import sys

import pytest
import yaml

from maskformer import Segmenter
from maskformer.cli import main
from maskformer.training.recipes import resolve

from ..training.tiny import save_tiny


def test_help_names_every_setting_without_torch() -> None:
    code = "import sys; from maskformer.cli import main; main(['train', '--help']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    for option in ("--data", "--out", "--recipe", "--resume", "--print-config", "--crop-size HEIGHT WIDTH"):
        assert option in done.stdout


def test_help_shows_the_defaults_of_the_default_recipe(capsys) -> None:
    assert main(["train", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for option, field in (("--model", "model"), ("--learning-rate", "learning_rate"), ("--steps", "steps")):
        shown = said.partition(f" {option} ")[2].partition("(default: ")[2].partition(")")[0]
        assert shown == str(getattr(resolve({"data": "d", "out": "o"}), field)), option


def test_print_config_is_a_file_that_config_reads(tmp_path, capsys) -> None:
    words = ["train", "--recipe", "r50-coco-panoptic", "--steps", "9", "--crop-size", "64", "96", "--print-config"]
    assert main(words) == 0
    text = capsys.readouterr().out
    fields = yaml.safe_load(text)
    assert (fields["steps"], fields["batch_size"], fields["crop_size"]) == (9, 64, [64, 96])
    (tmp_path / "own.yaml").write_text(text)
    assert main(["train", "--config", str(tmp_path / "own.yaml"), "--seed", "5", "--print-config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == {**fields, "seed": 5}


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        ([], 2, "train needs --data DIR"),
        (["--data", "d"], 2, "train needs --out DIR"),
        (["--resume"], 2, "--resume needs --out DIR"),
        (["--data", "d", "--out", "{tmp}", "--steps", "0"], 1, "steps is 0"),
        (["--data", "d", "--out", "{tmp}", "--recipe", "nope"], 1, "there is no recipe 'nope'"),
        (["--data", "{tmp}/no", "--out", "{tmp}/run"], 1, "is not a directory"),
        (["--data", "scenes:2", "--out", "{tmp}/run", "--trackers", "sheet"], 1, "there is no tracker 'sheet'"),
        (["--out", "{tmp}/run", "--resume"], 1, "holds no run to resume"),
    ],
)
def test_bad_usage(tmp_path, capsys, words, code, sentence) -> None:
    assert main(["train", *(word.format(tmp=tmp_path) for word in words)]) == code
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_what_was_trained_for_instances_finds_instances(tmp_path) -> None:
    model, out = save_tiny(tmp_path / "first", labels=dict(enumerate("abc"))), tmp_path / "run"
    words = ["--data", "scenes:2", "--task", "instance", "--out", str(out), "--model", model, "--steps", "1"]
    small = ["--batch-size", "2", "--min-sizes", "64", "--test-size", "64", "--workers", "0", "--eval-every", "0"]
    assert main(["train", *words, *small, "--device", "cpu"]) == 0
    assert Segmenter.from_pretrained(out / "model").task == "instance"


def test_training_from_the_command_line(tmp_path, capsys) -> None:
    model, out = save_tiny(tmp_path / "first", labels=dict(enumerate("abc"))), tmp_path / "run"
    words = ["--data", "scenes:4", "--out", str(out), "--model", model, "--steps", "2", "--batch-size", "2"]
    small = ["--min-sizes", "64", "--test-size", "64", "--workers", "0", "--eval-images", "2", "--device", "cpu"]
    assert main(["train", *words, *small, "--json"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert (result["step"], result["model"], result["skipped"]) == (2, str(out / "model"), 0)
    assert "PQ" in result["metrics"]
    assert "learning rate 5e-05 x 2/8 (batch / batch of the recipe) = 1.25e-05" in captured.err
    assert list((out / "tracking").glob("events*"))  # TensorBoard
    assert Segmenter.from_pretrained(out / "model", device="cpu").task == "panoptic"
    assert main(["train", "--out", str(out), "--resume", "--steps", "3"]) == 1
    assert "steps was 2 and is now 3" in capsys.readouterr().err
