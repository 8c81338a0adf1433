"""`maskformer predict --engine ray` and `--resume`, without Ray where that is enough; the slow tests kill things."""

import contextlib
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from maskformer.cli import main
from maskformer.data.folders import PICTURES
from maskformer.data.scenes import draw_scene
from maskformer.inference import Segmenter
from maskformer.serving import ray_batches
from maskformer.serving.ray_batches import Recipe, Worker, remote_pictures, segment_on_cluster, workers_of
from tests.serving.ray_cluster import TwoNodes, one_thread, two_nodes

RECIPE = Recipe("scenes", None, "cpu", None, None, None, {"batch_size": 2})


def draw(folder: Path, count: int) -> Path:
    folder.mkdir()
    for seed in range(count):
        Image.fromarray(draw_scene(seed, (64, 96)).image).save(folder / f"{seed:03}.png")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def block_of(*paths: Path) -> dict[str, np.ndarray]:
    return {
        "file": np.array([path.name for path in paths], object),
        "root": np.array([""] * len(paths), object),
        "path": np.array([str(path) for path in paths], object),
        "stem": np.array([path.stem for path in paths], object),
    }


def answers(worker: Worker, *paths: Path) -> dict[str, object]:
    return {row["file"][0]: pickle.loads(row["answer"][0]) for row in worker(block_of(*paths))}


def predict(pictures: object, out: Path, *words: str) -> int:
    return main(["predict", str(pictures), "--model", "scenes", "--device", "cpu", "--out", str(out), "--json", *words])


@pytest.mark.parametrize("words", [["--workers", "2"], ["--workers", "0", "--engine", "ray"]])
def test_workers_are_of_ray_and_not_none(tmp_path, capsys, words) -> None:
    assert predict("x.png", tmp_path / "out", *words) == 2
    assert "expected at least 1 and --engine ray" in capsys.readouterr().err


