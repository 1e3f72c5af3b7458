"""The folder of a stage: what says that it is complete, the checkpoints in it, and who works in it."""

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pluralign import __version__
from pluralign.datamodules.untrusted import UNREADABLE, json_object, path_inside
from pluralign.datamodules.whole_files import written_whole

from .checkpoints import best_checkpoint
from .newest import newest_first
from .stage_settings import Inputs

if sys.platform != "win32":
    import fcntl

__all__ = ["Completed", "KeptFile", "RunCheckpoint", "StageFolder", "last_of_name", "weights_digest"]

COMPLETE, LOCK = "complete.json", ".lock"


@dataclass(frozen=True)
class KeptFile:
    """A checkpoint that a stage gives to others.

    Attributes:
        path: Relative to the stage's folder.
        sha256: Of its bytes.
        size: In bytes.
        weights: Of its weights alone (:func:`weights_digest`): what decides a stage that starts from it.
    """

    path: str
    sha256: str
    size: int
    weights: str


@dataclass(frozen=True)
class Completed:
    """What ``complete.json`` says.

    Attributes:
        inputs: What decided the weights.
        checkpoints: By what they are: ``last``, and ``best`` where something was monitored.
        metrics: Latest validation metrics of the checkpoint that other stages start from; empty if it keeps none.
        step: Its optimiser steps; 0 of an interpolation.
        finished: When, in local time.
        validated: Optimiser steps at the validation that the metrics are of; None if that is not known.
        version: Of pluralign.
    """

    inputs: Inputs
    checkpoints: dict[str, KeptFile]
    metrics: dict[str, float]
    step: int
    finished: str
    validated: int | None = None
    version: str = __version__


class RunCheckpoint(NamedTuple):
    """A checkpoint of a run, which can be read.

    Attributes:
        path: Where it is.
        content: What it holds; weights are mapped, not read.
    """

    path: Path
    content: dict[str, Any]

    @property
    def whole(self) -> bool:
        """Whether a run can go on from it."""
        return "optimizer_states" in self.content

    @property
    def step(self) -> int:
        """Optimiser steps until then."""
        return int(self.content.get("global_step", 0))

    @property
    def _run(self) -> dict[str, Any]:
        """What it keeps of its run, if not weights alone."""
        run: dict[str, Any] = self.content.get("pluralign", {}).get("run", {})
        return run

    @property
    def validated(self) -> int | None:
        """Optimiser steps at the validation that the metrics are of."""
        return self._run.get("validated")

    @property
    def metrics(self) -> dict[str, float]:
        """Latest validation metrics of the run until then."""
        shown = self._run.get("shown", {})
        return {name: float(value) for name, value in sorted(shown.items()) if name.startswith("val/")}


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def weights_digest(path: Path) -> str:
    """SHA-256 of a checkpoint's weights and text format, which is all that a run takes over that starts from it.

    The file's own bytes also say when it was written and how fast the run was.
    """
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    digest = hashlib.sha256()

    def add(value: object) -> None:
        if isinstance(value, torch.Tensor):
            digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
            digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        elif isinstance(value, Mapping):
            for key in sorted(value, key=str):
                digest.update(f"{key}:".encode())
                add(value[key])
        elif isinstance(value, list | tuple):
            for each in value:
                add(each)
        else:
            digest.update(repr(value).encode())

    add({"weights": content["state_dict"], "text": content.get("pluralign", {}).get("text_format")})
    return digest.hexdigest()


