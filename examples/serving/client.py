"""Ask a running `maskformer serve` for the segments of pictures; nothing but Python is needed.

maskformer serve --model scenes
python examples/serving/client.py picture.png other.jpg --task panoptic --overlay drawn
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any


def segment(address: str, picture: Path, tries: int = 10, **options: Any) -> bytes:
    """The body of the answer: JSON for format "rle", a PNG file for "png" and "overlay".

    Waits and tries again while the service has no room.

    Raises:
        ValueError: the service refused, with its sentence.
    """
    body = {"image": base64.b64encode(picture.read_bytes()).decode(), **options}
    headers = {"Content-Type": "application/json"}
    if token := os.environ.get("MASKFORMER_TOKEN"):
        headers["Authorization"] = f"Bearer {token}"
    request = urllib.request.Request(f"{address}/v1/segment", json.dumps(body).encode(), headers)
    for attempt in range(tries):
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                return reply.read()
        except urllib.error.HTTPError as error:
            with error:
                sentence = json.loads(error.read())["detail"]
            if error.code != 429 or attempt == tries - 1:
                raise ValueError(f"{picture}: {sentence}") from error
            time.sleep(int(error.headers["Retry-After"]))
    raise AssertionError


def main(words: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="+", type=Path)
    parser.add_argument("--address", default="http://127.0.0.1:8000")
    parser.add_argument("--task", choices=("semantic", "instance", "panoptic"))
    parser.add_argument("--threshold", type=float)
    parser.add_argument("--overlay", type=Path, help="directory for drawings instead of a table")
    arguments = parser.parse_args(words)
    options = {"task": arguments.task, "threshold": arguments.threshold}
    for picture in arguments.pictures:
        if arguments.overlay is None:
            found = json.loads(segment(arguments.address, picture, **options))
            for each in found["segments"]:
                print(f"{picture}\t{each['label']}\t{each['score']:.2f}\t{each['area']}")
        else:
            arguments.overlay.mkdir(parents=True, exist_ok=True)
            drawn = arguments.overlay / f"{picture.stem}.png"
            drawn.write_bytes(segment(arguments.address, picture, format="overlay", **options))
            print(f"{picture} -> {drawn}")


if __name__ == "__main__":
    main()
