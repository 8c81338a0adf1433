"""The clients of examples/serving against a running service, with its token; and what the unit and the image start."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from maskformer.cli import main

from .live import live

EXAMPLES = Path(__file__).parents[2] / "examples" / "serving"


@pytest.mark.slow
def test_clients(scenes, tmp_path) -> None:
    (tmp_path / "token").write_text("sesame\n")
    (tmp_path / "scene.png").write_bytes(scenes[0])
    environment = {**os.environ, "MASKFORMER_TOKEN": "sesame"}
    with live("--token-file", str(tmp_path / "token")) as service:
        address = f"http://127.0.0.1:{service.port}"

        def asked(*command, env=environment):
            return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)

        client = [sys.executable, str(EXAMPLES / "client.py"), "scene.png", "--address", address]
        listed = asked(*client, "--task", "panoptic")
        assert listed.returncode == 0, listed.stderr
        assert all(re.fullmatch(r"scene.png\t\w+\t[01]\.\d\d\t\d+", line) for line in listed.stdout.splitlines())
        assert asked(*client, "--overlay", "drawn").returncode == 0
        assert (tmp_path / "drawn" / "scene.png").read_bytes().startswith(b"\x89PNG")
        stranger = asked(*client, env={**environment, "MASKFORMER_TOKEN": "sesamf"})
        assert stranger.returncode == 1
        assert "this service wants Authorization" in stranger.stderr
        assert service.get("/config")[0] == 401  # the page wants the token too
        if shutil.which("curl"):
            shell = asked("sh", str(EXAMPLES / "curl.sh"), "scene.png", address)
            assert shell.returncode == 0, shell.stderr
            tasks = [json.loads(line)["task"] for line in shell.stdout.splitlines() if line]
            assert tasks == ["panoptic", "instance"]
            assert (tmp_path / "overlay.png").read_bytes().startswith(b"\x89PNG")
        assert service.stop() == 0


def test_the_unit_and_the_image_start_what_there_is(capsys) -> None:
    unit = re.search(r"^ExecStart=\S+/maskformer serve (.*)$", (EXAMPLES / "maskformer.service").read_text(), re.M)
    image = (EXAMPLES / "Dockerfile").read_text()
    entry, words = (re.search(rf"^{name} (\[.*\])$", image, re.M) for name in ("ENTRYPOINT", "CMD"))
    assert unit
    assert entry
    assert words
    started = [unit[1].split(), [*json.loads(entry[1])[2:], *json.loads(words[1])]]
    assert main(["serve", "--help"]) == 0
    known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    for command in started:
        assert command[command.index("--model") + 1] == "scenes"
        assert {word for word in command if word.startswith("--")} <= known
