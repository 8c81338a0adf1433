"""`maskformer serve` under load on loopback: what it answers, how fast, and whether its memory grows.

    python benchmarks/serving_load.py --seconds 60 --clients 64 --max-batch 8

starts the service twice, with batches of one and of up to `--max-batch`, and compares every answer with
`Segmenter.predict` on that picture. The clients share the processor with the service.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from maskformer import Segmenter
from maskformer.data.scenes import draw_scene
from maskformer.processing.masks import decode_run_lengths

SIZES = ((192, 256), (256, 192), (192, 320))  # height, width: three that do not share a forward pass
BOUNDARY = "serving-load-boundary"


@dataclass
class Load:
    """What the clients saw."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int | str] = field(default_factory=Counter)
    different: int = 0
    """Answers that are not the Segmenter's in every pixel, label, box and id, and in the score to 1e-5."""
    pixels: int = 0
    """Pixels, at most, in which one of those differs: where two scores tie, rounding decides."""
    rounded: float = 0.0
    """Largest difference of a score: a forward pass rounds by the size of its batch."""
    without_retry_after: int = 0
    memory: list[float] = field(default_factory=list)
    """MB of the service, over time."""
    elapsed: float = 0.0
    mean_batch: float = 0.0


def start(words: list[str]) -> tuple[subprocess.Popen[str], int]:
    """A running service and its port."""
    command = [sys.executable, "-m", "maskformer", "serve", "--port", "0", *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    for line in process.stderr:
        if found := re.search(r"answers on http://.*:(\d+)", line):
            threading.Thread(target=process.stderr.read, daemon=True).start()
            port = int(found[1])
            while not _is_ready(port):
                time.sleep(0.1)
            return process, port
    raise SystemExit("the service did not start")


def stop(process: subprocess.Popen[str]) -> int:
    """SIGTERM, and the exit code."""
    process.send_signal(signal.SIGTERM)
    return process.wait(60)


def pictures(num: int) -> list[bytes]:
    """Drawn scenes as PNG files."""
    files: list[bytes] = []
    for index in range(num):
        content = io.BytesIO()
        Image.fromarray(draw_scene(9_990_000 + index, SIZES[index % len(SIZES)]).image).save(content, "PNG")
        files.append(content.getvalue())
    return files


def form(content: bytes) -> bytes:
    """A multipart body with one picture."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="scene.png"\r\n\r\n'
    return head.encode() + content + f"\r\n--{BOUNDARY}--\r\n".encode()


def run(port: int, files: list[bytes], expected: list[dict[str, Any]], clients: int, seconds: float) -> Load:
    """That many clients, each asking again as soon as it is answered."""
    load, lock, started = Load(), threading.Lock(), time.perf_counter()

    def ask(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=150)
        while time.perf_counter() - started < seconds:
            index = number % len(files)
            number += clients + 1
            asked = time.perf_counter()
            try:
                kind = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
                connection.request("POST", "/v1/segment", form(files[index]), kind)
                reply = connection.getresponse()
                body, status, retry = reply.read(), reply.status, reply.getheader("Retry-After")
            except OSError as error:
                connection.close()
                with lock:
                    load.statuses[type(error).__name__] += 1
                continue
            taken = time.perf_counter() - asked
            with lock:
                load.statuses[status] += 1
                if status == 200:
                    load.seconds.append(taken)
                    _compare(load, json.loads(body), expected[index])
                load.without_retry_after += status == 429 and not retry
            if status == 429:
                time.sleep(0.2)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        load.memory.append(_figure(port, "process_resident_memory_bytes") / 1e6)
        threads[-1].join(max(seconds / 30, 0.5))
    load.elapsed = time.perf_counter() - started
    load.mean_batch = _figure(port, "maskformer_batch_pictures_sum") / _figure(port, "maskformer_batch_pictures_count")
    return load


def report(name: str, load: Load) -> None:
    """The figures as one line of JSON."""
    cuts = statistics.quantiles(load.seconds, n=100)
    quarter = max(len(load.memory) // 4, 1)
    figures = {
        "case": name,
        "answers": len(load.seconds),
        "statuses": {str(status): count for status, count in load.statuses.items()},
        "images_per_second": round(len(load.seconds) / load.elapsed, 2),
        "p50_ms": round(1000 * cuts[49]),
        "p95_ms": round(1000 * cuts[94]),
        "p99_ms": round(1000 * cuts[98]),
        "mean_batch": round(load.mean_batch, 2),
        "different_answers": load.different,
        "most_pixels_different": load.pixels,
        "429_without_retry_after": load.without_retry_after,
        "largest_score_difference": round(load.rounded, 7),
        "memory_mb_second_quarter": round(statistics.mean(load.memory[quarter : 2 * quarter] or load.memory)),
        "memory_mb_last_quarter": round(statistics.mean(load.memory[-quarter:])),
    }
    print(json.dumps(figures), flush=True)


def _compare(load: Load, got: dict[str, Any], expected: dict[str, Any]) -> None:
    pairs = list(zip(got.pop("segments"), expected["segments"], strict=False))
    apart = max((abs(mine["score"] - theirs["score"]) for mine, theirs in pairs), default=0.0)
    load.rounded = max(load.rounded, apart)
    same = len(pairs) == len(expected["segments"]) and got == {key: expected[key] for key in got} and apart <= 1e-5
    same = same and all({**mine, "score": 0} == {**theirs, "score": 0} for mine, theirs in pairs)
    load.different += not same
    for mine, theirs in pairs if not same else ():
        masks = [decode_run_lengths(each["segmentation"]) for each in (mine, theirs)]
        load.pixels = max(load.pixels, int((masks[0] != masks[1]).sum()))


def _get(port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path)
    reply = connection.getresponse()
    return reply.status, reply.read().decode()


def _is_ready(port: int) -> bool:
    try:
        return _get(port, "/readyz")[0] == 200
    except OSError:
        return False


def _figure(port: int, name: str) -> float:
    found = re.search(rf"^{name} (\S+)$", _get(port, "/metrics")[1], re.MULTILINE)
    return float(found[1]) if found else float("nan")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="scenes")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--max-batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--max-queue", type=int, help="by default twice the clients; fewer show answers of 429")
    arguments = parser.parse_args()
    files = pictures(24)
    segmenter = Segmenter.from_pretrained(arguments.model)
    expected = [json.loads(segmenter.predict(content)[0].to_json(rle=True)) for content in files]
    for max_batch in arguments.max_batch:
        words = [
            "--model",
            arguments.model,
            "--no-page",
            "--timeout",
            "120",
            "--max-queue",
            str(arguments.max_queue or 2 * arguments.clients),
        ]
        process, port = start([*words, "--max-batch", str(max_batch)])
        try:
            report(f"batches of {max_batch}", run(port, files, expected, arguments.clients, arguments.seconds))
        finally:
            code = stop(process)
        if code:
            raise SystemExit(f"the service ended with exit code {code}")


if __name__ == "__main__":
    main()