class StageFolder:
    """A folder whose name says which stage it is, and of which inputs."""

    def __init__(self, folder: Path, name: str, inputs: Inputs) -> None:
        """Name it; nothing is read or made.

        Args:
            folder: Of the chain.
            name: Of the stage.
            inputs: What decides its weights, with where it starts.
        """
        text = json.dumps(inputs, sort_keys=True)
        self.path = folder / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        self.inputs = inputs

    def completed(self) -> Completed | None:
        """What the complete stage left; None if it is not complete.

        Raises:
            ValueError: If it was complete, and is no more.
        """
        path = self.path / COMPLETE
        if not path.is_file():
            return None
        completed = read_completed(path)
        again = f"put it back, or remove {self.path} to run the stage again"
        for kept in completed.checkpoints.values():
            file = self.path / kept.path
            if not file.is_file():
                raise ValueError(f"{path} says that the stage is complete, but {file} is gone; {again}")
            if file.stat().st_size != kept.size:
                raise ValueError(
                    f"{file} is not as the stage left it: it has {file.stat().st_size:,} of {kept.size:,} bytes; {again}"
                )
            if file_digest(file) != kept.sha256:
                raise ValueError(f"{file} is not as the stage left it: its bytes are others; {again}")
        return completed

    def newest(self, *, whole: bool) -> RunCheckpoint | None:
        """The newest checkpoint that can be read; of those that a run can go on from, if ``whole``."""
        for path in newest_first([self.path]):
            try:
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except UNREADABLE:
                continue
            newest = RunCheckpoint(path, content)
            if "state_dict" in content and (newest.whole or not whole):
                return newest
        return None

    def complete(
        self, checkpoints: dict[str, Path], metrics: dict[str, float], step: int, validated: int | None
    ) -> Completed:
        """Say that the stage is complete.

        Args:
            checkpoints: Files in the folder, by what they are.
            metrics: As in :class:`Completed`.
            step: Likewise.
            validated: Likewise.
        """
        kept = {
            what: KeptFile(
                path.relative_to(self.path).as_posix(),
                file_digest(path),
                path.stat().st_size,
                weights_digest(path),
            )
            for what, path in checkpoints.items()
        }
        finished = time.strftime("%Y-%m-%d %H:%M:%S")
        completed = Completed(self.inputs, kept, metrics, step, finished, validated)
        with written_whole(self.path / COMPLETE) as stream:
            stream.write(f"{json.dumps(asdict(completed), indent=1)}\n".encode())
        return completed

    def complete_fit(self, *, best: bool) -> Completed:
        """Say that a fit that has ended is complete.

        Args:
            best: Whether the stages after it start from its best checkpoint.

        Raises:
            FileNotFoundError: If it left no checkpoint, or no best one.
        """
        newest = self.newest(whole=False)
        if newest is None:
            raise FileNotFoundError(f"{self.path}: the run has ended and left no checkpoint")
        checkpoints, given = {"last": newest.path}, newest
        if best:
            path = best_checkpoint(newest.path, newest.content)
            checkpoints["best"] = path
            given = RunCheckpoint(path, torch.load(path, map_location="cpu", weights_only=True, mmap=True))
        return self.complete(checkpoints, given.metrics, given.step, given.validated)

    def complete_interpolation(self, path: Path) -> Completed:
        """Say that an interpolation is complete.

        Args:
            path: The checkpoint that it wrote; its report lies beside it.
        """
        report = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        return self.complete({"last": path, "best": path}, report["metrics"], 0, 0)

    @contextmanager
    def work(self, rank: int, say: Callable[[str], None]) -> Iterator[tuple[int, ...]]:
        """Be the only one who works in the folder; wait while another process does.

        Args:
            rank: Of this process; each has a lock of its own.
            say: Told if it has to wait.

        Yields:
            Descriptors that a process which does the work inherits, so that the folder stays locked if this one dies.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if sys.platform == "win32":
            yield ()
            return
        with (self.path / f"{LOCK}-{rank}").open("a") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"another process works in {self.path}; waiting until it has ended")
                fcntl.flock(stream, fcntl.LOCK_EX)
            os.set_inheritable(stream.fileno(), True)
            yield (stream.fileno(),)


def read_completed(path: Path) -> Completed:
    """What a file ``complete.json`` says.

    Raises:
        ValueError: If it is none.
    """
    try:
        content = json_object(path)
        kept = {what: KeptFile(**values) for what, values in content.pop("checkpoints").items()}
        for file in kept.values():
            path_inside(path.parent, file.path)
        return Completed(checkpoints=kept, **content)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); remove {path.parent} to run the stage again"
        ) from error


def last_of_name(folder: Path, name: str) -> Completed | None:
    """The newest complete stage of a name, whatever its inputs."""
    paths = sorted(
        folder.glob(f"{name}-{'[0-9a-f]' * 8}/{COMPLETE}"), key=lambda path: path.stat().st_mtime_ns
    )
    return read_completed(paths[-1]) if paths else None
