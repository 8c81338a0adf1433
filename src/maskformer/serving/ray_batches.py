"""Many pictures on many machines: Ray Data spreads them over workers that each hold the model.

A worker sends back the finished files of a picture, and only the process that asked writes them: machines need not
share a disk for the results, a half-written one cannot be left behind, and a picture that was segmented twice because
a machine died in between is written once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import logging
import os
import pickle
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maskformer.results import Segmentation, write_whole

Answer = tuple[Segmentation, list[Path]] | str
"""Of a picture: its result and its files, or why it has none."""
EXTRA = "pip install 'maskformer[ray]'"

# What a worker takes at once, in batches: so much is done again when it dies, and only there sizes are grouped.
_BATCHES_PER_TASK = 4
_MOST_TASKS = 20_000  # each costs the head node a millisecond and some memory
_TRIES = 3  # of what every worker that begins with it dies of
_NO_FILE = ""  # in a row that says why a worker can do nothing


@dataclass(frozen=True)
class Recipe:
    """What every worker needs to know: the checkpoint, and what `stream` is called with."""

    model: str
    task: Any
    device: str | None
    dtype: str | None
    tile: int | None
    tile_overlap: int | None
    options: Mapping[str, Any]

    def predictor(self) -> tuple[Any, int]:
        """The Segmenter, or one by tiles, and a picture's channels; ValueError as `Segmenter.from_pretrained`."""
        import torch

        from maskformer.inference import Segmenter
        from maskformer.tiling import TiledSegmenter

        dtype = getattr(torch, self.dtype) if self.dtype else None
        segmenter = Segmenter.from_pretrained(self.model, self.task, self.device, dtype)
        tiled = segmenter if self.tile is None else TiledSegmenter(segmenter, self.tile, self.tile_overlap)
        return tiled, segmenter.num_channels


class _StdoutOfThisThread(io.TextIOBase):
    """What Ray's threads print between our results, when something dies, goes to stderr."""

    def __init__(self) -> None:
        self._stdout, self._thread = sys.stdout, threading.get_ident()

    def write(self, text: str) -> int:
        return (self._stdout if threading.get_ident() == self._thread else sys.stderr).write(text)

    def flush(self) -> None:
        self._stdout.flush()


