"""How the server begins, ends and logs, in this process."""

import json
import logging
import os
import signal
import threading
import time

import uvicorn

from maskformer.serving.app import build_app
from maskformer.serving.server import bound_socket, log_to_stderr, serve
from maskformer.serving.service import Service


def test_a_signal_before_uvicorn_listens_to_signals_is_not_lost(predictor, monkeypatch) -> None:
    find_loop = uvicorn.Config.get_loop_factory

    def told_to_end(config):
        os.kill(os.getpid(), signal.SIGTERM)
        return find_loop(config)

    monkeypatch.setattr(uvicorn.Config, "get_loop_factory", told_to_end)
    before = signal.getsignal(signal.SIGTERM)
    again = threading.Timer(5, os.kill, (os.getpid(), signal.SIGTERM))
    again.start()
    try:
        service, started = Service(predictor), time.monotonic()
        with bound_socket("127.0.0.1", 0) as bound:
            serve(build_app(service, page=False), service, bound)
        assert time.monotonic() - started < 4
        assert not service.is_ready
    finally:
        again.cancel()
        signal.signal(signal.SIGTERM, before)


def test_everything_in_the_log_is_json(monkeypatch, capsys) -> None:
    for name in (None, "maskformer.serving", "uvicorn.error"):
        logger = logging.getLogger(name)
        for field in ("handlers", "propagate", "level"):
            monkeypatch.setattr(logger, field, getattr(logger, field))
    log_to_stderr()
    logging.getLogger("python_multipart.multipart").warning("cut off")
    logging.getLogger("uvicorn.error").warning("gone")
    logging.getLogger("httpx").info("of no interest")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["event"] for line in lines] == ["cut off", "gone"]
