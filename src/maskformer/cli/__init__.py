"""The command line: finds the command, reads its arguments, turns errors into one sentence and an exit code.

Each command is a file of this folder with a class `Command`, whose fields are the options and whose `run` returns the
exit code. It is imported only when it is asked for, so that `--help` answers without loading torch.
Exit codes: 0 done, 1 failed, 2 bad usage, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import io
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from maskformer.explanations import pages, section_of

COMMANDS = {
    "demo": "segment drawn scenes with the bundled checkpoint; no download",
    "predict": "segment images with a checkpoint",
    "evaluate": "measure a checkpoint on annotated images: PQ, AP or mean IoU",
    "compare": "two checkpoints on the same images: logits, maps and metrics",
    "convert": "convert a checkpoint of the authors, or back into their layout",
    "train": "train on your own images, or by a published recipe",
    "export": "write a checkpoint as an ONNX file or a torch program",
    "serve": "answer segmentation requests over HTTP, with a page to try it",
    "benchmark": "time and memory against transformers, on this machine",
    "data": "check annotations before training on them",
    "zoo": "list the 30 published models",
}

DONE, FAILED, BAD_USAGE, INTERRUPTED = 0, 1, 2, 130


class UsageError(ValueError):
    """The command was asked for something it cannot be asked for: exit code 2 instead of 1."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `maskformer`; returns the exit code.

    Args:
        argv: the words after `maskformer`; by default those of the process.
    """
    words, debug = _without_debug(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be of any bytes
    try:
        code = _dispatch(words)
        sys.stdout.flush()  # a reader that has left is noticed here, not when Python closes the stream
        return code
    except SystemExit as leaving:  # tyro's, after --help
        if leaving.code:
            raise
        return DONE
    except KeyboardInterrupt:
        return _report("interrupted", INTERRUPTED, debug)
    except BrokenPipeError:
        # The reader of our output has left (`| head`); what is still to be written goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        return _report(_sentence_of(error), BAD_USAGE if isinstance(error, UsageError) else FAILED, debug)


def _without_debug(argv: Sequence[str]) -> tuple[list[str], bool]:
    words = list(argv)
    ours = words.index("--") if "--" in words else len(words)
    kept = [word for word in words[:ours] if word != "--debug"]
    return kept + words[ours:], len(kept) < ours


def _dispatch(words: list[str]) -> int:
    if not words:
        print(_help(), file=sys.stderr)
        return BAD_USAGE
    first, *rest = words
    if first in ("-h", "--help"):
        print(_help())
        return DONE
    if first == "--version":
        from maskformer import __version__

        print(f"maskformer {__version__}")
        return DONE
    if first not in COMMANDS:
        close = difflib.get_close_matches(first, COMMANDS)
        hint = f"did you mean {' or '.join(close)}?" if close else f"the commands are {', '.join(COMMANDS)}"
        raise UsageError(f"there is no {'option' if first.startswith('-') else 'command'} {first!r}; {hint}")
    command = importlib.import_module(f"maskformer.cli.{first}").Command
    return _parsed(command, rest, f"maskformer {first}").run()


def _help() -> str:
    options = {
        "--help": "this text; `maskformer COMMAND --help` explains a command",
        "--version": "the version of the package",
        "--debug": "show the traceback of an error (anywhere on the line)",
    }
    lines = [[f"  {name:<11}{text}" for name, text in each.items()] for each in (COMMANDS, options)]
    commands, options = map("\n".join, lines)
    return f"""usage: maskformer COMMAND [OPTIONS]

Image segmentation by mask classification: semantic, instance and panoptic.

commands:
{commands}

options:
{options}

Messages lead to pages of docs/, which are in {pages()}"""


def _parsed(command: type[Any], words: list[str], prog: str) -> Any:
    """The command with the words as its options; a usage error of one sentence where tyro prints a panel."""
    import tyro

    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(command, args=words, prog=prog, config=(tyro.conf.FlagCreatePairsOff,))
    except SystemExit as leaving:
        if not leaving.code:
            raise
        raise UsageError(f"{_flattened(complaint.getvalue())}; `{prog} --help` explains the options") from None


def _flattened(panel: str) -> str:
    """The text of tyro's framed message as one line, without its title, its explanations and what follows its rule.

    The frame is of box characters or, where the terminal has none, of spaces and dashes.
    """
    text: list[str] = []
    margin = 0
    for line in panel.splitlines()[1:]:
        content = line.strip("│")
        words = content.strip()
        indent = len(content) - len(content.lstrip())
        if words and not words.strip("─-"):  # a rule: the first one may only part the title
            if text:
                break
        elif not text:
            text, margin = [words], indent
        elif indent <= margin + 4:  # what an option means stands further in than its name
            text.append(words)
    return " ".join(" ".join(text).split()).rstrip(".") or "the arguments cannot be read"


def _sentence_of(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, UsageError | ImportError | OSError):
        return str(error)
    if isinstance(error, ValueError | FloatingPointError):
        section = section_of(error)
        return f"{error} (explained in {section})" if section else str(error)
    return f"{type(error).__name__}: {error} (not expected here; --debug shows where it happened)"


def _report(sentence: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    tell(sentence.strip() or "failed without a message")
    return code


def tell(sentence: str) -> None:
    """The sentence on stderr, in one line."""
    print(f"maskformer: {' '.join(sentence.split())}", file=sys.stderr, flush=True)
