"""`maskformer compare`: our class against transformers', and one checkpoint against another."""

import json

import pytest

from maskformer.cli import main

from .conftest import save


@pytest.fixture(scope="module")
def checkpoints(checkpoint, tmp_path_factory) -> tuple[str, str]:
    return checkpoint, save(tmp_path_factory.mktemp("two"), seed=1)


def test_ours_against_transformers(checkpoints, capsys) -> None:
    a = checkpoints[0]
    assert main(["compare", a, f"transformers:{a}", "--data", "scenes:2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["pixel_agreement"] > 99.9
    assert set(found["logits"]) == {"class_queries_logits", "masks_queries_logits"}
    assert all(apart["relative"] < 1e-4 for apart in found["logits"].values())
    assert found["metrics"]["PQ"][0] == pytest.approx(found["metrics"]["PQ"][1], abs=0.1)


def test_two_checkpoints(checkpoints, capsys) -> None:
    assert main(["compare", *checkpoints, "--data", "scenes:3", "--limit", "2", "--task", "semantic"]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0] == "semantic, 2 images, percent"
    assert lines[1].split()[0] == "metric"
    assert lines[1].endswith("B - A")
    assert any(line.startswith("mIoU") for line in lines)
    assert any(line.startswith("same class: ") for line in lines)
    assert any(line.startswith("masks_queries_logits: largest difference ") for line in lines)


def test_wrong_use(checkpoints, capsys) -> None:
    assert main(["compare", *checkpoints]) == 2
    assert "Missing from maskformer compare: --data DIR" in capsys.readouterr().err
    assert main(["compare", checkpoints[0], "--data", "scenes:1"]) == 2
    assert main(["compare", checkpoints[0], "transformers:/nothing/there", "--data", "scenes:1"]) == 1
    assert "/nothing/there" in capsys.readouterr().err
