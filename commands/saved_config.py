"""SavedConfig: the configuration of a run in its folder, there whole or as it was before."""

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from pluralign.datamodules.whole_files import written_whole

__all__ = ["SavedConfig"]


class SavedConfig(SaveConfigCallback):
    """Save a run's configuration as Lightning does, but for a file that is replaced once the new one is on the disk.

    A run that goes on writes it anew. On a disk that is full, Lightning's own would leave an empty file, and nobody would know
    any more what the run was.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save it, on the first rank."""
        self._folder = trainer.log_dir or trainer.default_root_dir  # every rank has to ask
        self.save_to_log_dir = "://" in self._folder
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file, unless Lightning has: on the disks of this machine.

        Raises:
            OSError: If the disk does not take it.
        """
        if self.save_to_log_dir:
            return
        text = self.parser.dump(self.config, skip_none=False)
        with written_whole(Path(self._folder) / self.config_filename) as stream:
            stream.write(text.encode())
