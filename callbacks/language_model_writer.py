"""LanguageModelWriter: what a run has trained, as a folder that transformers or PEFT loads."""

import shutil
from pathlib import Path
from typing import Protocol, runtime_checkable

import lightning as L
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from pluralign.datamodules.prompt_batch import PromptSource
from pluralign.datamodules.whole_files import could_not_write
from pluralign.models.base import BaseModule, datamodule_of

__all__ = ["LanguageModelWriter"]


@runtime_checkable
class HasTokenizer(Protocol):
    """Data whose tokenizer can be written."""

    def save_tokenizer(self, folder: str | Path) -> None:
        """Write it."""
        ...


class LanguageModelWriter(L.Callback):
    """Write a policy, an expert or any other module with a language-model head for those who use it without this package.

    The folder holds the whole model, for ``AutoModelForCausalLM.from_pretrained``, or, of a backbone with adapters, these
    alone: ``PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)``, and an expert of PCM. The tokenizer is
    beside it, and what ends a response is in its generation settings. A folder that is there is replaced once the new one is
    complete; where that fails, it stays as it was.

    Weights are written in the backbone's dtype as they are at the end of the fit; an average of weights that another callback
    keeps is not looked at.
    """

    def __init__(self, folder: str = "language_model", *, every_validation: bool = False) -> None:
        """Name the folder.

        Args:
            folder: Folder in the trainer's log folder, or an absolute path.
            every_validation: Whether it is written after every validation of a fit, too.
        """
        self.folder, self.every_validation = folder, every_validation

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Make sure, before the fit, that there will be something to write.

        Raises:
            TypeError: If the module is none that could be written.
            ValueError: If it has no language-model head, or its weights are sharded over processes.
        """
        if not isinstance(pl_module, BaseModule):
            raise TypeError(
                f"LanguageModelWriter writes modules of this package, got {type(pl_module).__name__}"
            )
        pl_module.language_backbone()
        sharded = isinstance(trainer.strategy, (FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy))
        if sharded:
            raise ValueError(
                "LanguageModelWriter writes weights that a process has as a whole: leave it out of sharded runs, load the "
                "checkpoint in one process and call save_language_model() there"
            )

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write, if that is asked for."""
        if self.every_validation and trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._write(trainer, pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write."""
        self._write(trainer, pl_module)

    def path(self, trainer: L.Trainer) -> Path:
        """Where the folder is; every rank has to ask."""
        return Path(trainer.log_dir or trainer.default_root_dir) / self.folder

    def _write(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        target = self.path(trainer)  # every rank has to ask
        if not trainer.is_global_zero:
            return
        assert isinstance(module, BaseModule)  # since the start of the fit
        data = datamodule_of(trainer)
        ends = (data.end_id, data.pad_id) if isinstance(data, PromptSource) else (None, None)
        new, old = (target.with_name(f".{target.name}.{ending}") for ending in ("part", "old"))
        try:
            shutil.rmtree(new, ignore_errors=True)  # of a process that was killed
            new.mkdir(parents=True)
            module.save_language_model(new, end_id=ends[0], pad_id=ends[1])
            if isinstance(data, HasTokenizer):
                data.save_tokenizer(new)
            if target.exists():
                shutil.rmtree(old, ignore_errors=True)
                target.replace(old)
            new.replace(target)
        except BaseException as error:
            if old.exists() and not target.exists():
                old.replace(target)
            shutil.rmtree(new, ignore_errors=True)
            if isinstance(error, OSError):
                raise could_not_write(target, error) from error
            raise
        shutil.rmtree(old, ignore_errors=True)
        rank_zero_info(f"language model: {target}")
