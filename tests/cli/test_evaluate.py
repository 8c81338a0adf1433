"""`maskformer evaluate` and `maskformer compare` from the words of the command line to what they print and write."""

import contextlib
import csv
import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from maskformer.cli import main
from maskformer.data.scenes import LABELS

from ..data.publishers import WRITERS
from .conftest import save


def evaluate(checkpoint, capsys, *words, data="scenes:4") -> dict:
    assert main(["evaluate", "--model", checkpoint, "--data", data, "--json", *words]) == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 1
    return json.loads(captured.out)


@pytest.mark.parametrize(("task", "headline"), [(None, "PQ"), ("semantic", "mIoU"), ("instance", "AP")])
def test_json_and_files(checkpoint, capsys, tmp_path, task, headline) -> None:
    words = ["--out", str(tmp_path / "out"), "--submission", *(["--task", task] if task else [])]
    found = evaluate(checkpoint, capsys, *words)
    assert next(iter(found["metrics"])) == headline
    assert (found["num_evaluated"], found["num_images"], found["partial"]) == (4, 4, False)
    assert set(found["images_per_second"]) == {"load", "forward", "post_processing", "metric"}
    stored = json.loads((tmp_path / "out/metrics.json").read_text())
    assert stored["metrics"] == found["metrics"]
    rows = list(csv.DictReader((tmp_path / "out/per_class.csv").read_text().splitlines()))
    assert [row["name"] for row in rows] == [row["name"] for row in found["per_class"]]
    assert (tmp_path / "out/report.html").read_text().startswith("<!doctype html>")
    names = sorted(path.name for path in (tmp_path / "out/submission").iterdir())
    assert names == {"PQ": ["panoptic", "panoptic.json"], "mIoU": ["labels"], "AP": ["results.json"]}[headline]


