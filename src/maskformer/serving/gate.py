"""What stands before every route: the token, room in the house, the body's size and pace, time, and leaving clients.

An ASGI middleware. A body is received whole before anything looks at it, into a place that was free for it, so that
what clients send can neither fill the memory nor hold a place for long. Every exchange is counted and logged here.
"""

from __future__ import annotations

import asyncio
import hmac
import time
import uuid
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from maskformer.serving.batching import HouseFull
from maskformer.serving.metrics import LOGGER
from maskformer.serving.service import Service

ROUTES = ("/v1/segment", "/v1/model", "/healthz", "/readyz", "/metrics", "/openapi.json")
CLIENT_LEFT = 499  # as nginx writes it; nobody receives it


@dataclass(slots=True)
class _Exchange:
    """One request and what has been answered to it."""

    scope: Scope
    receive: Receive
    send: Send
    number: str
    status: int = 0
    received: int = 0

    async def answer(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", self.number.encode())]
        await self.send(message)

    async def refuse(self, refusal: HTTPException) -> None:
        """The refusal as an answer, unless one has begun."""
        if not self.status:
            headers = {"connection": "close", **(refusal.headers or {})}
            reply = JSONResponse({"detail": refusal.detail}, refusal.status_code, headers)
            await reply(self.scope, self.receive, self.answer)


class Gate:
    """Lets requests through to `app`, or refuses them.

    Args:
        app: what answers.
        service: its house, limits and metrics hold.
        token: if given, `/v1/...` and `/metrics` want `Authorization: Bearer <token>`.
    """

    def __init__(self, app: ASGIApp, service: Service, token: str | None = None) -> None:
        self._app, self._service, self._token = app, service, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        started = time.perf_counter()
        exchange = _Exchange(scope, receive, send, uuid.uuid4().hex)
        try:
            await self._let_through(exchange)
        except HTTPException as refusal:
            await exchange.refuse(refusal)
        except ClientDisconnect:
            exchange.status = CLIENT_LEFT
        except Exception as error:
            LOGGER.exception("failed", extra={"fields": {"request": exchange.number, "error": type(error).__name__}})
            sentence = f"the service failed; its log has the reason under {exchange.number}"
            await exchange.refuse(HTTPException(500, sentence))
        finally:
            self._report(exchange, time.perf_counter() - started)

    def _report(self, exchange: _Exchange, seconds: float) -> None:
        method, path = exchange.scope["method"], exchange.scope["path"]
        known = path if path in ROUTES else "page"
        self._service.metrics.requests.labels(known, str(exchange.status)).inc()
        self._service.metrics.seconds.labels(known).observe(seconds)
        if method == "GET" and exchange.status < 400:
            return
        fields = {"request": exchange.number, "method": method, "path": path[:100], "status": exchange.status}
        fields |= {"milliseconds": round(1000 * seconds, 1), "bytes": exchange.received}
        LOGGER.info("exchange", extra={"fields": fields})

    async def _let_through(self, exchange: _Exchange) -> None:
        scope, house = exchange.scope, self._service.house
        if self._token is not None and scope["path"].startswith(("/v1/", "/metrics")):
            given = dict(scope["headers"]).get(b"authorization", b"")
            # Compared as a whole, in a time that does not tell how much of it was right.
            if not hmac.compare_digest(given, b"Bearer " + self._token.encode()):
                sentence = "this service wants Authorization: Bearer TOKEN"
                raise HTTPException(401, sentence, {"WWW-Authenticate": "Bearer"})
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return await self._app(scope, exchange.receive, exchange.answer)
        try:
            with house.visit():
                await self._work(exchange, await self._body(exchange))
        except HouseFull:
            wait = self._service.batcher.seconds_until_room(house.inside)
            sentence = f"{house.most} requests are inside, as many as there may be: try again in {wait} seconds"
            raise HTTPException(429, sentence, {"Retry-After": str(wait)}) from None

    async def _body(self, exchange: _Exchange) -> bytes:
        limits, request = self._service.limits, Request(exchange.scope, exchange.receive)
        sentence = f"the body has more than the {limits.body_bytes} bytes allowed: send a smaller one"
        announced = request.headers.get("content-length", "0")
        if announced.isdecimal() and int(announced) > limits.body_bytes:
            raise HTTPException(413, sentence)
        parts: list[bytes] = []
        try:
            async with asyncio.timeout(limits.body_seconds):
                async for part in request.stream():
                    parts.append(part)
                    exchange.received += len(part)
                    if exchange.received > limits.body_bytes:
                        raise HTTPException(413, sentence)
        except TimeoutError:
            raise HTTPException(408, f"the body took more than {limits.body_seconds:g} seconds to arrive") from None
        return b"".join(parts)

    async def _work(self, exchange: _Exchange, body: bytes) -> None:
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return messages.pop() if messages else await asyncio.get_running_loop().create_future()

        async def leave() -> None:
            while (await exchange.receive())["type"] != "http.disconnect":
                pass

        work = asyncio.ensure_future(self._app(exchange.scope, replay, exchange.answer))
        left = asyncio.ensure_future(leave())
        try:
            limit = self._service.limits.seconds
            await asyncio.wait({work, left}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            if left.done():
                raise ClientDisconnect
            raise HTTPException(504, f"the answer took more than {limit:g} seconds: try again later or send less")
        finally:
            for task in (work, left):
                task.cancel()
            await asyncio.gather(work, left, return_exceptions=True)
