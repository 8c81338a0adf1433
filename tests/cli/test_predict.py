"""`maskformer predict` from the words of the command line to the files it leaves."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers.image_transforms import rgb_to_id

import maskformer.results
from maskformer.cli import main
from maskformer.cli.predict import find_pictures, unique_stems
from maskformer.inference import Segmenter
from maskformer.tiling import TiledSegmenter

from .conftest import save


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    return save(tmp_path_factory.mktemp("checkpoint"), {0: "sky", 1: "[tree]", 2: "car"})


def draw(path: Path, size: tuple[int, int] = (50, 70), seed: int = 0) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    small = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    Image.fromarray(small).resize(size[::-1]).save(path)
    return str(path)


def stored_picture(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        picture.load()
    return picture


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_json_and_files(checkpoint, tmp_path, capsys) -> None:
    files = [draw(tmp_path / "a.png"), draw(tmp_path / "b.jpg", (70, 50), 1)]
    out = tmp_path / "new" / "out"
    assert main(["predict", *files, "--model", checkpoint, "--out", str(out), "--json", "--overlap", "0"]) == 0
    captured = capsys.readouterr()
    lines = [json.loads(line) for line in captured.out.splitlines()]
    assert [line["file"] for line in lines] == files
    assert [line["size"] for line in lines] == [[50, 70], [70, 50]]
    assert {line["task"] for line in lines} == {"panoptic"}
    for line, stem in zip(lines, "ab", strict=True):
        assert line["segments"]
        for segment in line["segments"]:
            assert set(segment) == {"id", "label", "label_id", "score", "area", "bbox", "is_thing"}
            assert segment["is_thing"] == (segment["label"] != "sky")
            assert 0 < segment["score"] <= 1
        assert line["written"] == [str(out / f"{stem}.{kind}") for kind in ("overlay.png", "panoptic.png", "json")]
        stored = json.loads((out / f"{stem}.json").read_text())
        assert stored["segments"] == line["segments"]
        ids = rgb_to_id(np.asarray(stored_picture(out / f"{stem}.panoptic.png")))
        assert ids.shape == tuple(line["size"])
        assert {s["id"]: s["area"] for s in line["segments"]} == {
            int(i): int((ids == i).sum()) for i in np.unique(ids) if i
        }
    assert len(names(out)) == 6
    assert "maskformer:" not in captured.err


@pytest.mark.parametrize("task", ["semantic", "instance"])
def test_other_tasks(checkpoint, tmp_path, capsys, task) -> None:
    words = ["predict", draw(tmp_path / "a.png"), "--model", checkpoint, "--out", str(tmp_path / "out")]
    assert main([*words, "--task", task, "--batch-size", "1", "--device", "cpu"]) == 0
    assert names(tmp_path / "out") == sorted(["a.json", "a.overlay.png", f"a.{task}.png"])
    text = capsys.readouterr().out
    assert text.startswith(f"{tmp_path / 'a.png'}  70 x 50  {task}: ")
    stored = json.loads((tmp_path / "out" / "a.json").read_text())
    assert stored["segments"]
    assert f"{len(stored['segments'])} segments" in text
    for segment in stored["segments"]:
        assert segment["label"] in text  # brackets are no markup
    assert stored_picture(tmp_path / "out" / f"a.{task}.png").mode == ("L" if task == "semantic" else "I;16")


@pytest.mark.parametrize("task", ["semantic", "instance", "panoptic"])
def test_tiles(checkpoint, tmp_path, capsys, task) -> None:
    picture = draw(tmp_path / "a.png", (100, 140))
    words = ["predict", picture, "--model", checkpoint, "--out", str(tmp_path / "out"), "--json", "--task", task]
    found = []
    for more in ([], ["--tile", "64"], ["--tile", "64", "--tile-overlap", "30"], ["--tile", "140"]):
        assert main([*words, *more]) == 0
        found.append(json.loads(capsys.readouterr().out))
        assert stored_picture(tmp_path / "out" / f"a.{task}.png").size == (140, 100)
    segmenter = Segmenter.from_pretrained(checkpoint, task)
    for line, overlap in zip(found[1:3], (8, 30), strict=True):
        assert line["segments"] == TiledSegmenter(segmenter, 64, overlap).predict([picture])[0].to_dict()["segments"]
    assert found[1]["segments"] != found[0]["segments"] == found[3]["segments"]


@pytest.mark.parametrize("command", ["predict", "evaluate"])
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--tile", "31"], "--tile is 31, expected at least 32 pixels"),
        (["--tile", "64", "--tile-overlap", "33"], "--tile-overlap is 33, expected 0 to 32, half of --tile"),
        (["--tile", "64", "--tile-overlap", "-1"], "--tile-overlap is -1, expected 0 to 32, half of --tile"),
        (["--tile-overlap", "8"], "--tile-overlap needs --tile, the side of the tiles in pixels"),
    ],
)
def test_tiles_that_cannot_be(tmp_path, capsys, command, words, sentence) -> None:
    what = [draw(tmp_path / "a.png")] if command == "predict" else ["--data", "scenes:2"]
    assert main([command, *what, "--model", "scenes", *words]) == 2
    assert capsys.readouterr().err == f"maskformer: {sentence}\n"


def test_thresholds_reach_the_post_processing(checkpoint, tmp_path, capsys) -> None:
    words = ["predict", draw(tmp_path / "a.png"), "--model", checkpoint, "--out", str(tmp_path / "out"), "--json"]
    counts = []
    for options in (["--overlap", "0"], ["--threshold", "1"], ["--overlap", "1"]):
        assert main([*words, *options]) == 0
        counts.append(len(json.loads(capsys.readouterr().out)["segments"]))
    assert counts[0] > counts[2]
    assert counts[1] == 0
    assert main([*words, "--overlap", "128"]) == 1
    assert "expected a share from 0 to 1" in capsys.readouterr().err


def test_a_directory_and_names_that_clash(checkpoint, tmp_path, capsys) -> None:
    pictures = tmp_path / "pictures"
    draw(pictures / "x.png")
    draw(pictures / "x.jpg", seed=1)
    draw(pictures / "below" / "x.PNG", seed=2)
    (pictures / "notes.txt").write_text("no picture")
    words = ["predict", str(pictures), "--model", checkpoint, "--json", "--out", str(pictures)]
    for _ in range(2):  # the second time must not segment what the first has written
        assert main(words) == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [Path(line["file"]).relative_to(pictures).as_posix() for line in lines] == [
            "below/x.PNG",
            "x.jpg",
            "x.png",
        ]
        assert [Path(line["written"][-1]).name for line in lines] == ["x.json", "x-2.json", "x-3.json"]
    assert len([name for name in names(pictures) if name.endswith(".overlay.png")]) == 3


def test_stems() -> None:
    assert unique_stems(["a/x.png", "b/X.jpg", "c/x-2.png", "y.tar.png", "http://host/p/z.jpg?w=1"]) == [
        "x", "X-3", "x-2", "y.tar", "z",
    ]  # fmt: skip


def test_sources_are_found_once(tmp_path) -> None:
    one = draw(tmp_path / "one.png")
    files, failures = find_pictures((one, str(tmp_path), one, str(tmp_path / "no.png")), tmp_path / "out")
    assert files == [one]
    assert failures == [f"{tmp_path / 'no.png'}: no such file or directory"]
    (tmp_path / "empty").mkdir()
    files, failures = find_pictures((str(tmp_path / "empty"),), tmp_path / "out")
    assert (files, len(failures)) == ([], 1)


def test_a_broken_picture_does_not_stop_the_others(checkpoint, tmp_path, capsys) -> None:
    good = [draw(tmp_path / f"{name}.png", seed=seed) for seed, name in enumerate("acd")]
    whole = Path(good[0]).read_bytes()
    (tmp_path / "b.png").write_bytes(whole[: len(whole) // 2])
    out = tmp_path / "out"
    assert main(["predict", str(tmp_path), "--model", checkpoint, "--out", str(out), "--json"]) == 1
    captured = capsys.readouterr()
    assert [json.loads(line)["file"] for line in captured.out.splitlines()] == good
    assert "b.png" in captured.err
    assert captured.err.count("maskformer:") == 1
    assert "Traceback" not in captured.err
    assert len(names(out)) == 9


def test_nothing_to_do_is_a_failure(checkpoint, tmp_path, capsys) -> None:
    assert main(["predict", str(tmp_path / "no.png"), "--model", checkpoint]) == 1
    assert "no.png: no such file" in capsys.readouterr().err


def test_usage(tmp_path, capsys) -> None:
    picture = draw(tmp_path / "a.png")
    assert main(["predict", picture]) == 2
    sentence = capsys.readouterr().err
    assert all(choice in sentence for choice in ("--model", "facebook/maskformer-swin-tiny-ade", "directory", "scenes"))
    assert len(sentence.splitlines()) == 1
    assert main(["predict", "--model", "scenes"]) == 2
    assert main(["predict", picture, "--model", "scenes", "--task", "everything"]) == 2
    assert main(["predict", picture, "--model", "scenes", "--batch-size", "0"]) == 2
    assert main(["predict", picture, "--model", str(tmp_path / "nothing")]) == 1
    assert "nothing" in capsys.readouterr().err


def test_help_does_not_load_torch() -> None:
    import subprocess
    import sys

    code = "from maskformer.cli import main; import sys; main(['predict', '--help']); main(['demo', '--help'])"
    code += "; sys.exit(3 if {'torch', 'numpy', 'transformers'} & set(sys.modules) else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--mask-threshold" in done.stdout
    # tyro breaks and frames the lines
    assert "6000 x 4000 stays under 1.5 GB" in " ".join(done.stdout.replace("│", " ").split())


def test_interruption_leaves_whole_files(checkpoint, tmp_path, capsys, monkeypatch) -> None:
    files = [draw(tmp_path / f"{name}.png") for name in "ab"]
    replaced: list[str] = []
    replace = maskformer.results.os.replace

    def interrupt(source, target) -> None:
        if Path(target).name == "b.panoptic.png":
            raise KeyboardInterrupt
        replaced.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr("maskformer.results.os.replace", interrupt)
    assert main(["predict", *files, "--model", checkpoint, "--out", str(tmp_path / "out")]) == 130
    assert names(tmp_path / "out") == sorted(replaced)
    assert set(replaced) == {"a.overlay.png", "a.panoptic.png", "a.json", "b.overlay.png"}
    assert stored_picture(tmp_path / "out" / "b.overlay.png").height >= 50
