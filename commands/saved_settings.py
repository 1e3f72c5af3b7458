"""Configurations as runs keep them: whole or as they were before, and without what lets somebody in elsewhere."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_warn

from pluralign.datamodules.whole_files import written_whole
from pluralign.inference.private import MASK, is_credential, without_login

__all__ = ["SettingsSaver", "without_credentials"]


class SettingsSaver(SaveConfigCallback):
    """Saves a run's configuration as Lightning does, with ``***`` in the place of keys, tokens and passwords.

    A run that goes on writes it anew, in place of the one of before once it is on the disk: on one that is full, Lightning's own
    would leave an empty file, and nobody would know any more what the run was.
    """

    def __init__(self, parser: LightningArgumentParser, config: Namespace, **settings: Any) -> None:  # noqa: ANN401  Lightning's
        """Take them out.

        Args:
            parser: That read the configuration.
            config: The configuration; stays as it is.
            **settings: As Lightning has them.
        """
        found: list[str] = []
        kept = without_credentials(config.clone(), found)
        if found:
            rank_zero_warn(
                f"{', '.join(found)}: the run's config.yaml has {MASK} in place of a secret, which whoever runs it again gives "
                "anew; an environment variable is a better place for it"
            )
        super().__init__(parser, kept, **settings)

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


def without_credentials(settings: Any, found: list[str], name: str = "") -> Any:  # noqa: ANN401  plain values, nested
    """Settings with ``***`` in the place of credentials.

    Args:
        settings: Namespaces, mappings and lists are changed in place, tuples made anew.
        found: Gets the names of what was taken out.
        name: Of the settings as a whole.

    Returns:
        The settings; of a credential ``***``.
    """
    if isinstance(settings, Namespace | dict):
        inner: Mapping[str, Any] = vars(settings) if isinstance(settings, Namespace) else settings
        for key in [*inner]:
            value = without_credentials(inner[key], found, f"{name}.{key}".lstrip("."))
            settings[key] = value
    elif isinstance(settings, list):
        settings[:] = [without_credentials(each, found, name) for each in settings]
    elif type(settings) is tuple:
        return tuple(without_credentials(each, found, name) for each in settings)
    elif isinstance(settings, str) and settings:
        kept = MASK if is_credential(name.rpartition(".")[2]) else without_login(settings)
        if kept != settings:
            found.append(name)
        return kept
    return settings
