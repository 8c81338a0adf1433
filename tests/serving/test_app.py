"""The routes over ASGI: formats, refusals in one sentence, room, token, time, figures and the log."""

import asyncio
import base64
import contextlib
import json
import logging
import time

import httpx
import pytest

from maskformer.serving.app import build_app
from maskformer.serving.metrics import LOGGER, JsonLines
from maskformer.serving.service import Limits, Service

from . import broken


class Slow:
    """Stands for a Predictor that takes its time."""

    max_batch = 1

    def __init__(self, predictor, seconds):
        self.encode, self.check, self.likeness, self.real = (
            predictor.encode,
            predictor.check,
            predictor.likeness,
            predictor.predict,
        )
        self.seconds, self.seen = seconds, 0

    def predict(self, jobs):
        self.seen += len(jobs)
        time.sleep(self.seconds)
        return self.real(jobs)


@contextlib.asynccontextmanager
async def client_of(predictor, token=None, **limits):
    service = Service(predictor, Limits(**limits))
    app = build_app(service, token, page=False)
    running = asyncio.create_task(service.run())
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=10) as client:
        client.service = service
        yield client
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def asked(predictor, *requests, together=False, token=None, **limits):
    """The replies to requests (method, path, options)."""

    async def main():
        async with client_of(predictor, token, **limits) as client:
            calls = [client.request(method, path, **options) for method, path, options in requests]
            return await asyncio.gather(*calls) if together else [await call for call in calls]

    return asyncio.run(main())


def segment(content, **data):
    return "POST", "/v1/segment", {"files": {"image": ("scene.png", content)}, "data": data}


def in_base64(content, **fields):
    body = {"image": base64.b64encode(content).decode(), **fields}
    return "POST", "/v1/segment", {"json": body}


def test_answers_are_those_of_the_segmenter(predictor, segmenter, scenes) -> None:
    form, text, png, overlay, semantic = asked(
        predictor,
        segment(scenes[0]),
        in_base64(scenes[0], task="instance", threshold=0.7),
        segment(scenes[0], format="png"),
        in_base64(scenes[0], format="overlay"),
        segment(scenes[1], task="semantic"),
    )
    result = segmenter.predict(scenes[0])[0]
    assert form.json() == json.loads(result.to_json(rle=True))
    strict = segmenter.predict(scenes[0], "instance", threshold=0.7)[0]
    assert text.json() == json.loads(strict.to_json(rle=True))
    assert png.headers["content-type"] == overlay.headers["content-type"] == "image/png"
    assert (png.content, overlay.content) == tuple(predictor.encode(result, form)[0] for form in ("png", "overlay"))
    assert semantic.json() == json.loads(segmenter.predict(scenes[1], "semantic")[0].to_json(rle=True))


def test_requests_that_arrive_together_share_batches(predictor, scenes) -> None:
    async def main():
        async with client_of(predictor, max_delay=0.5) as client:
            calls = [client.request(*request[:2], **request[2]) for request in [segment(scenes[0])] * 8]
            replies = await asyncio.gather(*calls)
            return replies, (await client.get("/metrics")).text

    replies, figures = asyncio.run(main())
    assert {reply.status_code for reply in replies} == {200}
    assert "maskformer_batch_pictures_sum 8.0" in figures
    assert "maskformer_batch_pictures_count 2.0" in figures


