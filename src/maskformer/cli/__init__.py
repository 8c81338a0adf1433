"""The command line: finds the command, reads its arguments, turns errors into one sentence and an exit code.

Each command is a file of this folder with a function `run`, whose keyword arguments are the options and which returns
the exit code. It is imported only when it is asked for, so that `--help` answers without loading torch.
Exit codes: 0 done, 1 failed, 2 bad usage, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from maskformer.explanations import section_of

COMMANDS = {
    "demo": ("maskformer.cli.demo", "segment drawn scenes with the bundled checkpoint; no download"),
    "predict": ("maskformer.cli.predict", "segment images with a checkpoint"),
    "evaluate": ("maskformer.cli.evaluate", "measure a checkpoint on annotated images: PQ, AP or mean IoU"),
    "compare": ("maskformer.cli.compare", "two checkpoints on the same images: logits, maps and metrics"),
    "convert": ("maskformer.cli.convert", "convert a checkpoint of the authors, or back into their layout"),
    "train": ("maskformer.cli.train", "train on your own images, or by a published recipe"),
    "export": ("maskformer.cli.export", "write a checkpoint as an ONNX file or a torch program"),
    "serve": ("maskformer.cli.serve", "answer segmentation requests over HTTP, with a page to try it"),
    "benchmark": ("maskformer.cli.benchmark", "time and memory against transformers, on this machine"),
    "data": ("maskformer.cli.data", "check annotations before training on them"),
    "zoo": ("maskformer.cli.zoo", "list the 30 published models"),
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
    try:
        code = _dispatch(words)
        sys.stdout.flush()  # a reader that has left is noticed here, not when Python closes the stream
        return code
    except SystemExit as leaving:  # how tyro ends after --help or a wrong option
        return _exit_code(leaving)
    except KeyboardInterrupt:
        return _report("interrupted", INTERRUPTED, debug)
    except BrokenPipeError:
        # The reader of our output has left (`| head`); what is still to be written goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except UsageError as error:
        return _report(str(error), BAD_USAGE, debug)
    except ImportError as error:
        return _report(str(error), FAILED, debug)
    except (ValueError, FloatingPointError) as error:
        section = section_of(error)
        return _report(f"{error} (explained in {section})" if section else str(error), FAILED, debug)
    except OSError as error:
        return _report(_sentence_of(error), FAILED, debug)
    except Exception as error:
        kind = type(error).__name__
        return _report(f"{kind}: {error} (not expected here; --debug shows where it happened)", FAILED, debug)


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
    module = importlib.import_module(COMMANDS[first][0])
    return _call(module.run, rest, f"maskformer {first}")


def _help() -> str:
    width = max(map(len, [*COMMANDS, "--version"])) + 2
    lines = [f"  {name:<{width}}{summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: maskformer COMMAND [OPTIONS]",
            "",
            "Image segmentation by mask classification: semantic, instance and panoptic.",
            "",
            "commands:",
            *lines,
            "",
            "options:",
            f"  {'--help':<{width}}this text; `maskformer COMMAND --help` explains a command",
            f"  {'--version':<{width}}the version of the package",
            f"  {'--debug':<{width}}show the traceback of an error (anywhere on the line)",
        ]
    )


def _call(run: Callable[..., int], words: list[str], prog: str) -> int:
    import tyro

    # tyro calls what it has read the arguments for; bound like this, reading them and running stay two steps, and
    # what is printed while reading can be made into one sentence.
    @functools.wraps(run)
    def bind(*args: Any, **kwargs: Any) -> Callable[[], int]:
        return functools.partial(run, *args, **kwargs)

    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            bound: Any = tyro.cli(bind, args=words, prog=prog, config=(tyro.conf.FlagCreatePairsOff,))
    except SystemExit as leaving:
        if _exit_code(leaving) == DONE:
            raise
        raise UsageError(f"{_flattened(complaint.getvalue())}; `{prog} --help` explains the options") from None
    return int(bound())


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


def _exit_code(leaving: SystemExit) -> int:
    if leaving.code is None:
        return DONE
    return leaving.code if isinstance(leaving.code, int) else BAD_USAGE


def _sentence_of(error: OSError) -> str:
    if error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _report(sentence: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"maskformer: {' '.join(sentence.split()) or 'failed without a message'}", file=sys.stderr)
    return code
