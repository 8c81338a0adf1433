"""`maskformer predict`: segment picture files with a checkpoint."""

from __future__ import annotations

import dataclasses
import json
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from maskformer.cli import UsageError, options, tell
from maskformer.cli.progress import progress_bar
from maskformer.cli.tables import print_segments

if TYPE_CHECKING:
    from torch import Tensor

    from maskformer.evaluation.journal import Journal
    from maskformer.results import Segmentation
    from maskformer.serving.ray_batches import Answer, Recipe

_OUR_SUFFIXES = (".overlay.png", ".semantic.png", ".panoptic.png", ".instance.png")
Protocol = Literal["transformers", "paper", "paper-panoptic"]
Remote = dict[str, tuple[str, str]]  # a picture of another file system -> (the source it is of, its path there)


@dataclasses.dataclass(frozen=True)
class Command:
    """Segment pictures: for each, STEM.overlay.png, STEM.TASK.png and STEM.json are written.

    STEM.TASK.png holds label ids (semantic), ids as in the COCO panoptic format (panoptic), or 16-bit ids with 65535
    where there is nothing (instance).

    A picture larger than a tile is segmented in tiles, and segments are joined across the seams. Each tile is resized
    as if it were a picture of its own: choose tiles as large as the pictures that the model was trained on. What is
    larger than a tile, or told by its place in the whole picture, is not recognised. Memory beyond the model: 32 bytes
    per pixel of the picture and what the network needs for one batch of tiles; 6000 x 4000 stays under 1.5 GB.
    """

    images: Annotated[tuple[str, ...], tyro.conf.Positional, options.optional(metavar="IMAGE|DIR...")] = ()
    """picture files and addresses; of a directory, every picture in it and below."""
    model: options.ChosenModel = None
    task: options.Task = None
    """by default what the checkpoint was trained for."""
    out: Path = Path("predictions")
    """directory for the results."""
    as_json: options.Json = False
    """print one JSON object per picture instead of a table."""
    threshold: options.Share = None
    """lowest score of a segment (default 0.5)."""
    mask_threshold: options.Share = None
    """lowest mask probability of a segment's pixel (default 0.5)."""
    overlap: options.Share = None
    """share of its mask that a segment must keep (panoptic: default 0.8; instance: default no limit)."""
    protocol: Annotated[Protocol | None, options.optional(metavar="transformers|paper|paper-panoptic")] = None
    """the order of resizing and sigmoid; "paper" and "paper-panoptic" are the authors'."""
    tile: options.Pixels = None
    """side of the tiles, such as 1024; by default there are none."""
    tile_overlap: options.TileOverlap = None
    device: options.Device = None
    dtype: options.ChosenPrecision = None
    batch_size: int = 4
    """pictures per forward pass, at most; only those of one size go together."""
    resume: bool = False
    """write down in OUT/journal what is finished, and leave out what it has already."""
    engine: options.Engine = "local"
    """ray: on all machines of a Ray cluster (by RAY_ADDRESS, or this machine); reads s3://bucket/folder too."""
    workers: options.Workers = None
    """processes of --engine ray, with a model each; by default one per GPU, or else per CPU core."""

    def run(self) -> int:
        model = options.check_model(self.model, "predict")
        if not self.images:
            raise UsageError("predict needs pictures: give files or directories")
        options.check_counts(batch_size=self.batch_size)
        options.check_workers(self.engine, self.workers)
        options.check_tiles(self.tile, self.tile_overlap)
        remote: Remote | None = {} if self.engine == "ray" else None
        files, failures = find_pictures(self.images, self.out, remote)
        for failure in failures:
            tell(failure)
        named = dict(zip(files, unique_stems(files), strict=True))
        done = self._segment(named, self._recipe(model), remote) if named else 0
        return 0 if not failures and done == len(files) else 1

    def _recipe(self, model: str) -> Recipe:
        from maskformer.serving.ray_batches import Recipe

        asked = {
            "threshold": self.threshold,
            "mask_threshold": self.mask_threshold,
            "protocol": self.protocol,
            "overlap_mask_area_threshold": self.overlap,
            "batch_size": self.batch_size,
        }
        return Recipe(model, self.task, self.device, self.dtype, self.tile, self.tile_overlap, asked)

    def _segment(self, named: dict[str, str], recipe: Recipe, remote: Remote | None) -> int:
        """How many pictures have results, those of earlier runs included."""
        journal, before = self._journal(recipe)
        left = {
            file: name
            for file, name in named.items()
            if (file, name) not in before or not (self.out / f"{name}.json").is_file()
        }
        done = len(named) - len(left)
        if done:
            tell(f"{done} of {len(named)} pictures are finished already")
        if not left:
            return done
        with progress_bar("segmenting") as progress:
            for behind, (file, answer) in enumerate(self._answers(left, recipe, remote), 1):
                progress(behind, len(left))
                if isinstance(answer, str):
                    tell(answer)
                    continue
                if journal is not None:
                    journal.append({"file": file, "name": left[file]})
                self._print(file, *answer)
                done += 1
        return done

    def _journal(self, recipe: Recipe) -> tuple[Journal | None, set[tuple[str, str]]]:
        """Where to write down what is finished, if that is wanted, and what has been."""
        from maskformer.evaluation.journal import Journal

        folder = self.out / "journal"
        if not self.resume and not folder.exists():
            return None, set()
        settings = dataclasses.asdict(recipe)
        del settings["device"], settings["options"]["batch_size"]  # they change nothing
        journal = Journal(folder, settings, 0)
        if not self.resume:
            journal.clear()  # it would tell of other results than those that will be there
            return None, set()
        for part in self.out.glob(".*.part"):
            part.unlink()  # of a run that was killed
        return journal, {(record["file"], record["name"]) for record in journal.records()}

    def _answers(self, files: Mapping[str, str], recipe: Recipe, remote: Remote | None) -> Iterator[tuple[str, Answer]]:
        if remote is None:
            yield from _on_this_machine(files, recipe, self.out)
            return
        from maskformer.serving.ray_batches import cluster, segment_on_cluster

        with cluster("data") as ray:
            yield from segment_on_cluster(ray, files, remote, recipe, self.out, self.workers)

    def _print(self, file: str, result: Segmentation, written: list[Path]) -> None:
        if self.as_json:
            found = {"file": file, **result.to_dict(), "written": [str(path) for path in written]}
            print(json.dumps(found), flush=True)
            return
        height, width = result.image_size
        print(f"{file}  {width} x {height}  {result.task}: {len(result.segments)} segments  -> {written[0]}")
        print_segments(result)


