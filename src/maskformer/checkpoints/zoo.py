"""The 30 models the authors published (paper tables 1 to 5), with every setting of training and test.

The list is data, `zoo.json` beside this file. Reading it needs neither torch nor transformers.
"""

from __future__ import annotations

import functools
import json
from importlib import resources
from typing import Any

ZooEntry = dict[str, Any]


@functools.cache
def _entries() -> tuple[ZooEntry, ...]:
    return tuple(json.loads(resources.files("maskformer.checkpoints").joinpath("zoo.json").read_text(encoding="utf-8")))


def list_zoo() -> list[ZooEntry]:
    """The published models in the order of the authors' configuration files.

    Each entry has `name` (ours, unique), `original_config` (the authors' file), `parameters` (trainable ones, to the
    thousand), `hub_id` (where a converted checkpoint is published, or None), `stuff_class_ids` (panoptic models) and
    the settings: sizes in pixels, learning rates, thresholds, published results in percent.

    Source: arXiv 2107.06278, tables 1 to 3, and the authors' configuration files.

    Raises:
        Nothing: the table comes with the package.

    Examples:
        >>> len(list_zoo()), list_zoo()[0]["name"]
        (30, 'r101-ade20k-150-panoptic')
    """
    return [dict(entry) for entry in _entries()]


def find_in_zoo(name: str) -> ZooEntry | None:
    """The entry called `name`, which may be a zoo name or the authors' configuration path; None when there is none.

    Source: arXiv 2107.06278, tables 1 to 3, and the authors' configuration files.

    Raises:
        Nothing: an unknown name gives None.

    Examples:
        >>> find_in_zoo("swin-tiny-ade20k-150")["crop_train"]
        [512, 512]
        >>> find_in_zoo("none of these") is None
        True
    """
    return next((dict(entry) for entry in _entries() if name in (entry["name"], entry["original_config"])), None)
