"""TextData: the text settings of every data module, the tokenizer they settle on, and the network that reads the text."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import lightning as L
import torch
from lightning.fabric.utilities import move_data_to_device

from .batch import TextFormat
from .records import is_remote, without_secrets
from .tokens import RecordTokenizer, TextConfig

__all__ = ["ReadsText", "TextData"]


class ReadsText(Protocol):
    """A module whose network will read the text."""

    @property
    def max_positions(self) -> int | None:
        """Positions that the network has; None if that is not known, or it has no bound."""
        ...


class TextData(L.LightningDataModule):
    """What every data module is at least: text under a settled format.

    Attributes:
        name: Short name of the dataset.
        network: Module whose positions bound texts where ``text.max_length`` does not; None for the trainer's.
    """

    name: str  # pyright: ignore[reportIncompatibleVariableOverride]  Lightning leaves it unset

    def __init__(self, *, text: TextConfig = TextConfig(), cache_dir: str | None = None) -> None:
        """Keep the settings; reads nothing.

        Args:
            text: Tokenizer, format and truncation.
            cache_dir: Folder of token caches; None for ``$PLURALIGN_CACHE`` or ``~/.cache/pluralign``.

        Raises:
            ValueError: If the folder is one of a store (``s3://...``).
        """
        super().__init__()
        _refuse_store("cache_dir", cache_dir)
        self.text, self.cache_dir = text, cache_dir
        self.network: ReadsText | None = None
        self._tokenizer: RecordTokenizer | None = None

    @property
    def tokenizer(self) -> RecordTokenizer:
        """The tokenizer with its settled format; loaded on first use, when the model should be known."""
        if self._tokenizer is None:
            limit = self.text.max_length or self.max_positions()
            self._tokenizer = RecordTokenizer(replace(self.text, max_length=limit))
        return self._tokenizer

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:  # noqa: ANN401  Lightning's types
        """Move a batch, and look at none of its records by itself: their names are long lists.

        Args:
            batch: A batch of any kind.
            device: Where to.
            dataloader_idx: Which loader it is from.
        """
        return _moved(batch, device)

    def save_tokenizer(self, folder: str | Path) -> None:
        """Write the tokenizer in transformers' format."""
        self.tokenizer.tokenizer.save_pretrained(str(folder))

    def text_format(self) -> TextFormat:
        """The settled text format; stored with every checkpoint, so that later scoring uses the same."""
        return self.tokenizer.fingerprint()

    def max_positions(self) -> int | None:
        """Positions of the network that will read the text; None if it has no bound, or nobody knows it yet."""
        module = self.network or getattr(self.trainer, "lightning_module", None)
        return getattr(module, "max_positions", None)

    def cache_root(self) -> Path:
        """Folder of all caches.

        Raises:
            ValueError: If ``$PLURALIGN_CACHE`` is a folder of a store.
        """
        named = os.environ.get("PLURALIGN_CACHE")
        _refuse_store("$PLURALIGN_CACHE", named)
        return Path(self.cache_dir or named or Path.home() / ".cache" / "pluralign")


def _refuse_store(setting: str, folder: str | None) -> None:
    """Refuse a store for caches, which are mapped into memory."""
    if folder is not None and is_remote(folder):
        raise ValueError(
            f"{setting} must be a folder of this machine, or of a file system that machines share, got {without_secrets(folder)!r}: token "
            "caches are mapped into memory. Write it here (`pluralign tokenise`), copy the cache's folder to the store, and from "
            "there into cache_dir of each machine"
        )


def _moved(values: Any, device: torch.device) -> Any:  # noqa: ANN401  whatever a loader gives
    if type(values) is dict:
        return {name: _moved(value, device) for name, value in values.items()}
    if isinstance(values, list) and all(isinstance(value, str | int) for value in values[:1]):
        return values  # plain values, all of a kind
    return move_data_to_device(values, device)
