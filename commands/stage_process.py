"""The process of a stage: a run of a verb beside the chain's own, which hands on what it is told."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType

__all__ = ["run_process"]

HANDED_ON = (signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else []))
"""What ends a fit after a checkpoint, SIGUSR1 among them where there is such a signal."""


def run_process(words: Sequence[str], environment: Mapping[str, str], descriptors: Sequence[int] = ()) -> int:
    """Run a verb in a process of its own, to its end.

    Args:
        words: The verb and its options.
        environment: Of the process.
        descriptors: Open files that it inherits.

    Returns:
        Its exit status; 128 and the signal's number if one ended it, as shells have it, or was sent to this process
        meanwhile, which hands it on.

    Raises:
        KeyboardInterrupt: If this process was interrupted, once the other one has ended.
    """
    received: list[int] = []
    process: subprocess.Popen[bytes] | None = None

    def hand_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if process is not None and not (number == signal.SIGINT and _at_terminal()):
            process.send_signal(number)

    with _handled(hand_on):
        command = [sys.executable, "-m", "pluralign.train", *words]
        process = subprocess.Popen(command, env=dict(environment), pass_fds=tuple(descriptors))
        for number in received:  # before there was a process
            process.send_signal(number)
        status = process.wait()
    if signal.SIGINT in received:
        raise KeyboardInterrupt
    if received:
        return 128 + received[0]
    return 128 - status if status < 0 else status


def _at_terminal() -> bool:
    """Whether a terminal interrupts the other process, too: it does so with all in the foreground."""
    try:
        return os.tcgetpgrp(0) == os.getpgrp()
    except (OSError, AttributeError):  # no terminal, or a system without process groups
        return False


@contextmanager
def _handled(handler: "signal._HANDLER") -> Iterator[None]:
    """Have a function called for signals that are handed on; only a process's first thread may say so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in HANDED_ON}
    try:
        yield
    finally:
        for number, handled in before.items():
            signal.signal(number, handled)
