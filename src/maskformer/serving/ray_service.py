"""The service on many machines: Ray Serve runs the application of one machine as replicas behind one address.

Each replica is a process with a model and with its own queue, limits and figures. Ray Serve sends a request to the
less busy of two of them, and starts those again that have died.
"""

from __future__ import annotations

import logging
import re
import signal
import threading
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI

from maskformer.serving.ray_batches import cluster, workers_of
from maskformer.serving.server import bound_socket
from maskformer.serving.service import Limits

NAME = "maskformer"
_QUIET: Any = {"log_level": "ERROR", "enable_access_log": False}


def serve_on_cluster(
    build: Callable[[], FastAPI],
    address: tuple[str, int],
    limits: Limits,
    occupied: tuple[str | None, int | None],
    started: Callable[[int], None],
) -> None:
    """Answer until SIGTERM or SIGINT; returns when the requests inside have been answered.

    `build` makes the application, whose `limits` are given, in each replica. `address` is (host, port) on the head
    node, which this has to run on, `occupied` is (device, replicas) as for `workers_of`; `started` is told the port.

    Raises:
        ValueError: the address cannot be had, another service runs on the cluster, or the replicas do not start.
    """
    with bound_socket(*address) as free:
        port = free.getsockname()[1]

    with cluster("serve") as ray:
        if ray.serve.status().proxies:
            raise ValueError("Ray Serve runs on this cluster already, at another address: end it with `serve shutdown`")
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        replicas = _replicas(ray, build, limits, occupied)
        ray.serve.start("HeadOnly", {"host": address[0], "port": port}, logging_config=_QUIET)
        try:
            _run_until_told(ray.serve, replicas, lambda: started(port))
        finally:
            ray.serve.shutdown()


def _replicas(ray: Any, build: Callable[[], FastAPI], limits: Limits, occupied: tuple[str | None, int | None]) -> Any:
    def application() -> FastAPI:  # Ray Serve takes no other callable
        return build()

    count, each = workers_of(ray, *occupied)
    deployment = ray.serve.deployment(
        ray.serve.ingress(application)(),
        name=NAME,
        num_replicas=count,
        ray_actor_options=each,
        max_ongoing_requests=2 * limits.requests,  # it is the application that refuses, with 429
        graceful_shutdown_timeout_s=limits.body_seconds + limits.seconds + 5,
        max_constructor_retry_count=2,
        logging_config=_QUIET,
    )
    return deployment.bind()


def _run_until_told(serve: Any, replicas: Any, started: Callable[[], None]) -> None:
    stop = threading.Event()
    try:
        serve.run(replicas, name=NAME)
    except RuntimeError as error:
        raise ValueError(f"the service did not start: {_reason(serve)}") from error
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    started()
    stop.wait()
    serve.delete(NAME)  # waits for the requests inside


def _reason(serve: Any) -> str:
    """The last error of a replica that did not start."""
    message = serve.status().applications[NAME].deployments[NAME].message
    return (re.findall(r"^\w+(?:Error|Exception): (.+)$", message, re.MULTILINE) or [message])[-1]
