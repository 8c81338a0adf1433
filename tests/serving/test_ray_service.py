"""`maskformer serve --engine ray`: the same answers as one process, from replicas on two machines."""

import contextlib
import json
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from types import SimpleNamespace

import pytest

from maskformer.cli import main
from maskformer.cli.serve import Command
from maskformer.data.scenes import draw_scene
from maskformer.serving.ray_service import NAME, _reason
from tests.serving.conftest import png_of
from tests.serving.live import form, live
from tests.serving.ray_cluster import one_thread, two_nodes


@pytest.mark.parametrize("words", [["--workers", "2"], ["--workers", "0", "--engine", "ray"]])
def test_workers_are_of_ray_and_not_none(capsys, words) -> None:
    assert main(["serve", "--model", "scenes", *words]) == 2
    assert "expected at least 1 and --engine ray" in capsys.readouterr().err


def test_without_ray_one_sentence_says_what_to_install(capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["serve", "--model", "scenes", "--port", "0", "--engine", "ray"]) == 1
    assert capsys.readouterr().err == "maskformer: --engine ray needs ray: pip install 'maskformer[ray]'\n"


def test_an_address_that_cannot_be_had_is_told_before_ray_starts(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match="cannot listen on 256"):
        Command("scenes", host="256.0.0.1", engine="ray").run()


def test_the_reason_of_a_replica_that_did_not_start() -> None:
    message = "The deployment failed.\nTraceback\nOSError: not there\n\nValueError: no such checkpoint\n"
    applications = {NAME: SimpleNamespace(deployments={NAME: SimpleNamespace(message=message)})}
    assert _reason(SimpleNamespace(status=lambda: SimpleNamespace(applications=applications))) == "no such checkpoint"


@pytest.mark.slow
def test_replicas_answer_as_the_segmenter_and_one_may_die(segmenter, scenes, tmp_path, monkeypatch) -> None:
    with one_thread():
        expected = [segmenter.predict(scene)[0].to_dict(rle=True) for scene in scenes]
    with two_nodes() as nodes:
        for name, value in nodes.environment.items():
            monkeypatch.setenv(name, value)
        with live("--engine", "ray", "--device", "cpu") as service:

            def answer(scene: bytes) -> tuple[int, str]:
                with contextlib.closing(service.connection()) as connection:
                    connection.request("POST", "/v1/segment", *form(scene))
                    reply = connection.getresponse()
                    return reply.status, reply.read().decode()

            def answers() -> list[tuple[int, str]]:
                return [answer(scene) for scene in scenes]

            pids = [replica_of(nodes, raylet) for raylet in (nodes.head_pid, nodes.second_pid)]
            assert all(pids)  # one on each node
            for _ in range(4):
                assert [(status, json.loads(body)) for status, body in answers()] == [(200, each) for each in expected]
            assert json.loads(service.get("/v1/model")[1])["name"] == "scenes"
            assert service.get("/healthz")[0] == service.get("/openapi.json")[0] == 200
            os.kill(pids[1], signal.SIGKILL)
            deadline = time.monotonic() + 90
            while replica_of(nodes, nodes.second_pid) in (None, pids[1]) and time.monotonic() < deadline:
                # What the dead one had inside is answered 5xx; nothing is answered wrongly.
                for (status, body), each in zip(answers(), expected, strict=True):
                    assert status >= 500 or (status, json.loads(body)) == (200, each)
                time.sleep(0.2)
            assert replica_of(nodes, nodes.second_pid) not in (None, pids[1])  # started again
            assert [status for status, _ in answers()] == [200] * len(scenes)
            large = png_of(draw_scene(3, (480, 640)).image)
            with ThreadPoolExecutor(20) as clients:
                inside = [clients.submit(answer, large) for _ in range(20)]
                next(as_completed(inside)).result()
                assert service.stop() == 0
            assert [each.result()[0] for each in inside] == [200] * 20  # those inside were answered first


def replica_of(nodes, raylet: int) -> int | None:
    return next(iter(nodes.workers("ServeReplica", raylet)), None)
