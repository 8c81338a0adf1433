"""`maskformer convert` as a user meets it: both directions, its words, its exit codes."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from maskformer.cli import BAD_USAGE, DONE, FAILED, main

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden"
SWIN = str(GOLDEN / "swin-fpn" / "model.pkl")
HEADS = ("--attention-heads", "4")


def one_sentence(capsys):
    shown = capsys.readouterr()
    assert shown.out == ""
    sentence = shown.err.splitlines()[-1]
    assert sentence.startswith("maskformer: ")
    assert "Traceback" not in shown.err
    return sentence


def test_there_and_back(tmp_path, capsys):
    directory, back = tmp_path / "ours", tmp_path / "theirs.pkl"

    assert main(["convert", SWIN, str(directory), *HEADS]) == DONE
    shown = capsys.readouterr()
    assert shown.out == (
        f"{directory}: MaskFormerForInstanceSegmentation, swin backbone, 9 classes, 0.2 M parameters\n"
    )
    assert "reading" in shown.err
    assert main(["convert", str(directory), str(back)]) == DONE

    with back.open("rb") as file:
        written = pickle.load(file)
    with open(SWIN, "rb") as file:
        original = pickle.load(file)
    assert written["__author__"]
    assert written["model"].keys() == original["model"].keys()
    assert all(np.array_equal(written["model"][key], array) for key, array in original["model"].items())


def test_json_tells_what_was_converted(tmp_path, capsys):
    assert main(["convert", SWIN, str(tmp_path / "out"), *HEADS, "--json"]) == DONE

    assert json.loads(capsys.readouterr().out) == {
        "path": str(tmp_path / "out"),
        "architecture": "MaskFormerForInstanceSegmentation",
        "backbone": "swin",
        "num_labels": 9,
        "num_parameters": 194413,
        "zoo_name": None,
    }


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["nowhere.pkl", "{out}"], FAILED, "nowhere.pkl is not a file"),
        ([SWIN, "{out}", "--attention-heads", "5"], FAILED, "attention_heads is 5, expected a divisor"),
        ([SWIN, "{out}", "--attention-heads", "many"], BAD_USAGE, "Error parsing --attention-heads"),
        ([SWIN, "{out}", "--zoo", "nothing"], FAILED, "no published model called 'nothing'"),
        ([SWIN], BAD_USAGE, "Missing from maskformer convert: DST"),
        ([], BAD_USAGE, "Missing from maskformer convert: SRC DST"),
        ([SWIN, "{out}.pkl"], BAD_USAGE, "is in the authors' layout already"),
        ([str(GOLDEN), "{out}"], BAD_USAGE, "is a directory: to write the authors' layout, DST must end in .pkl"),
        ([str(GOLDEN), "{out}.pkl", "--zoo", "nothing"], BAD_USAGE, "--zoo and --attention-heads are about reading"),
        ([str(GOLDEN), "{out}.pkl", "--attention-heads", "4"], BAD_USAGE, "are about reading the authors' layout"),
        ([str(GOLDEN), "{out}.pkl"], FAILED, "holds no readable checkpoint"),
        ([__file__, "{out}"], FAILED, "is damaged or is no checkpoint"),
    ],
)
def test_mistakes_are_one_sentence_and_write_nothing(tmp_path, capsys, words, code, sentence):
    out = str(tmp_path / "out")

    assert main(["convert", *(word.replace("{out}", out) for word in words)]) == code
    assert sentence in one_sentence(capsys)
    assert not any(tmp_path.iterdir())


def test_full_directory_is_left_alone(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")

    assert main(["convert", SWIN, str(tmp_path), *HEADS]) == FAILED
    assert "is not empty" in one_sentence(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


class Hostile:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def test_hostile_file_is_refused_and_not_run(tmp_path, capsys):
    mark, source = tmp_path / "was_run", tmp_path / "model.pkl"
    source.write_bytes(pickle.dumps({"model": {"weight": np.zeros(1), "other": Hostile(mark)}}))

    assert main(["convert", str(source), str(tmp_path / "out")]) == FAILED
    assert "is refused, nothing of it was run: it names posix.system" in one_sentence(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pkl"]