def find_pictures(sources: tuple[str, ...], out: Path, remote: Remote | None = None) -> tuple[list[str], list[str]]:
    """The files of all sources, each once, in order, directories sorted; and a sentence for each without any.

    Pictures that an earlier run wrote into `out` are not found in a directory. With `remote`, which gets where they
    are, also those of other file systems.
    """
    found: dict[str, str] = {}  # by what it leads to
    failures: list[str] = []
    for source in sources:
        try:
            for place, file in _pictures_of(source, out, remote):
                found.setdefault(place, file)
        except ValueError as error:
            failures.append(str(error))
    return list(found.values()), failures


def _pictures_of(source: str, out: Path, remote: Remote | None) -> list[tuple[str, str]]:
    """What each picture's name leads to, and the name; ValueError if there is none."""
    from maskformer.data.folders import PICTURES, pictures_below

    path = Path(source)
    if source.startswith(("http://", "https://")):
        return [(source, source)]
    if "://" in source and remote is not None:
        from maskformer.serving.ray_batches import remote_pictures

        inside = remote_pictures(source, PICTURES)
        remote.update(inside)
        return [(name, name) for name in inside]
    if not path.exists():
        hint = ", and addresses such as this need --engine ray" if "://" in source else ""
        raise ValueError(f"{source}: no such file or directory{hint}")
    if not path.is_dir():
        return [(str(path.resolve()), source)]
    files = [
        file
        for file in sorted(pictures_below(path))
        if file.is_file() and not (file.name.endswith(_OUR_SUFFIXES) and out.resolve() in file.resolve().parents)
    ]
    if not files:
        raise ValueError(f"{source}: no pictures in this directory ({', '.join(PICTURES)})")
    return [(str(file.resolve()), str(file)) for file in files]


def unique_stems(files: list[str]) -> list[str]:
    """A name for the results of each file: its stem, with -2, -3, ... where another file has it already.

    Case does not make names different, as on some file systems.
    """
    stems = [PurePosixPath(Path(file).as_posix().split("?")[0]).stem or "picture" for file in files]
    taken = {stem.casefold() for stem in stems}
    used: set[str] = set()
    names: list[str] = []
    for stem in stems:
        name, number = stem, 1
        while name.casefold() in used or (number > 1 and name.casefold() in taken):
            number += 1
            name = f"{stem}-{number}"
        used.add(name.casefold())
        names.append(name)
    return names


def _on_this_machine(files: Mapping[str, str], recipe: Recipe, out: Path) -> Iterator[tuple[str, Answer]]:
    """As `segment_on_cluster`."""
    from maskformer.processing.loading import read_image

    predictor, num_channels = recipe.predictor()
    opened: deque[str] = deque()
    failed: deque[tuple[str, str]] = deque()

    def pictures() -> Iterator[Tensor]:
        for file in files:
            try:
                picture = read_image(file, num_channels, name="picture")
            except (ValueError, OSError, MemoryError) as error:
                failed.append((file, str(error) or f"{file} is too large for the memory"))
            else:
                opened.append(file)
                yield picture

    for result in predictor.stream(pictures(), **recipe.options):
        while failed:
            yield failed.popleft()
        file = opened.popleft()
        yield file, (result, result.save(out, files[file]))
    yield from failed
