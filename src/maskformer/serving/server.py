"""Runs the application under uvicorn until SIGTERM or SIGINT, and then finishes what is inside first."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from typing import Any

import uvicorn
from fastapi import FastAPI

from maskformer.serving.metrics import LOGGER, JsonLines
from maskformer.serving.service import Service


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket that nothing listens on yet; ValueError if the address cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with contextlib.ExitStack() as stack:
            bound = stack.enter_context(socket.socket(family, kind, protocol))
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            stack.pop_all()
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(f"cannot listen on {host} port {port} ({reason}): choose another --port or --host") from error
    return bound


def log_to_stderr() -> None:
    """Have this process log as lines of JSON, and the libraries in it too: one warns of every form cut off."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    for name in ("", LOGGER.name, "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO if name == LOGGER.name else logging.WARNING)


def serve(app: FastAPI, service: Service, bound: socket.socket) -> None:
    """Answer until a signal asks to end; returns when all that were inside have been answered."""
    limits = service.limits
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(limits.body_seconds + limits.seconds) + 5,
        limit_concurrency=max(1000, 4 * limits.requests),
    )
    server = _Server(config, service)
    # Before uvicorn takes it, and when uvicorn raises it again once all is done: that is success.
    signal.signal(signal.SIGTERM, server.handle_exit)
    server.run([bound])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.is_ready = False
        LOGGER.info("leaving", extra={"fields": {"inside": self._service.house.inside}})
        closing = asyncio.create_task(self._close_when_empty())
        await super().shutdown(sockets)
        closing.cancel()

    async def _close_when_empty(self) -> None:
        """An open page listens for ever; uvicorn would wait for it."""
        while self._service.house.inside:
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)  # for the last bytes to leave
        connection: Any
        for connection in list(self.server_state.connections):
            connection.transport.close()
