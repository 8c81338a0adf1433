"""The service on many machines: Ray Serve runs the application of one machine as replicas behind one address.

Each replica is a process with a model and with its own queue, limits and figures. Ray Serve sends a request to the
less busy of two of them, and starts those again that have died.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI

from maskformer.serving.ray_batches import EXTRA, cluster, workers_of
from maskformer.serving.server import bound_socket
from maskformer.serving.service import Limits

NAME = "maskformer"


def serve_on_cluster(
    build: Callable[[], FastAPI],
    address: tuple[str, int],
    limits: Limits,
    occupied: tuple[str | None, int | None],
    started: Callable[[int], None],
) -> None:
    """Answer until SIGTERM or SIGINT; returns when the requests inside have been answered.

    Args:
        build: makes the application, in each replica.
        address: (host, port) of the machine this runs on; port 0 takes any free one.
        limits: those of the application.
        occupied: (device, replicas), see `workers_of`.
        started: told the port.

    Raises:
        ValueError: the address cannot be had.
        RuntimeError: the replicas do not start; Ray's log says why.
    """
    with bound_socket(*address) as free:
        port = free.getsockname()[1]

    def application() -> FastAPI:  # Ray Serve takes no other callable
        return build()

    with cluster() as ray:
        try:
            from ray import serve
        except ImportError as error:
            raise ImportError(f"--engine ray needs {error.name or error}: {EXTRA}") from error
        count, each = workers_of(ray, *occupied)
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        quiet: Any = {"log_level": "ERROR", "enable_access_log": False}
        serve.start("HeadOnly", {"host": address[0], "port": port}, logging_config=quiet)
        replicas: Any = serve.deployment(
            serve.ingress(application)(),
            name=NAME,
            num_replicas=count,
            ray_actor_options=each,
            max_ongoing_requests=2 * limits.requests,  # it is the application that refuses, with 429
            graceful_shutdown_timeout_s=limits.body_seconds + limits.seconds + 5,
            logging_config=quiet,
        )
        stop = threading.Event()
        try:
            serve.run(replicas.bind(), name=NAME)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: stop.set())
            started(port)
            stop.wait()
        finally:
            serve.shutdown()
