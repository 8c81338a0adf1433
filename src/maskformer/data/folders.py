"""Folders of a data set: which split a name means, and which image and which label map belong together."""

from __future__ import annotations

import fnmatch
import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from maskformer.data.dataset import Finding, SegmentationDataset
from maskformer.data.sample import Task

PICTURES = (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
# What annotation tools append to the name of the image: cat.jpg and cat_mask.png.
_MAP_ENDING = re.compile(r"[._-](mask|label|seg|segmentation|semantic|instance|gt)s?$", re.IGNORECASE)
_SPLIT = re.compile(r"(?<![a-z])(train|val|test)")
_NAMES_LOOKED_FOR = 20

Splits: TypeAlias = "dict[str, Any]"  # where each split lies, as the format needs it
Pairs: TypeAlias = "tuple[list[tuple[str, str]], list[Finding]]"


@dataclass(frozen=True, slots=True)
class Layout:
    """A format: `find` tells the splits a directory has of it (none: another format), `read` opens one of them."""

    name: str
    find: Callable[[Path], Splits]
    read: Callable[[Path, str, Any, Task | None], SegmentationDataset]


def split_of(name: str) -> str | None:
    """ "train", "val" or "test", as the innermost part of a path says that says one ("panoptic_val2017"), or None."""
    matches = (_SPLIT.search(part) for part in reversed(name.lower().split("/")))
    return next((match.group(1) for match in matches if match), None)


def by_split(sources: Mapping[str, Any], other: str | None = None) -> Splits:
    """Named sources by their split, `other` (or the name) where the name tells none.

    Several of one split keep their own names, so that one has to be chosen; but "train" is it, before "train_extra".
    """
    groups: dict[str, dict[str, Any]] = {}
    for name, source in sources.items():
        groups.setdefault(split_of(name) or other or name, {})[name] = source
    splits: Splits = {}
    for split, group in groups.items():
        found = [group[split]] if split in group else list(group.values())
        splits |= group if len(found) > 1 else {split: found[0]}
    return splits


def split_folders(folder: Path) -> dict[str, Path]:
    """The folders inside that are splits; without any, the folder itself is the training split."""
    inside = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    splits = by_split({path.name: path for path in inside if split_of(path.name)})
    return dict(sorted(splits.items())) or {"train": folder}


def paired_splits(images: Path, maps: Path, pattern: str = "*") -> Splits:
    """Image folder and map folder of each split that both have, where a file below both matches the pattern."""
    if not (images.is_dir() and maps.is_dir()):
        return {}
    inside = split_folders(maps)
    pairs = {name: (folder, inside.get(name, maps / folder.name)) for name, folder in split_folders(images).items()}
    return {name: pair for name, pair in pairs.items() if holds(pair[1], pattern)}


def folders_below(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """A folder and each below it with the names of its files; links are followed, hidden folders are left out."""
    seen: set[str] = set()
    for place, inside, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        inside[:] = [] if real in seen else [name for name in inside if not name.startswith(".")]
        if real not in seen:  # a link may lead back
            yield place, names
        seen.add(real)


def holds(folder: Path, pattern: str) -> bool:
    """Whether the name of a file in the folder or below matches."""
    return any(fnmatch.filter(names, pattern) for _, names in folders_below(folder))


def pictures_below(folder: Path, endings: tuple[str, ...] = PICTURES) -> Iterator[Path]:
    """Every file in a folder and below with one of the endings (in lower case); hidden ones are left out."""
    for place, names in folders_below(folder):
        for name in names:
            if name.lower().endswith(endings) and not name.startswith("."):
                yield Path(place, name)


def pair_by_name(images: Path, maps: Path, image_ending: str = "", map_ending: str = "") -> Pairs:
    """Image and label map of the same name, and what has no partner.

    Args:
        image_ending, map_ending: what comes after the common part of the names; by default any picture's suffix, and
            endings such as "_mask" are passed over.
    """
    by_name: dict[str, str] = {}
    for name, path in _named(maps, map_ending):
        by_name[name] = path
        by_name.setdefault(_MAP_ENDING.sub("", name), path)
    pairs: list[tuple[str, str]] = []
    findings: list[Finding] = []
    for name, image in _named(images, image_ending):
        if name in by_name:
            pairs.append((image, by_name[name]))
        else:
            wanted = f"{maps / name}{map_ending or '.png'}"
            message = f"{image} has no label map {wanted}: add it, or move the image elsewhere"
            findings.append(Finding("missing", "error", image, message))
    for unused in sorted(set(by_name.values()).difference(label_map for _, label_map in pairs)):
        message = f"{unused} has no image in {images}: it is not used"
        findings.append(Finding("missing", "warning", unused, message))
    return pairs, findings


def _named(folder: Path, ending: str) -> Iterator[tuple[str, str]]:
    """Every picture below a folder that ends so (any picture, for ""), after its path from there without the ending."""
    for path in sorted(pictures_below(folder, (ending.lower(),) if ending else PICTURES)):
        name = unicodedata.normalize("NFC", path.relative_to(folder).as_posix())
        yield name.removesuffix(ending) if ending else name.rpartition(".")[0], str(path)


def image_folder(root: Path, annotation: Path, names: list[str], split: str, never: Path | None = None) -> Path:
    """The folder that the images of an annotation file are in: beside it, or else anywhere in the root.

    Of several that hold the first one that there is, it is the one called like the split, or else one called like
    none; a folder called like an annotation file, which may hold the PNG files of that, comes last, and `never` is
    none of them.

    Raises:
        ValueError: several are called so.
    """
    wanted, beside = names[:_NAMES_LOOKED_FOR], annotation.parent  # some pictures may be missing
    if not wanted or any((beside / name).is_file() for name in wanted):
        return beside
    places = [folder for place, _ in folders_below(root) if (folder := Path(place)) != never]
    for name in wanted:
        found: dict[tuple[bool, int], list[Path]] = {}
        for folder in (place for place in places if (place / name).is_file()):
            called = split_of(folder.relative_to(root).as_posix())
            wrong = 0 if called == split_of(split) else 1 if called is None else 2
            found.setdefault((folder.with_name(f"{folder.name}.json").is_file(), wrong), []).append(folder)
        if found:
            folder, *others = sorted(found[min(found)])
            if others:
                raise ValueError(
                    f"{name}, an image of {annotation}, is in {folder} and in {others[0]}: move the folder that is not "
                    f"meant out of {root}"
                )
            return folder
    return beside