def test_tables_and_a_partial_result(checkpoint, capsys) -> None:
    assert main(["evaluate", "--model", checkpoint, "--data", "scenes:4", "--limit", "2"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("panoptic, PARTIAL: the first 2 of 4 images, percent\n")
    assert "images/s: load " in captured.out
    assert any(line.split()[0] == "PQ_th" for line in captured.out.splitlines())
    assert "maskformer: warning: " in captured.err


def test_resume_and_batches_give_the_same_numbers(checkpoint, capsys, tmp_path) -> None:
    whole = evaluate(checkpoint, capsys)
    evaluate(checkpoint, capsys, "--out", str(tmp_path), "--limit", "1")
    resumed = evaluate(checkpoint, capsys, "--out", str(tmp_path), "--resume", "--batch-size", "1")
    assert resumed["metrics"] == whole["metrics"]
    assert resumed["per_class"] == whole["per_class"]


def test_options_reach_the_evaluation(checkpoint, capsys) -> None:
    plain = evaluate(checkpoint, capsys)["metrics"]
    paper = ["--protocol", "paper", "--zoo", "r50-ade20k-150", "--limit", "1", "--task", "semantic"]
    assert evaluate(checkpoint, capsys, "--tile", "96", "--tile-overlap", "16")["metrics"] != plain
    found = [
        sum(row["FP"] for row in evaluate(checkpoint, capsys, *words)["per_class"])
        for words in (
            ["--overlap", "0", "--threshold", "0"],
            ["--overlap", "1", "--threshold", "0"],
            ["--threshold", "1"],
        )
    ]
    assert found[0] > found[1] >= found[2] == 0  # of an untrained network every segment is a false one
    assert evaluate(checkpoint, capsys, *paper)["metrics"]["mIoU"] is not None
    slow, fast = (evaluate(checkpoint, capsys, "--task", "instance", *more) for more in ([], ["--fast", "--boundary"]))
    assert {name: fast["metrics"][name] for name in slow["metrics"]} == pytest.approx(slow["metrics"], abs=1e-9)
    assert fast["metrics"]["boundary_AP"] <= fast["metrics"]["AP"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--data", "scenes:2"], "Missing from maskformer evaluate: --model MODEL"),
        (["--model", "scenes"], "Missing from maskformer evaluate: --data DIR"),
        (["--model", "x", "--data", "y", "--resume"], "--resume needs --out"),
        (["--model", "x", "--data", "y", "--tta"], "--tta needs --protocol paper"),
        (["--model", "x", "--data", "y", "--tta", "--protocol", "paper", "--tile", "64"], "--tta and --tile exclude"),
        (["--model", "x", "--data", "y", "--batch-size", "0"], "--batch-size is 0"),
        (["--model", "x", "--data", "y", "--limit", "0"], "--limit is 0, expected at least 1"),
        (["--model", "x", "--data", "y", "--zoo", "r50-ade20k-150"], "give that too, or leave it out"),
        (["--model", "scenes", "--data", "scenes:1", "--fast"], "is about average precision, expected --task instance"),
        (["--model", "x", "--data", "y", "--task", "all"], "--task"),
    ],
)
def test_usage(words, sentence, capsys) -> None:
    assert main(["evaluate", *words]) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert captured.out == ""


def test_failures_are_one_sentence(checkpoint, capsys, tmp_path) -> None:
    other = save(tmp_path / "other", {0: "cat", 1: "dog"})
    for words, sentence in [
        (["--model", other, "--data", "scenes:2"], "'sky' is not among the model's"),
        (["--model", checkpoint, "--data", str(tmp_path / "nothing")], "is not a directory"),
        (["--model", checkpoint, "--data", "scenes:2", "--protocol", "paper"], "with --zoo"),
    ]:
        assert main(["evaluate", *words]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert sentence in captured.err.splitlines()[-1]
        assert "Traceback" not in captured.err


def test_an_interruption_prints_no_result(checkpoint, capsys, monkeypatch, tmp_path) -> None:
    from maskformer.evaluation.journal import Journal

    append = Journal.append

    def stop(self, record) -> None:
        append(self, record)
        raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "append", stop)
    words = ["evaluate", "--model", checkpoint, "--data", "scenes:3", "--out", str(tmp_path)]
    assert main(words) == 130
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "no result before all images are done: evaluate again with --resume to go on" in captured.err
    assert not (tmp_path / "metrics.json").exists()


def test_help_does_not_load_torch() -> None:
    code = "from maskformer.cli import main; import sys; main(['evaluate', '--help']); main(['compare', '--help'])"
    code += "; sys.exit(3 if {'torch', 'numpy', 'transformers'} & set(sys.modules) else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--submission" in done.stdout


@pytest.mark.slow
def test_torchrun_prints_what_one_process_prints(checkpoint, capsys) -> None:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "maskformer",
    ]
    words = ["evaluate", "--model", checkpoint, "--data", "scenes:5", "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *words], env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    expected = evaluate(checkpoint, capsys, data="scenes:5")
    for name in ("metrics", "per_class", "images"):
        assert json.loads(line)[name] == expected[name]


@pytest.mark.parametrize("form", ["coco-panoptic", "coco-instances", "label-maps"])
def test_directories_of_the_formats_that_people_have(form, capsys, tmp_path) -> None:
    """The bundled model on a data set as its publisher ships it; classes are met by name."""
    writer, _, task = WRITERS[form]
    writer(tmp_path, 3, (192, 256))
    arguments = ["evaluate", "--model", "scenes", "--data", str(tmp_path), "--task", task, "--split", "train", "--json"]
    assert main(arguments) == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    headline = {"panoptic": "PQ", "instance": "AP50", "semantic": "mIoU"}[task]
    assert metrics[headline] > 50


def test_names_of_any_bytes(checkpoint, tmp_path) -> None:
    """A picture whose name was written on a system with another encoding, at a terminal that refuses such names."""
    root, out = tmp_path / "data", tmp_path / "out"
    for folder, pixels in (("images", np.zeros((40, 50, 3), np.uint8)), ("labels", np.zeros((40, 50), np.uint8))):
        (root / folder).mkdir(parents=True)
        Image.fromarray(pixels).save(root / folder / os.fsdecode(b"caf\xe9.png"))
    (root / "classes.txt").write_text("\n".join(LABELS.values()))
    words = ["evaluate", "--model", checkpoint, "--data", str(root), "--task", "semantic", "--out", str(out)]
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict")
    with contextlib.redirect_stdout(stream):
        assert main(words) == 0
        assert main(["predict", "--model", checkpoint, str(root / "images"), "--out", str(out)]) == 0
    stream.flush()
    assert b"caf\\udce9.png" in stream.buffer.getvalue()
    assert "caf?.png" in (out / "report.html").read_text(encoding="utf-8")


def test_pictures_of_one_name_are_not_written_over_each_other(checkpoint, tmp_path, capsys) -> None:
    root = tmp_path / "data"
    for folder, pixels in (("images", np.zeros((40, 50, 3), np.uint8)), ("labels", np.zeros((40, 50), np.uint8))):
        for city in ("aachen", "ulm"):
            (root / folder / city).mkdir(parents=True)
            Image.fromarray(pixels).save(root / folder / city / "1.png")
    (root / "classes.txt").write_text("\n".join(LABELS.values()))
    words = ["--model", checkpoint, "--data", str(root), "--task", "semantic", "--out", str(tmp_path / "out")]
    assert main(["evaluate", *words, "--submission"]) == 1
    assert "are both '1.png' in a submission: give pictures names of their own" in capsys.readouterr().err
    assert main(["evaluate", *words]) == 0
