"""Every public name says what it is and shows how it is used, by an example that runs."""

import doctest
import importlib
import os
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import maskformer

pytestmark = pytest.mark.docs

PAGES = sorted((Path(__file__).parent.parent.parent / "docs" / "api").glob("*.md"))
# The reference is the list of public names; test_all_names_have_a_page holds it to `__all__`.
NAMES = [name for page in PAGES for name in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE)]


def resolve(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def test_all_names_have_a_page() -> None:
    losses = importlib.import_module("maskformer.losses")
    wanted = {f"maskformer.{name}" for name in maskformer.__all__ if name != "__version__"}
    wanted |= {f"maskformer.losses.{name}" for name in losses.__all__}
    assert wanted - {"maskformer.Segmenter"} <= set(NAMES)
    assert "maskformer.inference.Segmenter" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_example_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    value = resolve(name)
    assert value.__doc__, f"{name} has no docstring"
    monkeypatch.chdir(tmp_path)
    # What stands at the head of every script is not repeated in the examples.
    names = {**vars(importlib.import_module(value.__module__)), "torch": torch, "nn": torch.nn, "np": np, "Path": Path}
    examples = doctest.DocTestParser().get_doctest(value.__doc__, names, name, None, None)
    assert examples.examples, f"{name} shows no example"
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runner.run(examples, out=said.append)
    assert not runner.failures, "".join(said)
    assert os.getcwd() == str(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_numbers_have_shapes_or_units(name: str) -> None:
    """A docstring that speaks of tensors, sizes or shares says their shape, unit or range."""
    value = resolve(name)
    text = (value.__doc__ or "") + (getattr(value, "forward", None).__doc__ or "" if isinstance(value, type) else "")
    if re.search(r"\b(tensors?|logits|masks?|maps?|pixels?|sizes?)\b", text):
        units = r"\[[A-Z0-9, *+a-z]+\]|pixels|height|\bH W\b|\(H, W\)|percent|0 to|between 0 and 1|0-d"
        assert re.search(units, text), name