REFUSED = {
    "no file": (422, ("POST", "/v1/segment", {"files": {"task": (None, "semantic")}})),
    "text for a file": (422, ("POST", "/v1/segment", {"files": {"image": (None, "hello")}})),
    "field twice": (422, segment(broken.turned(), task=["semantic", "panoptic"])),
    "many fields": (400, segment(broken.turned(), **{f"field{number}": "1" for number in range(50)})),
    "text": (415, ("POST", "/v1/segment", {"content": b"hello", "headers": {"content-type": "text/plain"}})),
    "no type": (415, ("POST", "/v1/segment", {"content": b"hello"})),
    "no boundary": (
        400,
        ("POST", "/v1/segment", {"content": b"hello", "headers": {"content-type": "multipart/form-data"}}),
    ),
    "half a form": (
        422,
        (
            "POST",
            "/v1/segment",
            {"content": b"--x\r\nContent-Dis", "headers": {"content-type": "multipart/form-data; boundary=x"}},
        ),
    ),
    "half a json": (
        422,
        ("POST", "/v1/segment", {"content": b'{"image": "aa', "headers": {"content-type": "application/json"}}),
    ),
    "deep json": (
        422,
        ("POST", "/v1/segment", {"content": b"[" * 100_000, "headers": {"content-type": "application/json"}}),
    ),
    "list": (422, ("POST", "/v1/segment", {"json": [1]})),
    "no image": (422, ("POST", "/v1/segment", {"json": {"task": "semantic"}})),
    "not base64": (422, ("POST", "/v1/segment", {"json": {"image": "§§§"}})),
    "not a picture": (422, in_base64(b"hello")),
    "unknown field": (422, in_base64(broken.turned(), colour="red")),
    "unknown task": (422, segment(broken.turned(), task="everything")),
    "useless option": (422, segment(broken.turned(), task="semantic", threshold="0.5")),
    "threshold": (422, segment(broken.turned(), threshold="nan")),
    "threshold as text": (422, in_base64(broken.turned(), threshold="0.5")),
    "wide header": (413, segment(broken.wide_header())),
    "bomb": (413, segment(broken.bomb())),
    "text bomb": (422, segment(broken.text_bomb())),
    "cut off": (422, segment(broken.turned()[:400])),
    "many bytes": (413, segment(b"a" * 3_000_000)),
    "wrong method": (405, ("GET", "/v1/segment", {})),
    "nothing there": (404, ("GET", "/v2", {})),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_a_sentence(predictor, case) -> None:
    status, request = REFUSED[case]
    (reply,) = asked(predictor, request, body_bytes=1_000_000)
    assert reply.status_code == status
    detail = reply.json()["detail"]
    assert len(detail.split()) >= 2
    assert "\n" not in detail
    assert "Traceback" not in reply.text
    assert reply.headers["x-request-id"]


def test_a_body_announced_as_too_large_is_not_read(predictor) -> None:
    sent = []

    async def receive():
        raise AssertionError("nothing of the body is wanted")

    async def send(message):
        sent.append(message)

    headers = [(b"content-type", b"application/json"), (b"content-length", b"101")]
    scope = {"type": "http", "method": "POST", "path": "/v1/segment", "query_string": b"", "headers": headers}
    app = build_app(Service(predictor, Limits(body_bytes=100)), page=False)
    asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == 413


def test_base64_must_be_whole_and_nothing_else(predictor, scenes) -> None:
    text = base64.b64encode(scenes[0]).decode()
    for spoilt in (f"data:image/png;base64,{text}", f"{text[:40]}-{text[40:]}", text[:-3]):
        (reply,) = asked(predictor, ("POST", "/v1/segment", {"json": {"image": spoilt}}))
        assert reply.status_code == 422
        assert "send the file's bytes in base64, without a prefix" in reply.json()["detail"]


def test_more_data_than_the_header_says_is_not_unpacked(predictor) -> None:
    started = time.perf_counter()
    (reply,) = asked(predictor, segment(broken.overlong_data()))
    assert reply.status_code in (200, 422)  # the eight rows are there; Pillow stops after them
    assert time.perf_counter() - started < 3


def test_a_full_house_answers_429_at_once(predictor, scenes) -> None:
    slow = Slow(predictor, 0.3)
    replies = asked(slow, *[segment(scenes[0])] * 6, together=True, requests=2)
    assert sorted(reply.status_code for reply in replies) == [200, 200, 429, 429, 429, 429]
    refused = [reply for reply in replies if reply.status_code == 429]
    assert all(1 <= int(reply.headers["retry-after"]) <= 60 for reply in refused)
    assert all(reply.elapsed.total_seconds() < 0.3 for reply in refused)
    assert slow.seen == 2


def test_time_is_limited(predictor, scenes) -> None:
    slow = Slow(predictor, 0.5)
    replies = asked(slow, segment(scenes[0]), segment(scenes[0]), together=True, seconds=0.2)
    assert [reply.status_code for reply in replies] == [504, 504]
    assert slow.seen == 1  # the other had left the queue


def test_a_slow_body_loses_its_place(predictor) -> None:
    async def trickle():
        while True:
            yield b"a"
            await asyncio.sleep(0.05)

    async def main():
        async with client_of(predictor, body_seconds=0.2, requests=1) as client:
            reply = await client.post("/v1/segment", content=trickle())
            assert client.service.house.inside == 0
            return reply

    reply = asyncio.run(main())
    assert reply.status_code == 408
    assert reply.json()["detail"] == "the body took more than 0.2 seconds to arrive"


def test_an_endless_body_is_cut_off(predictor) -> None:
    sent = []

    async def endless():
        while True:
            sent.append(1)
            yield b"a" * 10_000

    (reply,) = asked(predictor, ("POST", "/v1/segment", {"content": endless()}), body_bytes=100_000)
    assert reply.status_code == 413
    assert len(sent) <= 12


def test_the_token(predictor, scenes) -> None:
    right, wrong = ({"headers": {"Authorization": f"Bearer {token}"}} for token in ("sesame", "sesamf"))
    method, path, body = segment(scenes[0])
    replies = asked(
        predictor,
        (method, path, body),
        (method, path, body | wrong),
        ("GET", "/v1/model", {}),
        ("GET", "/metrics", {}),
        (method, path, body | right),
        ("GET", "/v1/model", right),
        ("GET", "/healthz", {}),
        token="sesame",
    )
    assert [reply.status_code for reply in replies] == [401, 401, 401, 401, 200, 200, 200]
    assert replies[0].headers["www-authenticate"] == "Bearer"


def test_states(predictor) -> None:
    async def main():
        async with client_of(predictor) as client:
            await asyncio.sleep(0)
            before = [(await client.get(path)).status_code for path in ("/healthz", "/readyz")]
            client.service.is_ready = False  # as on SIGTERM
            return before + [(await client.get(path)).status_code for path in ("/healthz", "/readyz")]

    assert asyncio.run(main()) == [200, 200, 200, 503]


def test_figures_and_log(predictor, scenes) -> None:
    lines = []

    class Keep(logging.Handler):
        def emit(self, record):
            lines.append(json.loads(JsonLines().format(record)))

    handler = Keep()
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    try:
        _, _, figures = asked(predictor, segment(scenes[0]), segment(b"secret content"), ("GET", "/metrics", {}))
    finally:
        LOGGER.removeHandler(handler)
    assert 'maskformer_requests_total{path="/v1/segment",status="200"} 1.0' in figures.text
    assert 'maskformer_requests_total{path="/v1/segment",status="422"} 1.0' in figures.text
    assert "maskformer_batch_pictures_count 1.0" in figures.text
    assert [(line["event"], line["status"]) for line in lines] == [("exchange", 200), ("exchange", 422)]
    assert set(lines[0]) == {
        "time", "level", "event", "request", "method", "path", "status", "milliseconds", "bytes",
    }  # fmt: skip
    assert "secret" not in json.dumps(lines)


def test_what_nobody_expected_is_500_and_logged(predictor, scenes, caplog) -> None:
    slow = Slow(predictor, 0)
    slow.real = lambda jobs: 1 / 0
    (reply,) = asked(slow, segment(scenes[0]))
    assert reply.status_code == 500
    assert reply.headers["x-request-id"] in reply.json()["detail"]
    assert "ZeroDivisionError" in caplog.text


def test_the_document_names_both_forms(predictor) -> None:
    (reply,) = asked(predictor, ("GET", "/openapi.json", {}))
    operation = reply.json()["paths"]["/v1/segment"]["post"]
    assert set(operation["requestBody"]["content"]) == {"multipart/form-data", "application/json"}
    assert {"200", "413", "415", "422", "429"} <= set(operation["responses"])
    assert set(operation["responses"]["200"]["content"]) == {"application/json", "image/png"}
