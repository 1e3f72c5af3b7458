"""Which checkpoint below some folders is the newest: between runs by the clock, within one by its steps."""

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from pluralign.datamodules.untrusted import UNREADABLE
from pluralign.inference.run_files import RECORD, run_record
from pluralign.models.sharding import ShardedCheckpoint, is_sharded_checkpoint

__all__ = ["LEFT_BEHIND", "beside_weights", "left_behind", "newest_first"]

AHEAD = 600.0
"""Seconds that clocks of machines which share a disk may differ by."""
DEPTHS = ("*.ckpt", "*/*.ckpt", "*/*/*.ckpt")
"""Where in the folder of a run its checkpoints lie."""
LEFT_BEHIND = "left_behind"
"""What :func:`left_behind` finds is called so in ``run.json``."""


def newest_first(folders: Sequence[Path]) -> Iterator[Path]:
    """Checkpoints below some folders, files and folders of shards: those of the newest run first, of each run the furthest first.

    Clocks are asked for the order of runs alone. Within the folder of a run, which has a ``run.json``, steps decide: a clock that
    was put back while the run went on, or that of another machine, says nothing. A file from the future is of a clock that
    was wrong then, or of before it was put back: it comes after all others. So do those of a run that began again in its folder,
    or went on from an earlier step, which were there by then.
    """
    found = (path for folder in folders for path in folder.rglob("*.ckpt"))
    paths = {path.resolve(): path for path in found if _is_checkpoint(path)}
    runs: dict[Path, list[Path]] = {}
    for path in paths.values():
        runs.setdefault(_run_of(path), []).append(path)
    now = time.time()
    ordered = sorted(runs.items(), key=lambda run: max(_written(path, now) for path in run[1]), reverse=True)
    for folder, run in ordered:
        if len(run) == 1:
            yield from run
            continue
        behind = run_record(folder).get(LEFT_BEHIND)
        known = behind if isinstance(behind, dict) else {}

        def place(
            path: Path, folder: Path = folder, known: dict[str, Any] = known
        ) -> tuple[bool, float, tuple[bool, float]]:
            name = path.relative_to(folder).as_posix()
            return known.get(name) != path.stat().st_mtime_ns, _step(path), _written(path, now)

        yield from sorted(run, key=place, reverse=True)


def left_behind(folder: Path, step: int) -> dict[str, int]:
    """Checkpoints in the folder of a run of steps that lie beyond the one at which it goes on, or begins again.

    They are of weights that it has given up: it has not come so far.

    Args:
        folder: Of the run.
        step: At which it goes on; 0 where it begins.

    Returns:
        When they were written, in nanoseconds, by their paths in the folder: one that is written anew is another.
    """
    paths = (path for depth in DEPTHS for path in folder.glob(depth))
    return {
        path.relative_to(folder).as_posix(): path.stat().st_mtime_ns
        for path in paths
        if _is_checkpoint(path) and _step(path) > step
    }


def beside_weights(path: Path) -> dict[str, Any]:
    """What a checkpoint holds; its weights stay where they are, for those that are passed over are not needed.

    Args:
        path: A file, or a folder of shards.
    """
    if is_sharded_checkpoint(path):
        return ShardedCheckpoint(path).without_tensors()
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return content


def _is_checkpoint(path: Path) -> bool:
    return path.is_file() or is_sharded_checkpoint(path)


def _run_of(path: Path) -> Path:
    """The folder of the run that a checkpoint lies in; the checkpoint itself where none says that it is one."""
    return next((folder for folder in path.parents[:3] if (folder / RECORD).is_file()), path)


def _written(path: Path, now: float) -> tuple[bool, float]:
    """When a file was written, in the order of what can be believed."""
    moment = path.stat().st_mtime
    return moment <= now + AHEAD, moment


def _step(path: Path) -> float:
    """Optimiser steps of a checkpoint; of one that cannot be read more than any, for it may have been the furthest."""
    try:
        return float(beside_weights(path)["global_step"])
    except (*UNREADABLE, KeyError):
        return math.inf
