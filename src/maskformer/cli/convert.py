"""`maskformer convert`: a checkpoint of the authors into a directory for `from_pretrained`, or back."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated

import tyro

from maskformer.cli import UsageError, options


@dataclasses.dataclass(frozen=True)
class Command:
    """Convert a checkpoint of the authors into a directory that loads here and in transformers, or back.

    The architecture is read from the shapes of the weights. Files are read without running anything they contain.
    """

    src: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")]
    """the authors' .pkl or .pth file; or, to write their layout, a checkpoint directory or hub id."""
    dst: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """a directory that is missing or empty; or, to write their layout, a new file ending in .pkl."""
    attention_heads: int = 8
    """heads of the transformer's attention, the one number that the shapes do not tell."""
    zoo: options.Name = None
    """the published model whose sizes and stuff classes to use; by default the one of this architecture."""
    as_json: options.Json = False
    """print what was converted as JSON."""

    def run(self) -> int:
        from maskformer.checkpoints.conversion import convert_original, export_original

        back = self.dst.suffix == ".pkl"
        if back and Path(self.src).suffix in (".pkl", ".pth"):
            raise UsageError(f"{self.src} is in the authors' layout already: give a directory as DST to convert it")
        if not back and Path(self.src).is_dir():
            raise UsageError(f"{self.src} is a directory: to write the authors' layout, DST must end in .pkl")
        if back and (self.zoo or self.attention_heads != 8):
            raise UsageError("--zoo and --attention-heads are about reading the authors' layout: leave them out")
        print(f"reading {self.src}", file=sys.stderr)
        if back:
            result = export_original(self.src, self.dst)
        else:
            result = convert_original(self.src, self.dst, attention_heads=self.attention_heads, zoo_name=self.zoo)
        if self.as_json:
            print(json.dumps(dataclasses.asdict(result)))
            return 0
        recognised = f", settings of {result.zoo_name}" if result.zoo_name else ""
        print(
            f"{result.path}: {result.architecture}, {result.backbone} backbone, {result.num_labels} classes, "
            f"{result.num_parameters / 1e6:.1f} M parameters{recognised}"
        )
        return 0
