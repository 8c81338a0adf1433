"""Run the notebooks' sources and write them with their outputs, each in a folder of its own: `make notebooks`.

python docs/figures/notebooks.py [NAME ...]
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

SOURCES = Path(__file__).parent.parent / "notebooks"


def main(names: list[str]) -> None:
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where `maskformer` is
    # Commands believe in a terminal, and would move its cursor.
    os.environ |= {"TTY_COMPATIBLE": "0", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    for source in sorted(SOURCES.glob("*.py")):
        if names and source.stem not in names:
            continue
        notebook = jupytext.read(source)
        with tempfile.TemporaryDirectory() as folder:
            NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": folder}}).execute()
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)  # when it ran, which would change every time
            if "outputs" in cell:
                cell.outputs = joined(output for output in cell.outputs if output.get("name") != "stderr")  # progress
        nbformat.write(notebook, source.with_suffix(".ipynb"))
        print(source.with_suffix(".ipynb").name)


def joined(outputs: Iterable[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """One output where a command's lines came in pieces."""
    kept: list[nbformat.NotebookNode] = []
    for output in outputs:
        if kept and output.get("name") == "stdout" == kept[-1].get("name"):
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept


if __name__ == "__main__":
    main(sys.argv[1:])
