"""`maskformer train`: from annotated images to a checkpoint, by a recipe, a YAML file and options."""

from __future__ import annotations

import json
import os
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import tyro

from maskformer.cli import INTERRUPTED, UsageError, options
from maskformer.training.config import TrainingConfig, build_config, read_settings
from maskformer.training.recipes import resolve, small


def metavar(annotation: Any) -> str:
    """What the help shows for a value of that type."""
    parts = [part for part in typing.get_args(annotation) if part is not types.NoneType]
    origin = typing.get_origin(annotation)
    if origin is Literal:
        return "|".join(map(str, typing.get_args(annotation)))
    if origin in (typing.Union, types.UnionType):
        return metavar(parts[0])
    if origin is list:
        return f"{metavar(parts[0])} ..."
    if origin is tuple:
        return "HEIGHT WIDTH"
    return {int: "N", float: "X", bool: "True|False", Path: "DIR", str: "NAME"}[annotation]


def _options() -> type[pydantic.BaseModel]:
    """Every setting as an option that may be left out, which the recipe then decides."""
    fields: dict[str, Any] = {}
    recipe = small()  # that of who names none
    for name, field in TrainingConfig.model_fields.items():
        default = None if field.is_required() else recipe.get(name, field.default)
        hint = "" if default is None else f"(default: {default})"
        shown = tyro.conf.arg(metavar=metavar(field.annotation), help_behavior_hint=hint, help=field.description)
        fields[name] = (Annotated[field.annotation | None, shown], None)  # pyright: ignore[reportOptionalOperand]
    return pydantic.create_model("Options", **fields)


_Options = _options()


@dataclass(frozen=True)
class Command:
    """Train on annotated images: the data is checked, then trained on by a recipe, and OUT/model is what to use.

    The defaults are those of the recipe "small"; `--print-config` shows what a recipe, a file and options come to.
    Start it with torchrun to use several processes. SIGTERM and Ctrl-C save before they end it.
    """

    settings: Annotated[_Options, tyro.conf.arg(name="")]  # pyright: ignore[reportInvalidTypeForm]
    config: options.File = None
    """YAML file of settings; options win over it."""
    resume: bool = False
    """go on with the run of OUT from its latest checkpoint, with its settings."""
    print_config: bool = False
    """print all settings as YAML and do nothing."""
    as_json: options.Json = False
    """print one JSON object about the result."""

    def run(self) -> int:
        chosen = self._chosen()
        if self.print_config:
            print(chosen.to_yaml(), end="")
            return 0
        from maskformer.training.trainer import train

        outcome = train(chosen, self.resume)
        if os.environ.get("RANK", "0") == "0":
            if self.as_json:
                fields = {name: getattr(outcome, name) for name in ("step", "steps", "metrics", "skipped")}
                print(json.dumps({**fields, "model": outcome.model and str(outcome.model)}))
            elif outcome.model:
                print(outcome.model)
        return 0 if outcome.model else INTERRUPTED

    def _chosen(self) -> TrainingConfig:
        given = {name: value for name, value in self.settings.model_dump().items() if value is not None}
        if self.resume:
            if "out" not in given:
                raise UsageError("--resume needs --out DIR, the directory of the run")
            saved = given["out"] / "config.yaml"
            if not saved.is_file():
                raise ValueError(f"{given['out']} holds no run to resume: start it without --resume")
            return build_config(
                {**read_settings(saved), **(read_settings(self.config) if self.config else {}), **given}
            )
        if self.config is None and "recipe" not in given and not self.print_config:
            missing = [name for name in ("data", "out") if name not in given]
            if missing:
                raise UsageError(f"train needs --{missing[0]} DIR; see `maskformer train --help`")
        return resolve(given, self.config, {"data": "DIR", "out": Path("RUN")} if self.print_config else {})
