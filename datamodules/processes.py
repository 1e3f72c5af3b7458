"""Processes of this machine, by which one knows what killed ones have left."""

import os

__all__ = ["is_alive"]


def is_alive(process: int) -> bool:
    """Whether a process of this machine is there; one of somebody else is, too.

    Args:
        process: Its number.
    """
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # somebody else's
    return True
