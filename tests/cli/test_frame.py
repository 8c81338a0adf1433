"""The frame of the command line: finding commands, exit codes, one sentence an error, and quick help."""

import os
import resource
import subprocess
import sys
import types
from dataclasses import dataclass

import pytest

import maskformer
from maskformer import cli
from maskformer.cli import BAD_USAGE, COMMANDS, DONE, FAILED, INTERRUPTED, UsageError, main

HEAVY = ("torch", "transformers", "numpy", "scipy", "PIL")


@dataclass
class Work:
    """Work."""

    size: int = 3
    """how large, in pixels."""
    verbose: bool = False
    """say more."""

    def run(self) -> int:
        print(self.size, self.verbose)
        return 0


@dataclass
class Sized:
    """Work on something."""

    size: int


def command(monkeypatch, Command):
    """Makes the class the command `work`."""
    module = types.ModuleType("maskformer.cli.work")
    module.Command = Command
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(cli.COMMANDS, "work", "a command of the tests")


def raising(error):
    def run(self) -> int:
        raise error

    return dataclass(type("Raising", (), {"run": run}))


def python(*words):
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=60)


def test_no_command_is_bad_usage_and_shows_what_there_is(capsys):
    assert main([]) == BAD_USAGE

    shown = capsys.readouterr()
    assert shown.out == ""
    assert all(name in shown.err for name in COMMANDS)


def test_help_lists_every_command_on_stdout(capsys):
    assert main(["--help"]) == DONE

    shown = capsys.readouterr()
    assert all(f"  {name} " in shown.out and summary in shown.out for name, summary in COMMANDS.items())
    assert shown.err == ""


def test_version(capsys):
    assert main(["--version"]) == DONE
    assert capsys.readouterr().out == f"maskformer {maskformer.__version__}\n"


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("zo", "there is no command 'zo'; did you mean zoo?"),
        ("convrt", "there is no command 'convrt'; did you mean convert?"),
        ("fly", "there is no command 'fly'; the commands are "),
        ("--loud", "there is no option '--loud'; "),
    ],
)
def test_unknown_commands_get_a_hint(capsys, word, sentence):
    assert main([word]) == BAD_USAGE

    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"maskformer: {sentence}")
    assert shown.err.count("\n") == 1


@pytest.mark.parametrize("code", [DONE, FAILED, 7])
def test_exit_code_is_what_the_command_returns(monkeypatch, code):
    command(monkeypatch, dataclass(type("Coded", (), {"run": lambda self: code})))

    assert main(["work"]) == code


def test_options_are_fields(monkeypatch, capsys):
    command(monkeypatch, Work)

    assert main(["work", "--size", "5", "--verbose"]) == DONE
    assert capsys.readouterr().out == "5 True\n"
    assert main(["work", "--help"]) == DONE
    assert "how large, in pixels" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--size", "5", "--colour", "red"], "Unrecognized options: --colour, red"),
        (["--size", "large"], "Error parsing --size: "),
        ([], "Missing from maskformer work: --size INT"),
    ],
)
def test_wrong_options_are_one_sentence(monkeypatch, capsys, words, sentence):
    command(monkeypatch, Sized)

    assert main(["work", *words]) == BAD_USAGE
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"maskformer: {sentence}")
    assert shown.err.endswith("`maskformer work --help` explains the options\n")
    assert shown.err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (ValueError("size is 3,\n  expected 4"), FAILED, "size is 3, expected 4"),
        (FloatingPointError("the loss is non-finite"), FAILED, "the loss is non-finite"),
        (UsageError("choose a model"), BAD_USAGE, "choose a model"),
        (FileNotFoundError(2, "No such file or directory", "cat.jpg"), FAILED, "cat.jpg: No such file or directory"),
        (OSError("disk full"), FAILED, "disk full"),
        (ImportError("accelerate is missing: pip install 'maskformer[train]'"), FAILED, "accelerate is missing: pip"),
        (KeyError("oops"), FAILED, "KeyError: 'oops' (not expected here; --debug shows where it happened)"),
        (ValueError(), FAILED, "failed without a message"),
        (KeyboardInterrupt(), INTERRUPTED, "interrupted"),
    ],
)
def test_errors_are_one_sentence_and_a_code(monkeypatch, capsys, error, code, sentence):
    command(monkeypatch, raising(error))

    assert main(["work"]) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"maskformer: {sentence}")
    assert shown.err.count("\n") == 1


@pytest.mark.parametrize("words", [["--debug", "work"], ["work", "--debug"]])
def test_debug_shows_the_traceback_wherever_it_stands(monkeypatch, capsys, words):
    command(monkeypatch, raising(ValueError("size is 3")))

    assert main(words) == FAILED
    shown = capsys.readouterr().err
    assert "Traceback (most recent call last)" in shown
    assert "raise error" in shown
    assert shown.endswith("maskformer: size is 3\n")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_sentence_does_not_depend_on_how_the_terminal_draws_frames(encoding):
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    finished = subprocess.run(
        [sys.executable, "-m", "maskformer", "convert"], capture_output=True, text=True, timeout=60, env=environment
    )

    assert finished.stderr == (
        "maskformer: Missing from maskformer convert: SRC DST; `maskformer convert --help` explains the options\n"
    )


def test_debug_after_two_dashes_belongs_to_the_command():
    assert cli._without_debug(["work", "--", "--debug"]) == (["work", "--", "--debug"], False)
    assert cli._without_debug(["--debug", "work", "--", "--debug"]) == (["work", "--", "--debug"], True)


def test_reader_that_leaves_is_no_traceback():
    reading = f"{sys.executable} -m maskformer zoo --json | head -n 1"

    finished = subprocess.run(["bash", "-c", reading], capture_output=True, text=True, timeout=60)

    assert finished.stdout == "[\n"
    assert finished.stderr == ""


def test_module_is_the_command_line():
    finished = python("-m", "maskformer", "nonsense")

    assert finished.returncode == BAD_USAGE
    assert finished.stderr.startswith("maskformer: there is no command 'nonsense'")


@pytest.mark.parametrize(
    "words", [[], *([name] for name in COMMANDS)], ids=lambda words: " ".join(words) or "maskformer"
)
def test_help_is_quick_and_loads_nothing_heavy(words):
    program = (
        "import sys; from maskformer.cli import main; code = main([*sys.argv[1:], '--help']); "
        f"print(*(name for name in {HEAVY} if name in sys.modules), file=sys.stderr); sys.exit(code)"
    )

    # Processor time, because time on the clock depends on what else the machine does; the best of three, because of
    # the disk.
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        finished = python("-c", program, *words)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert finished.returncode == DONE, finished.stderr
        assert finished.stderr.split() == []
    assert min(seconds) < 0.5
