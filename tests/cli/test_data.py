"""`maskformer data check`: a table, findings, a contact sheet, and an exit code that scripts can trust."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskformer.cli import BAD_USAGE, DONE, FAILED, main
from maskformer.data.scenes import CLASSES, draw_scene
from maskformer.visualization import label_colors


@pytest.fixture
def maps(tmp_path: Path) -> Path:
    root = tmp_path / "mine"
    for kind in ("images", "labels"):
        for split in ("train", "val"):
            (root / kind / split).mkdir(parents=True)
    for seed in range(4):
        scene = draw_scene(seed, (48, 64))
        classes = np.array([0, *(segment["category_id"] for segment in scene.segments)], np.uint8)[scene.segmentation]
        classes[:6, :6] = 255
        split = "val" if seed == 3 else "train"
        Image.fromarray(scene.image).save(root / "images" / split / f"{seed}.png")
        Image.fromarray(classes).save(root / "labels" / split / f"{seed}.png")
    (root / "classes.txt").write_text("\n".join(entry.name for entry in CLASSES))
    return root


def test_a_good_data_set(maps, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    assert main(["data", "check", str(maps), "--sheet", str(sheet)]) == DONE

    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines[0] == f"{maps}: label-maps, train, semantic"
    assert lines[1].startswith("3 images, 14 classes, ")
    assert lines[2].split() == ["value", "becomes", "pixels", "share", "images", "segments"]
    sky = next(line.split() for line in lines if "0 sky" in line)
    assert sky[:3] == ["0", "0", "sky"]
    assert sky[-2:] == ["3", "3"]
    void = next(line.split() for line in lines if "(ignored)" in line)
    assert void == ["255", "(ignored)", "108", "1.17", "%", "3", "3"]
    assert f"{maps}: label-maps, val, semantic" in lines
    assert "good to train on" in shown.out
    assert f"contact sheet -> {sheet}" in shown.err
    assert "\x1b" not in shown.out


def test_the_contact_sheet_shows_images_targets_and_names(maps, tmp_path):
    sheet = tmp_path / "sheet.png"
    assert main(["data", "check", str(maps), "--split", "train", "--sheet", str(sheet)]) == DONE

    picture = np.asarray(Image.open(sheet).convert("RGB")).astype(int)
    assert picture.shape[1] == 3 * 320
    assert picture.shape[0] > 258  # one row, 240 high, and the names above; below it the legend
    assert (picture[:18, :300] < 100).any()
    assert (picture[258:] < 100).any()
    assert picture[25:40, 5:25].max() < 150  # the corner without labels is dark
    scene = draw_scene(0, (48, 64))
    sky = scene.segmentation == next(segment["id"] for segment in scene.segments if segment["category_id"] == 0)
    for row, column in np.argwhere(sky)[200:600:50]:
        if sky[row - 2 : row + 3, column - 2 : column + 3].all():
            expected = 0.45 * scene.image[row, column] + 0.55 * label_colors(1)[0]
            assert np.abs(picture[18 + row * 5 + 2, column * 5 + 2] - expected).max() < 12


def test_wrong_data_fails_with_the_sentence_of_training(maps, tmp_path, capsys):
    path = maps / "labels" / "train" / "1.png"
    values = np.array(Image.open(path))
    values[0, 0] = 99
    Image.fromarray(values).save(path)
    (maps / "images" / "val" / "3.png").write_bytes(b"no picture")
    assert main(["data", "check", str(maps), "--sheet", str(tmp_path / "sheet.png")]) == FAILED

    shown = " ".join(capsys.readouterr().out.split())
    assert f"error unknown value: {path} holds value 99 (1 pixels)" in shown
    assert "(unknown)" in shown
    assert f"error unreadable: the image ({maps / 'images' / 'val' / '3.png'}) cannot be read as a picture" in shown
    assert "training would refuse this" in shown

    assert main(["data", "check", str(maps), "--split", "val", "--sheet", str(tmp_path / "none.png")]) == FAILED
    assert not (tmp_path / "none.png").exists()  # there is nothing to draw


def test_many_findings_of_a_kind_are_not_all_printed(maps, tmp_path, capsys):
    for number in range(8):
        Image.new("RGB", (4, 4)).save(maps / "images" / "train" / f"extra{number}.png")
    arguments = ["data", "check", str(maps), "--split", "train", "--sheet", str(tmp_path / "sheet.png")]
    assert main(arguments) == FAILED
    shown = capsys.readouterr().out
    assert shown.count("has no label map") == 5
    assert "error missing: and 3 more (--json lists all)" in shown
    assert main([*arguments, "--json"]) == FAILED
    report = json.loads(capsys.readouterr().out)
    assert [finding["kind"] for finding in report["findings"]].count("missing") == 8
    assert report["ok"] is False


def test_json_is_one_object_per_split(maps, tmp_path, capsys):
    assert main(["data", "check", str(maps), "--json", "--limit", "1", "--sheet", str(tmp_path / "s.png")]) == DONE
    reports = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [report["split"] for report in reports] == ["train", "val"]
    assert [report["num_images"] for report in reports] == [3, 1]
    assert reports[0]["num_checked"] == 1
    assert reports[0]["values"][0]["label"] == "sky"
    assert reports[0]["layout"] == "label-maps"


def test_drawn_scenes_and_their_tasks(tmp_path, capsys):
    arguments = ["data", "check", "scenes:3", "--sheet", str(tmp_path / "sheet.png"), "--json"]
    assert main([*arguments, "--task", "instance"]) == DONE
    report = json.loads(capsys.readouterr().out)
    assert (report["task"], report["num_images"]) == ("instance", 3)
    assert report["values"][0]["becomes"] == "background"


def test_what_cannot_be_checked_is_told_in_a_sentence(maps, tmp_path, capsys):
    assert main(["data", "check", str(tmp_path)]) == FAILED
    assert f"did you mean {maps}?" in capsys.readouterr().err
    assert main(["data", "look", str(maps)]) == BAD_USAGE
    assert main(["data", "check", str(maps), "--format", "cityscapes"]) == FAILED
    assert "is no cityscapes, but label-maps" in capsys.readouterr().err


def test_help_answers_without_torch():
    code = (
        "import sys; from maskformer.cli import main; main(['data', '--help']); "
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    answered = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert answered.returncode == 0, answered.stderr
    assert "contact sheet" in answered.stdout


@pytest.mark.parametrize("limit", ["0", "-1"])
@pytest.mark.parametrize(
    "words", [["data", "check", "scenes:2"], ["data", "example", "{}"], ["compare", "a", "b", "--data", "scenes:2"]]
)  # fmt: skip
def test_at_least_one_image(tmp_path, capsys, words, limit):
    assert main([*(word.format(tmp_path / "new") for word in words), "--limit", limit]) == BAD_USAGE
    assert capsys.readouterr().err == f"maskformer: --limit is {limit}, expected at least 1\n"
    assert not (tmp_path / "new").exists()


def test_an_example_where_one_stands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = tmp_path.stat().st_ino
    assert main(["data", "example", ".", "--limit", "1", "--json"]) == DONE
    assert json.loads(capsys.readouterr().out) == {"path": "."}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["annotations", "train", "val"]
    assert tmp_path.stat().st_ino == before  # a shell that stands there still does


def test_an_example_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("mine")
    assert main(["data", "example", str(tmp_path / "file")]) == FAILED
    assert "is a file, expected a directory" in capsys.readouterr().err
    monkeypatch.setattr("maskformer.data.example.draw_scene", lambda *_: 1 / 0)
    assert main(["data", "example", str(tmp_path / "new")]) == FAILED
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_example_has_one_form(tmp_path, capsys):
    assert main(["data", "example", str(tmp_path / "new"), "--format", "cityscapes"]) == BAD_USAGE
    assert "leave those options out" in capsys.readouterr().err


def test_drawn_scenes_have_no_format(capsys):
    assert main(["data", "check", "scenes:1", "--format", "cityscapes"]) == BAD_USAGE
    assert "--format cityscapes is about directories, and scenes:1 is none" in capsys.readouterr().err


def test_drawn_scenes_have_three_splits(tmp_path, capsys):
    assert main(["data", "check", "scenes:2", "--split", "dev"]) == FAILED
    assert "scenes:2 has no split 'dev', only train, val, test" in capsys.readouterr().err


def test_a_sheet_that_cannot_be_written_is_called_by_its_name(tmp_path, capsys):
    assert main(["data", "check", "scenes:1", "--sheet", str(tmp_path)]) == FAILED
    assert f"maskformer: {tmp_path}: Is a directory" in capsys.readouterr().err
