"""What is written appears whole or not at all."""

import errno
import os
import re

import pytest

from maskformer.checkpoints.writing import written_whole


def fill(path, text: str, error: Exception | None = None) -> None:
    path.write_text(text)
    if error:
        raise error


def write(path, text: str, error: Exception | None = None) -> None:
    with written_whole(path) as partial:
        partial.mkdir()
        fill(partial / "a", text, error)


def test_directories(tmp_path) -> None:
    write(tmp_path / "new" / "d", "old")
    with pytest.raises(RuntimeError):
        write(tmp_path / "new" / "d", "new", RuntimeError("killed"))
    assert (tmp_path / "new" / "d" / "a").read_text() == "old"
    write(tmp_path / "new" / "d", "new")
    assert (tmp_path / "new" / "d" / "a").read_text() == "new"
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["d"]


def test_what_a_killed_process_left_is_removed(tmp_path) -> None:
    for name in ("d", "d.partial", "d.old.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "b").write_text("left")
    write(tmp_path / "d", "new")
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == ["d", "d/a"]


def test_what_a_process_took_away_that_was_killed_before_it_wrote_is_put_back(tmp_path) -> None:
    write(tmp_path / "d.old.partial", "old")
    write(tmp_path / "d.partial", "new")
    with pytest.raises(RuntimeError):
        write(tmp_path / "d", "newer", RuntimeError("disk full"))
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == ["d", "d/a"]
    assert (tmp_path / "d" / "a").read_text() == "old"


def test_what_cannot_be_renamed_leaves_the_old_one(tmp_path, monkeypatch) -> None:
    write(tmp_path / "d", "old")
    replace = os.replace

    def one_way(source, target) -> None:
        if source.name == "d.partial":
            raise PermissionError(errno.EACCES, "Permission denied", str(source))
        replace(source, target)

    monkeypatch.setattr(os, "replace", one_way)
    with pytest.raises(PermissionError, match=re.escape(str(tmp_path / "d"))):
        write(tmp_path / "d", "new")
    assert (tmp_path / "d" / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_files(tmp_path) -> None:
    for text in ("old", "new"):
        with written_whole(tmp_path / "f") as partial:
            fill(partial, text)
        assert (tmp_path / "f").read_text() == text
    with pytest.raises(OSError, match="disk full"), written_whole(tmp_path / "f") as partial:
        fill(partial, "half", OSError("disk full"))
    assert (tmp_path / "f").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
