"""What benchmarks share that measure memory: the kernel's account of this process (Linux)."""

from pathlib import Path

__all__ = ["STATUS", "memory"]

STATUS = Path("/proc/self/status")
"""Where the account stands; it is on Linux alone."""


def memory(kind: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at its peak.

    Not ``getrusage``, whose peak outlives ``exec``: a new process begins with that of the one that started it.
    """
    lines = STATUS.read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{kind}:"))
