"""A server as a process: what it needs, where it listens, how it ends."""

import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..scorer import Scorer
from .limits import ServingLimits

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["run_server", "serving_app"]

LOCAL = ("127.0.0.1", "localhost", "::1")
GRACE = 5.0
"""Seconds beyond a request's own time that the end of a server waits for it."""


def serving_app(
    scorer: Scorer, limits: ServingLimits | None = None, *, special: Sequence[str] = ()
) -> "FastAPI":
    """A reward model as an ASGI app, to be run by any server of such apps, with one worker.

    Args:
        scorer: The model.
        limits: Bounds; the defaults by default.
        special: Texts of a policy's special tokens, which are taken from the ends of what ``/get_reward`` gets.

    Raises:
        ImportError: If the extra ``serve`` is not installed.
    """
    try:
        from .app import make_app
    except ImportError as error:
        raise ImportError(
            f'serving needs fastapi and uvicorn: pip install "pluralign[serve]" ({error})'
        ) from error
    return make_app(scorer, limits or ServingLimits(), special)


def run_server(
    scorer: Scorer,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    limits: ServingLimits | None = None,
    special: Sequence[str] = (),
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serve until the process is interrupted or told to end; requests that wait are answered first.

    Args:
        scorer: The model.
        host: Address to listen at; anybody who reaches it may ask, so it is this machine alone by default.
        port: Its port; 0 for any free one.
        limits: Bounds; the defaults by default.
        special: As :func:`serving_app` takes them.
        ready: Is told the address when connections are taken.

    Raises:
        ImportError: If the extra ``serve`` is not installed.
        OSError: If nothing can listen there; says what to change.
    """
    limits = limits or ServingLimits()
    app = serving_app(scorer, limits, special=special)
    import uvicorn

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise OSError(f"nothing can listen at {host}, port {port} ({error}): set --port or --host") from error
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=limits.max_connections,
        timeout_graceful_shutdown=int(limits.timeout + GRACE),
    )
    if ready is not None:
        name = f"[{host}]" if ":" in host else host
        ready(f"http://{name}:{listening.getsockname()[1]}")
    with listening:
        uvicorn.Server(config).run(sockets=[listening])
