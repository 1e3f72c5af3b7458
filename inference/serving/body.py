"""The bytes of a request: bounded in number and in time before anything reads them."""

import asyncio
from collections.abc import Awaitable, Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["BoundedBody"]

Refusal = Callable[[int, str], ASGIApp]
"""An answer of a status and a message."""


class BoundedBody:
    """Gives a request to the app when its body is there, and refuses one that is too large (413) or too slow (408)."""

    def __init__(self, app: ASGIApp, *, max_body: int, seconds: float, refusal: Refusal) -> None:
        """Know the bounds.

        Args:
            app: What answers.
            max_body: Bytes of a body.
            seconds: Until all of it must have come.
            refusal: What says that it cannot be.
        """
        self.app, self.max_body, self.seconds, self.refusal = app, max_body, seconds, refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        told = dict(scope["headers"]).get(b"content-length", b"0")
        try:
            if told.isdigit() and int(told) > self.max_body:
                raise OverflowError
            body = await asyncio.wait_for(self._body(receive), self.seconds)
        except OverflowError:
            message = f"the body has more than {self.max_body:,} bytes: send fewer texts a request, or raise --max_body"
            await self.refusal(413, message)(scope, receive, send)
        except TimeoutError:
            message = f"the body was not there within {self.seconds:g} s: send it faster, or raise --timeout"
            await self.refusal(408, message)(scope, receive, send)
        else:
            if body is not None:
                await self.app(scope, _after(body, receive), send)

    async def _body(self, receive: Receive) -> bytes | None:
        """All of it; None if the client went away.

        Raises:
            OverflowError: If it is too large.
        """
        parts: list[bytes] = []
        size = 0  # counted on: a body may come in as many pieces as it has bytes
        more = True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return None
            part: bytes = message.get("body", b"")
            size += len(part)
            if size > self.max_body:
                raise OverflowError
            parts.append(part)
            more = message.get("more_body", False)
        return b"".join(parts)


def _after(body: bytes, receive: Receive) -> Callable[[], Awaitable[Message]]:
    """What the app receives: the body, and then what comes."""
    read = False

    async def replayed() -> Message:
        nonlocal read
        if read:
            return await receive()
        read = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed
