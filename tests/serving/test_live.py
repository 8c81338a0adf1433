"""The command as a process: what hostile and crowded clients get, what its document promises, and how it leaves."""

import base64
import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from . import broken
from .live import Live, form, live

pytestmark = pytest.mark.slow
LOAD = Path(__file__).parents[2] / "benchmarks" / "serving_load.py"


@pytest.fixture(scope="module")
def service():
    with live("--no-page", "--timeout", "5", "--max-megabytes", "1", "--max-megapixels", "4") as running:
        yield running


def hostile(dice: random.Random, picture: bytes) -> tuple[bytes, dict[str, str]]:
    """A body that nobody should get a result for, and its headers."""
    json_kind = {"Content-Type": "application/json"}
    in_base64 = base64.b64encode(picture).decode()
    kinds = [
        lambda: form(picture[: dice.randrange(1, len(picture) - 60)]),
        lambda: form(dice.randbytes(dice.randrange(1, 3000))),
        lambda: form(picture[:40] + dice.randbytes(500)),
        lambda: form(broken.wide_header()),
        lambda: form(bomb),
        lambda: form(text_bomb),
        lambda: form(picture, {"threshold": dice.choice(["-1", "nan", "1e999", "", "a", "0x1", "1" * 5000])}),
        lambda: form(picture, {"task": dice.choice(["", "all", "panoptic ", "\0", "§" * 100])}),
        lambda: form(picture, {dice.choice(["Task", "device", "__class__", "image[]"]): "1"}),
        lambda: (form(picture)[0][: dice.randrange(0, 100)], form(picture)[1]),
        lambda: (form(picture)[0], {"Content-Type": f"multipart/form-data; boundary={dice.choice(['', 'q', 'é'])}"}),
        lambda: (picture, {"Content-Type": dice.choice(["image/png", "text/plain", "", "application/x", "json"])}),
        lambda: (json.dumps({"image": in_base64[: dice.randrange(1, 999)] + "*"}).encode(), json_kind),
        lambda: (json.dumps({"image": dice.choice([None, 1, [], {}, "", "data:,", "aGk="])}).encode(), json_kind),
        lambda: (
            json.dumps({"image": in_base64, "threshold": dice.choice(["1", 2, -1, [], True])}).encode(),
            json_kind,
        ),
        lambda: (b"[" * dice.randrange(1, 200_000), json_kind),
        lambda: (json.dumps({"image": "a" * 900_000, "x": list(range(9))}).encode(), json_kind),
        lambda: (dice.randbytes(dice.randrange(0, 2000)), json_kind),
        lambda: (json.dumps(list(range(dice.randrange(100_000)))).encode(), json_kind),
        lambda: (b"a" * 1_200_000, {"Content-Type": "application/octet-stream"}),
    ]
    bomb, text_bomb = BOMBS
    return dice.choice(kinds)()


BOMBS = broken.bomb(), broken.text_bomb()