def test_without_ray_one_sentence_says_what_to_install(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert predict(draw(tmp_path / "in", 1), tmp_path / "out", "--engine", "ray") == 1
    assert capsys.readouterr().err == "maskformer: --engine ray needs ray: pip install 'maskformer[ray]'\n"


def test_other_file_systems_need_ray(tmp_path, capsys) -> None:
    assert predict("s3://bucket/folder", tmp_path / "out") == 1
    assert "addresses such as this need --engine ray" in capsys.readouterr().err


def test_the_pictures_of_an_address(tmp_path) -> None:
    folder = draw(tmp_path / "a b", 2)
    (folder / "deep").mkdir()
    (folder / "000.png").rename(folder / "deep" / "x.PNG")
    (folder / ".hidden.png").write_text("")
    (folder / "notes.txt").write_text("")
    address = folder.as_uri()
    assert remote_pictures(address + "/", PICTURES) == {
        f"{address}/001.png": (address + "/", f"{folder}/001.png"),
        f"{address}/deep/x.PNG": (address + "/", f"{folder}/deep/x.PNG"),
    }
    one = f"{address}/001.png"
    assert remote_pictures(one, PICTURES) == {one: (one, f"{folder}/001.png")}
    with pytest.raises(ValueError, match=r"no\.png: no such file"):
        remote_pictures(f"{address}/no.png", PICTURES)
    with pytest.raises(ValueError, match="no pictures there"):
        remote_pictures(address, {".jpg"})
    with pytest.raises(ValueError, match=r"^xyz://a/b: Unrecognized filesystem"):
        remote_pictures("xyz://a/b", PICTURES)


def test_a_worker_per_gpu_or_per_core() -> None:
    cores = SimpleNamespace(cluster_resources=lambda: {"CPU": 12.0})
    gpus = SimpleNamespace(cluster_resources=lambda: {"CPU": 12.0, "GPU": 3.0})
    assert workers_of(cores, None, None) == (12, {"num_cpus": 1})
    assert workers_of(gpus, None, None) == (3, {"num_gpus": 1})
    assert workers_of(gpus, "cpu", 5) == (5, {"num_cpus": 1})


def test_a_worker_gives_what_predict_writes(tmp_path, segmenter) -> None:
    folder = draw(tmp_path / "in", 3)
    paths = sorted(folder.iterdir())
    for path, result in zip(paths, segmenter.stream(paths, batch_size=2), strict=True):
        result.save(tmp_path / "expected", path.stem)
    (folder / "broken.png").write_text("no picture")
    given = answers(Worker(RECIPE), paths[0], folder / "broken.png", *paths[1:])
    assert sorted(given) == ["000.png", "001.png", "002.png", "broken.png"]
    assert given.pop("broken.png").startswith("picture (broken.png) cannot be read as a picture")
    written = {name: content for _, files in given.values() for name, content in files.items()}
    assert written == contents(tmp_path / "expected")
    for slim, _ in given.values():
        assert slim.to_dict()["segments"]
        assert slim.image is None


def test_a_picture_the_network_fails_on_does_not_fail_the_others(tmp_path, monkeypatch) -> None:
    folder = draw(tmp_path / "in", 3)
    Image.new("RGB", (96, 64)).save(folder / "001.png")
    segment = Segmenter._segment

    def fragile(self, group, *rest):
        if any(not item.image.any() for item in group):
            raise FloatingPointError("not finite")
        return segment(self, group, *rest)

    monkeypatch.setattr(Segmenter, "_segment", fragile)
    given = answers(Worker(RECIPE), *sorted(folder.iterdir()))
    assert [file for file, answer in given.items() if not isinstance(answer, str)] == ["000.png", "002.png"]
    assert given["001.png"] == "001.png: not finite"


def test_what_no_worker_can_do_ends_the_run(tmp_path) -> None:
    recipe = Recipe("scenes", "semantic", "cpu", None, None, None, {"threshold": 0.5})
    [(file, sentence)] = answers(Worker(recipe), tmp_path / "a.png").items()
    assert file == ray_batches._NO_FILE
    assert "threshold has no meaning for task 'semantic'" in sentence


def test_each_picture_is_written_once_and_none_is_missed(tmp_path, monkeypatch) -> None:
    paths = sorted(draw(tmp_path / "in", 2).iterdir())
    flat = [{name: value[0] for name, value in row.items()} for row in Worker(RECIPE)(block_of(*paths))]
    for row in flat:
        row["file"] = str(paths[0].parent / row["file"])
    monkeypatch.setattr(ray_batches, "_rows", lambda *_: iter([flat[0], flat[0], flat[1]]))
    files = {str(path): path.stem for path in paths}
    assert [file for file, _ in segment_on_cluster(None, files, {}, RECIPE, tmp_path / "out", None)] == list(files)


def test_a_worker_leaves_what_others_have_begun_with_in_vain(tmp_path) -> None:
    paths = sorted(draw(tmp_path / "in", 2).iterdir())
    tally = ray_batches._Tally()
    for _ in range(3):
        assert len(answers(Worker(RECIPE, tally.begin), *paths)) == 2
    assert not answers(Worker(RECIPE, tally.begin), *paths)
    assert len(answers(Worker(RECIPE, tally.begin), *paths[1:])) == 1


def test_what_took_its_workers_down_is_tried_alone_and_then_given_up(tmp_path, monkeypatch) -> None:
    paths = sorted(draw(tmp_path / "in", 3).iterdir())
    [*flat] = ({name: value[0] for name, value in row.items()} for row in Worker(RECIPE)(block_of(*paths)))
    asked = []

    def rows(_ray, items, _recipe, _workers, per_task):
        asked.append(([item["file"] for item in items], per_task))
        deadly = {paths[1].name} if per_task == 1 else {paths[1].name, paths[2].name}
        return ({**row, "file": str(paths[0].parent / row["file"])} for row in flat if row["file"] not in deadly)

    monkeypatch.setattr(ray_batches, "_rows", rows)
    files = {str(path): path.stem for path in paths}
    found = dict(segment_on_cluster(None, files, {}, RECIPE, tmp_path / "out", None))
    assert asked == [(list(files), 8), (list(files)[1:], 1)]
    assert found.keys() == files.keys()
    assert found[str(paths[1])] == f"{paths[1]}: every worker that took it died, 3 times with this picture alone"
    assert sorted(path.name for path in (tmp_path / "out").glob("*.json")) == ["000.json", "002.json"]


def test_resume_leaves_out_what_is_finished(tmp_path, capsys) -> None:
    folder, out = draw(tmp_path / "in", 3), tmp_path / "out"
    (folder / "002.png").rename(tmp_path / "002.png")
    assert predict(folder, out, "--resume") == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    (tmp_path / "002.png").rename(folder / "002.png")
    (out / "000.json").unlink()
    (out / ".000.json.1.part").write_text("{")  # as a killed run leaves it
    (out / "001.panoptic.png").write_text("as it was")
    assert predict(folder, out, "--resume") == 0
    captured = capsys.readouterr()
    assert [Path(json.loads(line)["file"]).name for line in captured.out.splitlines()] == ["000.png", "002.png"]
    assert "1 of 3 pictures are finished already" in captured.err
    assert (out / "001.panoptic.png").read_text() == "as it was"
    assert not list(out.glob(".*"))
    assert predict(folder, out, "--resume", "--threshold", "0.9") == 1
    assert "start anew without --resume" in capsys.readouterr().err
    assert predict(folder, out, "--threshold", "0.9") == 0  # and what is written down is of other results
    assert not list((out / "journal").iterdir())
    assert (out / "001.panoptic.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def nodes() -> Iterator[TwoNodes]:
    with two_nodes() as both:
        yield both


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> tuple[Path, dict[str, bytes]]:
    """500 pictures, and what `predict` makes of them."""
    folder = draw(tmp_path_factory.mktemp("many") / "in", 500)
    out = folder.parent / "out"
    with one_thread(), contextlib.redirect_stdout(io.StringIO()):
        assert predict(folder, out) == 0
    return folder, contents(out)


class Run:
    """The command in a process of its own."""

    def __init__(self, nodes: TwoNodes, pictures: Path, out: Path) -> None:
        self.out = out
        words = ["predict", str(pictures), "--model", "scenes", "--device", "cpu", "--out", str(out)]
        words += ["--engine", "ray", "--resume", "--json"]
        self.errors, self.lines = out.with_suffix(".err"), out.with_suffix(".jsonl")
        with self.errors.open("w") as errors, self.lines.open("w") as lines:
            command = [sys.executable, "-m", "maskformer", *words]
            environment = {**os.environ, **nodes.environment}
            self.process = subprocess.Popen(command, stdout=lines, stderr=errors, env=environment)

    def finished(self) -> list[str]:
        journal = self.out / "journal" / "journal-0.jsonl"
        lines = journal.read_text().splitlines(keepends=True)[1:] if journal.exists() else []
        return [json.loads(line)["name"] for line in lines if line.endswith("}\n")]

    def results(self) -> set[str]:
        return {json.loads(line)["file"] for line in self.lines.read_text().splitlines()}

    def wait_for(self, count: int) -> None:
        """Until so many pictures are finished, and not all of them."""
        while len(self.finished()) < count:
            assert self.process.poll() is None, self.errors.read_text()
            time.sleep(0.02)
        assert len(self.finished()) < 400

    def check(self, expected: dict[str, bytes]) -> None:
        assert self.process.wait(200) == 0, self.errors.read_text()
        assert contents(self.out) == expected
        assert sorted(self.finished()) == sorted({name.split(".")[0] for name in expected})


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["worker", "node"])
def test_nothing_is_lost_or_doubled_when_something_dies(nodes, expected, tmp_path, victim) -> None:
    nodes.add_second()
    run = Run(nodes, expected[0], tmp_path / "out")
    run.wait_for(100)
    [worker] = nodes.workers("MapWorker")
    os.kill(worker if victim == "worker" else nodes.second_pid, signal.SIGKILL)
    run.check(expected[1])
    assert len(run.results()) == 500
    if victim == "node":
        nodes.forget_second()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray at itself
def test_a_picture_that_kills_every_worker_fails_alone(nodes, tmp_path, monkeypatch) -> None:
    class Deadly(Recipe):  # sent to the workers as it is written here
        def predictor(self):
            segmenter, num_channels = super().predictor()

            def stream(pictures, **options):
                return segmenter.stream((each if each.any() else os._exit(1) for each in pictures), **options)

            return SimpleNamespace(stream=stream), num_channels

    folder = draw(tmp_path / "in", 12)
    Image.new("RGB", (96, 64)).save(folder / "005.png")
    monkeypatch.setenv("RAY_ADDRESS", nodes.environment["RAY_ADDRESS"])
    files = {str(path): path.stem for path in sorted(folder.iterdir())}
    recipe = Deadly(**vars(RECIPE))
    with ray_batches.cluster("data") as ray:
        found = list(segment_on_cluster(ray, files, {}, recipe, tmp_path / "out", 1))
    assert sorted(file for file, _ in found) == sorted(files)
    [sentence] = [answer for _, answer in found if isinstance(answer, str)]
    assert sentence == f"{folder / '005.png'}: every worker that took it died, 3 times with this picture alone"
    assert len(list((tmp_path / "out").glob("*.json"))) == 11


@pytest.mark.slow
def test_a_killed_command_goes_on_where_it_was(nodes, expected, tmp_path) -> None:
    nodes.add_second()
    run = Run(nodes, expected[0], tmp_path / "out")
    run.wait_for(100)
    run.process.kill()
    run.process.wait()
    before = len(run.finished())
    again = Run(nodes, expected[0], tmp_path / "out")
    again.check(expected[1])
    assert len(again.results()) == 500 - before
