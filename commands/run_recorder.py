"""``run.json`` of a run's folder: what ran on what, with which data, how far it came and how well it went."""

import json
import math
import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from pluralign.callbacks import SkippedSteps
from pluralign.datamodules.prepared import PreparedData
from pluralign.datamodules.whole_files import written_whole
from pluralign.inference.private import homeless
from pluralign.inference.run_files import RECORD, VERSION, run_record
from pluralign.models.base import BaseModule, datamodule_of

from .newest import LEFT_BEHIND, left_behind
from .run_surroundings import device_name, git_state, host_code, plain_words, versions

__all__ = ["RunRecorder", "better_of"]

HEARTBEAT = 60.0
"""Seconds after which a run says that it is still there."""
SHRINKING = ("loss", "error", "brier", "distance", "wasserstein", "perplexity", "divergence")
GROWING = ("accuracy", "auc", "win_rate")
"""Words in the names of numbers of which the smaller one is better, and the larger one."""
COUNTS = ("rows", "records", "responses", "comparisons", "prompts", "cut_prompts", "invalid", "dropped")
"""What is kept of a split's report, as far as it has it."""


def better_of(name: str) -> Literal["min", "max"] | None:
    """Which values of a number are better, going by its name; None where it does not say.

    Args:
        name: Of what was measured.
    """
    if any(word in name for word in SHRINKING):
        return "min"
    return "max" if any(word in name for word in GROWING) else None


class RunRecorder(L.Callback):
    """Keeps ``run.json`` in the run's folder: written whole, by the first rank, while the run goes on and at its end.

    A run that goes on after a checkpoint adds a session to those before. Who is killed leaves ``running`` there, with a process
    that is no more and a time that has passed.
    """

    def __init__(self, words: Sequence[str]) -> None:
        """Keep the words that started the run, without secrets."""
        self.words = plain_words(words)
        self._path: Path | None = None
        self._written = 0.0
        self.record: dict[str, Any] = {}

    # Hooks ---------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say what runs."""
        folder = trainer.log_dir or trainer.default_root_dir  # every rank has to ask
        if not trainer.is_global_zero or trainer.fast_dev_run or "://" in str(folder):  # type: ignore[attr-defined]
            return
        self._path = Path(folder) / RECORD
        before = _earlier(self._path.parent) if trainer.ckpt_path else {}
        parameters = list(pl_module.parameters())
        session = {
            "command": self.words,
            "started": _now(),
            "ended": None,
            "status": "running",
            "from_step": None,
            "to_step": None,
            "host": host_code(),
            "process": os.getpid(),
            "git": git_state(Path.cwd()),
            "versions": versions(),
            "device": device_name(trainer.strategy.root_device),
            "processes": trainer.world_size,
            "precision": str(trainer.precision),
        }
        self.record = {
            "version": VERSION,
            "method": type(pl_module).__name__,
            "data": _data(datamodule_of(trainer)),
            "trained_parameters": sum(each.numel() for each in parameters if each.requires_grad),
            "sessions": [*before.get("sessions", []), session],
            "monitor": None,
            "numbers": before.get("numbers", {}),
            "checkpoints": before.get("checkpoints", {}),
            LEFT_BEHIND: before.get(LEFT_BEHIND, {}),  # until this session has begun
        }
        self._write(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note where the run begins: by now a checkpoint is restored."""
        if self._path is not None:
            self.record["sessions"][-1]["from_step"] = trainer.global_step
            self.record[LEFT_BEHIND] = left_behind(self._path.parent, trainer.global_step)
            if isinstance(pl_module, BaseModule) and pl_module.max_tokens is not None:
                self.record["data"]["max_tokens"] = pl_module.max_tokens
            self._write(trainer)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Say once a minute that the run is still there."""
        if self._path is not None and time.monotonic() - self._written > HEARTBEAT:
            self._write(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep what was measured, and the best of it."""
        if self._path is None or trainer.sanity_checking:
            return
        self._note_numbers(trainer)
        self._write(trainer)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say that it is over."""
        self._end(trainer, "finished")

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Say what ended it."""
        if isinstance(exception, KeyboardInterrupt | SIGTERMException | SystemExit):
            self._end(trainer, "interrupted")
        else:
            lines = str(exception).splitlines() or [""]
            self._end(trainer, "failed", error=homeless(f"{type(exception).__name__}: {lines[0]}"))

    # What is kept --------------------------------------------------------------------------------------

    def _note_numbers(self, trainer: L.Trainer) -> None:
        watched = {
            callback.monitor: callback.mode
            for callback in trainer.checkpoint_callbacks
            if isinstance(callback, ModelCheckpoint) and callback.monitor is not None
        }
        for name, tensor in trainer.callback_metrics.items():
            value = float(tensor)
            if not name.startswith("val/") or "dataloader_idx" in name or not math.isfinite(value):
                continue
            better = watched.get(name) or better_of(name)
            now = {"value": value, "step": trainer.global_step}
            best = self.record["numbers"].get(name, {}).get("best") or now
            if better is not None and (value < best["value"] if better == "min" else value > best["value"]):
                best = now
            self.record["numbers"][name] = {"last": now, "best": best if better else None}

    def _end(self, trainer: L.Trainer, status: str, **more: str) -> None:
        if self._path is None or self.record["sessions"][-1]["status"] != "running":
            return
        self.record["sessions"][-1] |= {"status": status, "ended": _now(), **more}
        try:
            self._write(trainer)
        except OSError:
            if status == "finished":  # else what ended the run is the message to see
                raise

    def _write(self, trainer: L.Trainer) -> None:
        assert self._path is not None  # the callers look
        session = self.record["sessions"][-1]
        session["to_step"] = trainer.global_step
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint):
                self.record["monitor"] = self.record["monitor"] or callback.monitor
                for which in ("best", "last"):
                    if path := getattr(callback, f"{which}_model_path"):
                        self.record["checkpoints"][which] = _below(Path(path), self._path.parent)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, SkippedSteps):
                self.record["skipped_steps"] = callback.total
        self.record |= {
            "status": session["status"],
            "step": trainer.global_step,
            "epoch": trainer.current_epoch,
            "updated": _now(),
        }
        with written_whole(self._path) as stream:
            text = json.dumps(self.record, ensure_ascii=False, indent=1, allow_nan=False, default=str)
            stream.write(f"{text}\n".encode())
        self._written = time.monotonic()


def _data(data: object) -> dict[str, Any]:
    """A data module by class, fingerprint and what became of the rows."""
    known: dict[str, Any] = {"class": type(data).__name__, "name": getattr(data, "name", "")}
    if isinstance(data, PreparedData):
        known["caches"] = {name: path.name for name, path in data.cache_folders().items()}
    reports: dict[str, object] = getattr(data, "reports", {})
    known["splits"] = {
        split: {
            name: dict(value) if isinstance(value, dict) else value
            for name in COUNTS
            if (value := getattr(report, name, None)) is not None
        }
        for split, report in reports.items()
    }
    return known


def _below(path: Path, folder: Path) -> str:
    """A path as seen from the run's folder, if it lies below."""
    whole, root = path.absolute(), folder.absolute()
    return str(whole.relative_to(root)) if whole.is_relative_to(root) else homeless(str(path))


def _earlier(folder: Path) -> dict[str, Any]:
    """What is kept of the run that goes on; nothing where there is nothing, or nothing that can be read."""
    content = run_record(folder)
    last = content["sessions"][-1] if content.get("sessions") else {}
    if last.get("status") == "running":
        last["status"] = "stopped"  # it was killed: whoever goes on knows
        last["ended"] = content.get("updated")
    return content


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
