"""What benchmarks say of the machine and the versions that they ran on, in their JSON objects."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch

__all__ = ["instructions", "surroundings"]

INFO = Path("/proc/cpuinfo")


def surroundings(*packages: str) -> dict[str, object]:
    """Machine and versions.

    Args:
        packages: Names of installed packages, besides Python.
    """
    lines = INFO.read_text(encoding="utf-8").splitlines() if INFO.is_file() else []
    names = (line.split(": ")[1] for line in lines if line.startswith("model name"))
    return {
        "machine": {
            "cpu": next(names, platform.processor() or platform.machine()),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "load": os.getloadavg()[0],
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }


def instructions(*names: str) -> dict[str, bool]:
    """Which instructions the processor has (Linux; elsewhere none is known).

    Args:
        names: As ``/proc/cpuinfo`` has them, such as ``avx512_bf16``.
    """
    words = set(INFO.read_text(encoding="utf-8").split()) if INFO.is_file() else set()
    return {name: name in words for name in names}
