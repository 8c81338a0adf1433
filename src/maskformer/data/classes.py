"""Class lists: which value of an annotation is which class, which are ignored, and where that is written.

A list is read from `classes.txt` (a name per line, counting from 0, or `VALUE: NAME`; ` (thing)` or ` (stuff)` after
the name if it matters), `classes.json` or `id2label.json` (names, a mapping of values to names, or objects with `id`,
`name`, `isthing`, `color`). The names ignore, ignored, void and unlabeled mean pixels that are left out of training.
C classes; label ids 0 to C - 1 count the classes in the order of the list.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from maskformer.data.sample import IGNORED, UNKNOWN, Region

USUALLY_IGNORED = (255, 65535)
CLASS_FILES = ("classes.txt", "classes.json", "id2label.json")
_IGNORED_NAMES = {"ignore", "ignored", "void", "unlabeled", "unlabelled"}
_LINE = re.compile(r"(?:(\d+)\s*[:\t]\s*)?(.+?)(?:\s+\((thing|stuff)\))?")


class Category(NamedTuple):
    """One class; its place in the list is its label id, `original_id` its value in the annotation."""

    name: str
    isthing: bool
    original_id: int
    color: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class ClassList:
    """The classes, the values that are ignored, and the name of the list for messages."""

    categories: tuple[Category, ...]
    ignored: frozenset[int] = frozenset()
    source: str = "the class list"

    @cached_property
    def label_ids(self) -> dict[int, int]:
        """Label id by value."""
        return {category.original_id: label for label, category in enumerate(self.categories)}

    def region(self, value: int, iscrowd: bool = False) -> Region:
        """What pixels of that value are; an unlisted value gives a region of label id UNKNOWN."""
        label = self.label_ids.get(value)
        if label is None:
            return Region(IGNORED if value in self.ignored else UNKNOWN, value)
        return Region(label, value, self.categories[label].isthing, iscrowd)


def read_classes(path: Path, ignored: Iterable[int] = ()) -> ClassList:
    """The class list of a file.

    Args:
        ignored: values that are ignored unless the list names them.

    Raises:
        ValueError: the file cannot be read, holds no class, or a value twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        listed = _from_json(json.loads(text)) if path.suffix == ".json" else _from_text(text)
    except (OSError, ValueError, KeyError, TypeError) as error:
        wanted = "a class per line, as `NAME` or `VALUE: NAME`, or JSON of the same"
        raise ValueError(f"{path} cannot be read as a class list ({error}), expected {wanted}") from error
    void = {category.original_id for category in listed if category.name.strip().lower() in _IGNORED_NAMES}
    kept = tuple(category for category in listed if category.original_id not in void)
    values = [category.original_id for category in listed]
    if not kept or len(set(values)) < len(values):
        fault = f"value {max(values, key=values.count)} twice" if kept else "no class"
        raise ValueError(f"{path} holds {fault}, expected each class of the annotation once")
    return ClassList(kept, frozenset(void | set(ignored)), str(path))


def packaged_classes(name: str) -> tuple[Category, ...]:
    """The classes of a benchmark whose publisher ships no list with it: "ade20k", "cityscapes" or "coco-stuff"."""
    table = json.loads(files("maskformer.data").joinpath("class_names.json").read_text(encoding="utf-8"))
    return tuple(map(category_of, table[name]))


def _from_text(text: str) -> list[Category]:
    listed: list[Category] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        match = _LINE.fullmatch(line)
        assert match, "the pattern takes every line that is not empty"
        value, name, kind = match.groups()
        listed.append(Category(name, kind == "thing", len(listed) if value is None else int(value)))
    return listed


def _from_json(content: Any) -> list[Category]:
    if isinstance(content, dict):
        return [Category(str(name), False, int(value)) for value, name in content.items()]
    named = [entry if isinstance(entry, dict) else {"name": entry} for entry in content]
    return [category_of(entry, place) for place, entry in enumerate(named)]


def category_of(entry: dict[str, Any], place: int = 0, isthing: bool = False) -> Category:
    """The category of an object as COCO's `categories` has them; a colour in another form than theirs is none."""
    color: Any = entry.get("color")
    is_rgb = isinstance(color, list) and len(color) == 3 and all(isinstance(value, int) for value in color)
    number, isthing = int(entry.get("id", place)), flag(entry, "isthing", isthing)
    return Category(str(entry["name"]), isthing, number, (color[0], color[1], color[2]) if is_rgb else None)


def flag(entry: dict[str, Any], name: str, default: bool = False) -> bool:
    """A yes or no of COCO's: 0 or 1, which some tools write as text."""
    value = entry.get(name)
    return default if value is None else bool(int(value))