@contextlib.contextmanager
def cluster(library: str) -> Iterator[Any]:
    """Ray, connected to the cluster of RAY_ADDRESS or of `ray start`, else to one of this machine that ends here.

    `library` is the part of Ray that is needed, `data` or `serve`; ImportError without it.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray = importlib.import_module("ray")
        importlib.import_module(f"ray.{library}")  # an attribute from here on
    except ImportError as error:
        raise ImportError(f"--engine ray needs {error.name or error}: {EXTRA}") from error
    connected = ray.is_initialized()
    if not connected:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        with contextlib.redirect_stdout(_StdoutOfThisThread()):
            yield ray
    finally:
        with contextlib.redirect_stdout(sys.stderr):
            if not connected:
                ray.shutdown()


def workers_of(ray: Any, device: str | None, wanted: int | None) -> tuple[int, dict[str, float]]:
    """How many workers, by default one per GPU of the cluster or else per CPU, and what each of them occupies."""
    there = ray.cluster_resources()
    kind = "GPU" if device != "cpu" and there.get("GPU", 0) >= 1 else "CPU"
    return wanted or max(int(there.get(kind, 1)), 1), {f"num_{kind.lower()}s": 1}


def remote_pictures(source: str, suffixes: Collection[str]) -> dict[str, tuple[str, str]]:
    """The pictures of an address such as s3://bucket/folder: name -> (address, path in its file system).

    Raises:
        ValueError: pyarrow cannot read such addresses, or there are none.
        ImportError: there is no pyarrow.
    """
    try:
        from pyarrow import ArrowException, fs
    except ImportError as error:
        raise ImportError(f"{source} needs pyarrow: {EXTRA}") from error
    try:
        system, base = fs.FileSystem.from_uri(source)
        info = system.get_file_info(base)
        if info.type == fs.FileType.NotFound:
            raise ValueError("no such file or directory")
        if info.is_file:
            return {source: (source, base)}
        inside = system.get_file_info(fs.FileSelector(base, recursive=True))
    except (ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{source}: {' '.join(str(error).split())}") from error
    head = source.partition("?")[0].rstrip("/")
    paths = sorted(
        each.path
        for each in inside
        if each.is_file and Path(each.path).suffix.lower() in suffixes and not each.base_name.startswith(".")
    )
    if not paths:
        raise ValueError(f"{source}: no pictures there ({', '.join(sorted(suffixes))})")
    return {head + path.removeprefix(base.rstrip("/")): (source, path) for path in paths}


def segment_on_cluster(
    ray: Any,
    files: Mapping[str, str],
    remote: Mapping[str, tuple[str, str]],
    recipe: Recipe,
    out: Path,
    workers: int | None,
) -> Iterator[tuple[str, Answer]]:
    """Each file once, as soon as it is finished, and its answer: the result without maps, the files in `out`.

    `files` has the stem of each one's results, `remote` is of `remote_pictures`, and `out` is on this machine.

    What has taken down every worker that took it is tried again, one picture at a time, before one is given up.

    Raises:
        ValueError: as `Segmenter.from_pretrained` on a worker.
        RuntimeError: the cluster lost itself.
    """
    items: list[dict[str, str]] = []
    for file, stem in files.items():
        root, path = remote.get(file) or ("", file if "://" in file else str(Path(file).resolve()))
        items.append({"file": file, "root": root, "path": path, "stem": stem})
    left = set(files)
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = Path(recipe.model)
    if checkpoint.exists():  # as other processes find it
        recipe = dataclasses.replace(recipe, model=str(checkpoint.resolve()))
    for per_task in (_BATCHES_PER_TASK * recipe.options["batch_size"], 1):
        again = [item for item in items if item["file"] in left]
        for row in _rows(ray, again, recipe, workers, per_task) if again else ():
            file, answer = row["file"], pickle.loads(row["answer"])
            if file == _NO_FILE:
                raise ValueError(answer)
            if file not in left:
                continue  # Ray repeats what a lost machine has done
            left.remove(file)
            yield file, answer if isinstance(answer, str) else _written(out, *answer)
    for file in sorted(left):
        yield file, f"{file}: every worker that took it died, {_TRIES} times with this picture alone"


def _written(out: Path, result: Segmentation, contents: Mapping[str, bytes]) -> Answer:
    for name, content in contents.items():
        write_whole(out / name, lambda part, content=content: part.write_bytes(content))
    return result, [out / name for name in contents]


def _rows(
    ray: Any, items: list[dict[str, str]], recipe: Recipe, workers: int | None, per_task: int
) -> Iterator[dict[str, Any]]:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.max_errored_blocks = -1  # a task given up between the two halves of a block looks to Ray Data like an error
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    count, occupied = workers_of(ray, recipe.device, workers)
    tasks = min(-(-len(items) // per_task), _MOST_TASKS)
    pictures = ray.data.from_items(items, override_num_blocks=tasks)
    pool = ray.data.ActorPoolStrategy(min_size=1, max_size=count, initial_size=min(count, tasks))
    tally = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Tally).remote()
    given = (recipe, lambda name: ray.get(tally.begin.remote(name)))
    # The actors and what they were at are started again without limit: Ray Data's own setting.
    results = pictures.map_batches(Worker, fn_constructor_args=given, compute=pool, batch_size=None, **occupied)
    try:
        yield from results.iter_rows()
    except ray.exceptions.RayError as error:
        raise RuntimeError(f"the Ray cluster failed: {str(error).strip().splitlines()[-1]}") from error


class _Tally:
    """A process that outlives workers, and counts how often they have begun with what."""

    def __init__(self) -> None:
        self._times: Counter[str] = Counter()

    def begin(self, name: str) -> int:
        self._times[name] += 1
        return self._times[name]


class Worker:
    """A process of Ray Data with the model; `begin` is that of the tally."""

    def __init__(self, recipe: Recipe, begin: Callable[[str], int] = lambda name: 1) -> None:
        self._options, self._begin, self._complaint = recipe.options, begin, ""
        try:
            self._predictor, self._num_channels = recipe.predictor()
            self._predictor.stream((), **recipe.options)  # checks them
        except (ValueError, ImportError, OSError) as error:  # Ray would print pages, and try again
            self._complaint = str(error)

    def __call__(self, block: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """A row for each of some pictures, in any order: its `file` and, pickled, its `answer`.

        None at all of those that workers have begun with so often that they must have died of them.
        """
        if self._complaint:
            yield _row(_NO_FILE, self._complaint)
            return
        columns = zip(*(block[name].tolist() for name in ("file", "root", "path", "stem")), strict=True)
        left = {file: place for file, *place in columns}
        if self._begin(next(iter(left))) > _TRIES:
            return
        with contextlib.suppress(Exception):
            yield from self._answered(left)
        for file, (root, path, stem) in list(left.items()):  # what cannot be read or fails the network, and neighbours
            try:
                yield from self._answered({file: [root, path, stem]})
            except Exception as error:
                reason = (str(error) or type(error).__name__).replace(path, file)
                yield _row(file, reason if file in reason else f"{file}: {reason}")

    def _answered(self, left: dict[str, list[str]]) -> Iterator[dict[str, Any]]:
        """Takes out of `left` what it has a row for; a single one that cannot be read raises."""
        opened: list[str] = []
        for result in self._predictor.stream(self._readable(dict(left), opened), **self._options):
            file = opened.pop(0)
            with tempfile.TemporaryDirectory() as folder:
                contents = {path.name: path.read_bytes() for path in result.save(folder, left[file][2])}
            del left[file]
            yield _row(file, (_slim(result), contents))

    def _readable(self, places: Mapping[str, list[str]], opened: list[str]) -> Iterator[Any]:
        for file, (root, path, _) in places.items():
            with contextlib.suppress(*((ValueError, OSError, MemoryError) if len(places) > 1 else ())):
                picture = _read(root, path, self._num_channels)
                opened.append(file)
                yield picture


def _read(root: str, path: str, num_channels: int) -> Any:
    from maskformer.processing.loading import read_image

    if not root:
        return read_image(path, num_channels, name="picture")
    from pyarrow import fs

    with fs.FileSystem.from_uri(root)[0].open_input_file(path) as file:
        return read_image(file.read(), num_channels, name=f"picture ({path})")


def _row(file: str, answer: Any) -> dict[str, Any]:
    return {"file": [file], "answer": [pickle.dumps(answer)]}


def _slim(result: Segmentation) -> Segmentation:
    """Without picture and maps, for `to_dict` and tables."""
    nothing = np.empty((0, 0), np.int32)
    segments = [dataclasses.replace(segment, pixels=nothing) for segment in result.segments]
    return dataclasses.replace(result, image=None, segmentation=nothing, segments=segments)
