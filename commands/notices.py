"""What the command line says of a run: how much is trained, what it kept, and which command comes next."""

import os
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

from pluralign.datamodules.batch import DataSource
from pluralign.datamodules.prompt_batch import PromptSource
from pluralign.models import EnsembleVoteRM, RespondingModule
from pluralign.models.base import datamodule_of

__all__ = ["Notices"]


MODULE = "pluralign.train"
"""What a program is that was started by name."""


class Kept(NamedTuple):
    """A checkpoint that a run left, and what it is."""

    meaning: str
    path: Path


class Notices(L.Callback):
    """Says at the start of a fit how much is trained, and at its end, which checkpoint is best and what to do with it.

    Of a fit that fails or is interrupted it says which checkpoint there is to go on from.
    """

    def __init__(self) -> None:
        """Know nothing of a run yet."""
        self._config: Path | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Note where the configuration is saved; every rank has to ask."""
        self._config = Path(trainer.log_dir or trainer.default_root_dir) / "config.yaml"

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say how much is trained."""
        parameters = list(pl_module.parameters())
        trained = sum(each.numel() for each in parameters if each.requires_grad)
        # A quantised base packs several weights into a number.
        whole = all(each.is_floating_point() for each in parameters)
        of = f" of {sum(each.numel() for each in parameters):,}" if whole else ""
        _say(trainer, f"{trained:,}{of} parameters are trained")

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Say what a fit kept, and the next command."""
        if stage != "fit" or not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        kept = _kept(trainer)
        for each in kept:
            _say(trainer, f"{each.meaning}: {each.path}")
        if not kept:
            _say(trainer, "no checkpoint was kept")
        elif self._config is not None and self._config.is_file():
            for verb in _next_verbs(trainer, pl_module):
                _say(trainer, f"next: {_command(verb, self._config, kept[0].path)}")

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Say from which checkpoint a fit can go on."""
        kept = _kept(trainer) if trainer.is_global_zero and trainer.training else []
        if kept and self._config is not None and self._config.is_file():
            _say(
                trainer, f"to go on from the last checkpoint: {_command('fit', self._config, kept[-1].path)}"
            )


def _next_verbs(trainer: L.Trainer, module: L.LightningModule) -> list[str]:
    """What is done with a checkpoint of a module."""
    data = datamodule_of(trainer)
    splits = data.splits if isinstance(data, DataSource | PromptSource) else ()
    measure = "test" if "test" in splits else "validate"
    if isinstance(module, RespondingModule):
        return [measure, "generate"]
    votes = isinstance(module, EnsembleVoteRM) and len(module.columns) > 1
    # To vote is what an ensemble is for.
    return [*(["vote"] if votes else []), measure, *(["predict"] if "predict" in splits else [])]


def _kept(trainer: L.Trainer) -> list[Kept]:
    """Checkpoints that are there: the best by each number that is watched, then the last."""
    best: list[Kept] = []
    others: list[Path] = []
    for callback in trainer.checkpoint_callbacks:
        if not isinstance(callback, ModelCheckpoint):
            continue
        if callback.monitor is None or callback.best_model_score is None:
            others.append(Path(callback.best_model_path))
        elif Path(callback.best_model_path).is_file():
            what = f"best checkpoint by {callback.monitor} ({callback.best_model_score:.4g})"
            best.append(Kept(what, _near(callback.best_model_path)))
        others.append(Path(callback.last_model_path))
    there = [path for path in others if path.exists() and path.name]
    if there:
        last = max(there, key=lambda path: path.stat().st_mtime)
        unknown = (
            "" if best else " (which is best is unknown: no ModelCheckpoint has a monitor, such as val/loss)"
        )
        best.append(Kept(f"last checkpoint{unknown}", _near(last)))
    return best


def _near(path: str | Path) -> Path:
    """The path as seen from here, if it lies below."""
    whole, here = Path(path).absolute(), Path.cwd()
    return whole.relative_to(here) if whole.is_relative_to(here) else whole


def _command(verb: str, config: Path, checkpoint: Path) -> str:
    """What to type; the program is called as it was."""
    called, started = sys.argv[0], sys.modules["__main__"].__spec__
    program = ["pluralign"]
    if started is not None and started.name == MODULE:
        program = ["python", "-m", MODULE]
    elif os.path.basename(called) == "train.py":
        program = ["python", called]
    return shlex.join([*program, verb, "--config", str(_near(config)), "--ckpt_path", str(checkpoint)])


def _say(trainer: L.Trainer, line: str) -> None:
    if trainer.is_global_zero:
        print(line, flush=True)
