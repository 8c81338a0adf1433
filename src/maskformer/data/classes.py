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
from typing import Any, NamedTuple, TypeAlias

from maskformer.data.sample import IGNORED, UNKNOWN, Region

CLASS_FILES = ("classes.txt", "classes.json", "id2label.json")
_IGNORED_NAMES = {"ignore", "ignored", "void", "unlabeled", "unlabelled"}
_Entry: TypeAlias = "tuple[int, str, bool, tuple[int, int, int] | None]"  # value, name, isthing, colour
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
        entries = _json_entries(json.loads(text)) if path.suffix == ".json" else _text_entries(text)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read as a class list ({error}): see the forms it can have") from error
    void = {value for value, name, *_ in entries if name.strip().lower() in _IGNORED_NAMES}
    kept = as_categories(entry for entry in entries if entry[0] not in void)
    values = [value for value, *_ in entries]
    if not kept or len(set(values)) < len(values):
        fault = f"value {max(values, key=values.count)} twice" if kept else "no class"
        raise ValueError(f"{path} holds {fault}, expected each class of the annotation once")
    return ClassList(kept, frozenset(void | (set(ignored) - set(values))), str(path))


def packaged_classes(name: str) -> tuple[Category, ...]:
    """The classes of a benchmark whose publisher ships no list with it: "ade20k", "cityscapes" or "coco-stuff"."""
    table = json.loads(files("maskformer.data").joinpath("class_names.json").read_text(encoding="utf-8"))
    return as_categories(category_entry(entry) for entry in table[name])


def as_categories(entries: Iterable[_Entry]) -> tuple[Category, ...]:
    return tuple(Category(name, isthing, value, color) for value, name, isthing, color in entries)


def _text_entries(text: str) -> list[_Entry]:
    entries: list[_Entry] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        match = _LINE.fullmatch(line)
        assert match, "the pattern takes every line that is not empty"
        value, name, kind = match.groups()
        entries.append((len(entries) if value is None else int(value), name, kind == "thing", None))
    return entries


def _json_entries(content: Any) -> list[_Entry]:
    if isinstance(content, dict):
        return [(int(value), str(name), False, None) for value, name in content.items()]
    named = [entry if isinstance(entry, dict) else {"name": entry} for entry in content]
    return [category_entry(entry, place) for place, entry in enumerate(named)]


def category_entry(entry: dict[str, Any], place: int = 0, isthing: bool = False) -> _Entry:
    """Value, name, thing and colour of an object as COCO's `categories` has them."""
    color = tuple(entry["color"]) if entry.get("color") else None
    return int(entry.get("id", place)), str(entry["name"]), bool(entry.get("isthing", isthing)), color
