"""Every public name says what it is, whence it comes and what it refuses, and shows by an example how it is used."""

import doctest
import importlib
import inspect
import os
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import maskformer

from .raised import functions_of, raised_by

pytestmark = pytest.mark.docs

DOCS = Path(__file__).parent.parent.parent / "docs"
PAGES = sorted((DOCS / "api").glob("*.md"))
# The reference is the list of public names; test_all_names_have_a_page holds it to `__all__`.
SHOWN = [name for page in PAGES for name in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE)]
# What the processor is made of: the page itself has the source and an example, which test_pages runs.
NAMES = [name for name in SHOWN if not re.match(r"maskformer\.processing\.(postprocessing|settings)\.", name)]


def resolve(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def test_all_names_have_a_page() -> None:
    losses = importlib.import_module("maskformer.losses")
    wanted = {f"maskformer.{name}" for name in maskformer.__all__ if name != "__version__"}
    wanted |= {f"maskformer.losses.{name}" for name in losses.__all__}
    assert wanted - {"maskformer.Segmenter"} <= set(NAMES)
    assert "maskformer.inference.Segmenter" in NAMES


def test_every_field_of_the_configuration_is_explained() -> None:
    explained = re.findall(
        r"^        (\w+): \S", maskformer.MaskFormerConfig.__doc__.partition("Args:")[2], re.MULTILINE
    )
    fields = [name for name in inspect.signature(maskformer.MaskFormerConfig.__init__).parameters if name != "self"]
    assert [*explained[: len(fields) - 1], "kwargs"] == fields


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


@pytest.mark.parametrize("name", NAMES)
def test_source_is_named(name: str) -> None:
    """Where a name comes from: a section of a paper, or of a page of ours that is there."""
    found = re.search(r"^\s*Source: (.+)\.$", resolve(name).__doc__, re.MULTILINE)
    assert found, f"{name} does not say where it comes from"
    sources = found[1].split("; ")
    for source in sources:
        page, _, anchor = source.partition("#")
        if page.startswith("docs/"):
            headings = re.findall(r"^#+ (.+)$", (DOCS.parent / page).read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}
            assert not anchor or anchor in anchors, source
    paper = r"arXiv \d{4}\.\d{5}, (sections?|tables?) [\d.]+"
    assert any(source.startswith("docs/") or re.search(paper, source) for source in sources), found[0]


@pytest.mark.parametrize("name", NAMES)
def test_errors_are_said(name: str) -> None:
    """What it raises, of its own or by what it calls in this package; or that it raises nothing."""
    value = resolve(name)
    functions = list(functions_of(value))
    text = "\n".join(inspect.getdoc(each) or "" for each in (value, *(function for function, _ in functions)))
    raised = set().union(*(raised_by(function, owner, set()) for function, owner in functions))
    raised -= {"OSError", "AttributeError"}  # ours to turn into a ValueError on the way
    if name in ("maskformer.training.trainer.train", "maskformer.checkpoints.conversion.convert_original"):
        raised -= {"TypeError"}  # the processor's, for names of options that these do not make up
    assert "Raises" in text, f"{name} does not say what it raises"
    assert sorted(kind for kind in raised if kind not in text) == [], f"{name} raises what it does not say"
    assert not raised or "Raises:\n    Nothing" not in text, f"{name} says it raises nothing"
