"""Write the table of all settings of a training into the reference: `python docs/figures/settings.py`."""

from __future__ import annotations

from pathlib import Path

from maskformer.cli.train import metavar
from maskformer.training.config import TrainingConfig
from maskformer.training.recipes import small

PAGE = Path(__file__).parent.parent / "api" / "training.md"
START, END = "<!-- settings -->\n", "<!-- /settings -->\n"


def table() -> str:
    lines = ["| setting | values | by default | what it is |", "|---|---|---|---|"]
    recipe = small()
    for name, field in TrainingConfig.model_fields.items():
        default = None if field.is_required() else recipe.get(name, field.default)
        values = metavar(field.annotation).replace("|", ", ")
        shown = "required" if field.is_required() else "" if default is None else f"`{default}`"
        lines.append(f"| `{name}` | {values} | {shown} | {field.description} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    PAGE.write_text(f"{before}{START}{table()}{END}{rest.partition(END)[2]}", encoding="utf-8")