def send(service: Live, connection, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
    connection.request("POST", "/v1/segment", body, headers)
    reply = connection.getresponse()
    return reply.status, reply.read()


def fuzz(service: Live, picture: bytes, seed: int, num: int, statuses: Counter[int]) -> list[str]:
    wrong: list[str] = []
    dice = random.Random(seed)
    for number in range(num):
        body, headers = hostile(dice, picture)
        with contextlib.closing(service.connection()) as connection:
            try:
                status, reply = send(service, connection, body, headers)
            except (BrokenPipeError, ConnectionResetError):
                # An answer before the body has been sent, to a client that sends on, can be lost.
                statuses[0] += 1
                if len(body) < 1_000_000:
                    wrong.append(f"{seed}/{number}: lost {len(body)} bytes")
                continue
        statuses[status] += 1
        sentence = json.loads(reply).get("detail") if reply.startswith(b"{") else reply.decode()
        if not 400 <= status < 500 or not isinstance(sentence, str) or len(sentence.split()) < 3:
            wrong.append(f"{seed}/{number}: {status} {reply[:200]!r} for {body[:60]!r} {headers}")
    return wrong


def test_hostile_requests(service, scenes) -> None:
    statuses: Counter[int] = Counter()
    assert fuzz(service, scenes[0], 0, 300, statuses) == []  # what caches and pools grow to
    before, found = service.memory(), []
    threads = [
        threading.Thread(target=lambda seed=seed: found.extend(fuzz(service, scenes[0], seed, 450, statuses)))
        for seed in range(1, 5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"\n{sum(statuses.values())} hostile requests: {dict(statuses)}, {before:.0f} -> {service.memory():.0f} MB")
    assert found == []
    assert sum(statuses.values()) >= 2_000
    assert statuses[0] < 100
    assert service.memory() - before < 60
    with contextlib.closing(service.connection()) as connection:
        assert send(service, connection, *form(scenes[0]))[0] == 200
    assert not [line for line in service.lines if "raceback" in line]


def test_slow_and_silent_clients_do_not_keep_others_out(service, scenes) -> None:
    held = []
    for number in range(70):  # six more than there is room for
        client = socket.create_connection(("127.0.0.1", service.port))
        if number % 2:
            client.sendall(b"POST /v1/segment HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")
        else:
            client.sendall(b"POST /v1/segment HT")  # has not asked for anything yet
        held.append(client)
    started = time.perf_counter()
    with contextlib.closing(service.connection()) as connection:
        assert send(service, connection, *form(scenes[0]))[0] == 200
    assert time.perf_counter() - started < 5
    held[1].settimeout(15)
    assert b" 408 " in held[1].recv(1000)
    for client in held:
        client.close()
    with contextlib.closing(socket.create_connection(("127.0.0.1", service.port))) as client:
        client.sendall(b"nonsense\r\n\r\n")
        assert b"400" in client.recv(1000)


def test_clients_that_leave_are_not_worked_for(service, scenes) -> None:
    body, headers = form(scenes[0])
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    request = f"POST /v1/segment HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n{lines}\r\n".encode() + body
    before = service.figure("maskformer_batch_pictures_sum")
    clients = [socket.create_connection(("127.0.0.1", service.port)) for _ in range(50)]
    for client in clients:
        client.sendall(request)
    for client in clients:
        client.close()
    deadline = time.perf_counter() + 20
    while service.figure("maskformer_waiting_requests") and time.perf_counter() < deadline:
        time.sleep(0.1)
    assert service.figure("maskformer_batch_pictures_sum") - before < 45
    assert service.figure('maskformer_requests_total{path="/v1/segment",status="499"}') > 5


def test_the_document_keeps_its_promises(service, tmp_path) -> None:
    hooks = tmp_path / "hooks.py"
    hooks.write_text(
        "import base64, io, schemathesis\n"
        "from hypothesis import strategies as st\n"
        "from PIL import Image\n"
        "def picture(size):\n"
        "    content = io.BytesIO()\n"
        "    Image.new('RGB', size, 'green').save(content, 'PNG')\n"
        "    return content.getvalue()\n"
        "files = st.tuples(st.integers(8, 64), st.integers(8, 64)).map(picture)\n"
        "schemathesis.openapi.format('binary', files)\n"
        # The condition on forms that the document cannot state: see `request_body`.
        "SCORES = {'threshold', 'mask_threshold', 'overlap'}\n"
        "@schemathesis.hook\n"
        "def filter_case(context, case):\n"
        "    body = case.body if isinstance(case.body, dict) else {}\n"
        "    return not (body.get('task') == 'semantic' and SCORES & body.keys() and 'form' in str(case.media_type))\n"
        "schemathesis.openapi.format('base64-picture', files.map(lambda file: base64.b64encode(file).decode()))\n"
    )
    command = [
        str(Path(sys.executable).parent / "schemathesis"),
        "run",
        f"http://127.0.0.1:{service.port}/openapi.json",
    ]
    words = ["--checks", "all", "--max-examples", "25", "--seed", "1", "--no-color", "--request-timeout", "30"]
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([*command, *words], cwd=tmp_path, env=environment, capture_output=True, text=True)
    print(done.stdout[-6000:])
    assert done.returncode == 0, done.stdout[-6000:]


def test_leaving_finishes_what_is_inside(scenes) -> None:
    with live("--no-page", "--max-batch", "1") as service:
        statuses: Counter[int] = Counter()

        def ask() -> None:
            with contextlib.closing(service.connection()) as connection:
                statuses[send(service, connection, *form(scenes[0]))[0]] += 1

        threads = [threading.Thread(target=ask) for _ in range(12)]
        for thread in threads:
            thread.start()
        while service.figure("maskformer_waiting_requests") < 6:
            time.sleep(0.01)
        code = service.stop()
        for thread in threads:
            thread.join()
        assert statuses == {200: 12}
        assert code == 0
        leaving = [json.loads(line) for line in service.lines if '"leaving"' in line]
        assert leaving[0]["inside"] >= 6


def test_load() -> None:
    words = ["--seconds", "10", "--clients", "64", "--max-batch", "8"]
    done = subprocess.run([sys.executable, str(LOAD), *words], capture_output=True, text=True, check=True)
    figures = json.loads(done.stdout.splitlines()[-1])
    print(figures)
    assert set(figures["statuses"]) == {"200"}
    # A forward pass rounds by the size of its batch; where two scores tie, that can decide a pixel.
    assert figures["different_answers"] <= figures["answers"] / 100
    assert figures["most_pixels_different"] <= 2
    assert figures["largest_score_difference"] <= 1e-5
    assert figures["mean_batch"] > 4
    assert figures["memory_mb_last_quarter"] < figures["memory_mb_second_quarter"] + 100
