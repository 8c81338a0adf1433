"""`maskformer serve`: what keeps it from starting is said in one sentence. That it serves: tests/serving."""

import socket
import subprocess
import sys

import pytest

from maskformer.cli import main, serve


@pytest.fixture(autouse=True)
def without_a_token(monkeypatch) -> None:
    monkeypatch.delenv("MASKFORMER_TOKEN", raising=False)


def refused(capsys, *words) -> tuple[int, str]:
    code = main(["serve", *words])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return code, captured.err.removeprefix("maskformer: ").strip()


def test_what_it_cannot_be_asked_for(capsys) -> None:
    code, sentence = refused(capsys)
    assert code == 2
    assert sentence.startswith("serve needs --model: ")
    assert refused(capsys, "--model", "scenes", "--max-batch", "0") == (2, "--max-batch is 0, expected more than 0")
    assert refused(capsys, "--model", "scenes", "--timeout", "nan") == (2, "--timeout is nan, expected more than 0")
    code, sentence = refused(capsys, "--model", "scenes", "--task", "everything")
    assert code == 2


def test_a_port_in_use(capsys) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, sentence = refused(capsys, "--model", "scenes", "--port", port, "--no-page")
    assert code == 1
    assert sentence == (
        f"cannot listen on 127.0.0.1 port {port} (Address already in use): choose another --port or --host"
        " (explained in docs/deployment.md)"
    )
    assert refused(capsys, "--model", "scenes", "--port", "99999") == (2, "--port is 99999, expected 0 to 65535")
    assert refused(capsys, "--model", "scenes", "--host", "256.0.0.1", "--no-page")[0] == 1


def test_no_such_model(capsys, tmp_path) -> None:
    code, sentence = refused(capsys, "--model", str(tmp_path / "nothing"), "--port", "0", "--no-page")
    assert code == 1
    assert "nothing" in sentence


def test_a_missing_extra(capsys, monkeypatch) -> None:
    for module in [name for name in sys.modules if name.startswith("maskformer.serving")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "gradio", None)
    words = ["--model", "scenes", "--port", "0"]
    assert refused(capsys, *words) == (1, "serve needs gradio: pip install 'maskformer[serve]'")
    monkeypatch.setitem(sys.modules, "fastapi", None)
    for module in [name for name in sys.modules if name.startswith("maskformer.serving")]:
        monkeypatch.delitem(sys.modules, module)
    code, sentence = refused(capsys, *words)
    assert (code, sentence) == (1, "serve needs fastapi: pip install 'maskformer[serve]'")


def test_tokens_that_would_let_everybody_in(capsys, tmp_path, monkeypatch) -> None:
    file = tmp_path / "token"
    file.write_text("\n")
    words = ["--model", "scenes", "--port", "0", "--no-page"]
    code, sentence = refused(capsys, *words, "--token-file", str(file))
    assert code == 1
    assert sentence.startswith(f"the token in {file} is empty: put one there, or leave the option out")
    monkeypatch.setenv("MASKFORMER_TOKEN", "")
    assert refused(capsys, *words)[0] == 1
    assert refused(capsys, *words, "--token-file", str(tmp_path / "none"))[0] == 1


def test_a_line_break_is_no_part_of_a_token(tmp_path, monkeypatch) -> None:
    file = tmp_path / "token"
    file.write_text("sesame\nand nothing of this\n")
    assert serve._token(file) == "sesame"
    assert serve._token(None) is None
    monkeypatch.setenv("MASKFORMER_TOKEN", "sesame\n")
    assert serve._token(None) == "sesame"


def test_help_without_torch() -> None:
    script = "import sys; from maskformer.cli import main; main(['serve', '--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0
    assert "--max-batch INT" in done.stdout
    assert "--max-delay-ms FLOAT" in done.stdout
