"""`maskformer convert`: a checkpoint of the authors into a directory for `from_pretrained`, or back."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import tyro


def run(
    src: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")],
    dst: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DST")],
    attention_heads: int = 8,
    zoo: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> int:
    """Convert a checkpoint of the authors into a directory that loads here and in transformers, or back.

    The architecture is read from the shapes of the weights. Files are read without running anything they contain.

    Args:
        src: the authors' .pkl or .pth file; or, to write their layout, a checkpoint directory or hub id.
        dst: a directory that is missing or empty; or, to write their layout, a new file ending in .pkl.
        attention_heads: heads of the transformer's attention, the one number that the shapes do not tell.
        zoo: the published model (see `maskformer zoo`) whose image sizes and stuff classes to use, if it is not
            recognised by its architecture.
        as_json: print what was converted as JSON.
    """
    from maskformer.checkpoints.conversion import convert_original, export_original
    from maskformer.cli import UsageError

    if dst.suffix == ".pkl":
        if Path(src).suffix in (".pkl", ".pth"):
            raise UsageError(f"{src} is in the authors' layout already: give a directory as DST to convert it")
        print(f"reading {src}", file=sys.stderr)
        result = export_original(src, dst)
    else:
        if Path(src).is_dir():
            raise UsageError(f"{src} is a directory: to write the authors' layout, DST must end in .pkl")
        print(f"reading {src}", file=sys.stderr)
        result = convert_original(src, dst, attention_heads=attention_heads, zoo_name=zoo)
    if as_json:
        import json

        print(json.dumps(dataclasses.asdict(result)))
        return 0
    recognised = f", settings of {result.zoo_name}" if result.zoo_name else ""
    print(
        f"{result.path}: {result.architecture}, {result.backbone} backbone, {result.num_labels} classes, "
        f"{result.num_parameters / 1e6:.1f} M parameters{recognised}"
    )
    return 0
