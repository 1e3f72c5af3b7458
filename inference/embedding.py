"""A frozen network run over a data module's texts, each text once, into a feature store."""

from collections.abc import Iterator
from pathlib import Path

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from pluralign.datamodules import PreferenceBatch, PreferenceDataModule
from pluralign.datamodules.batches import FeatureDtype, FeatureWriter
from pluralign.models import Backbone, RewardModule

from .filling import embed_features

__all__ = ["Embedder"]


class Embedder:
    """The backbone of a module, and the store that keeps what it says of texts.

    Attributes:
        backbone: The network, on its device.
        writer: The store; its length is the number of vectors that it has.
    """

    def __init__(
        self,
        model: RewardModule,
        data: PreferenceDataModule,
        folder: str | Path,
        *,
        device: torch.device | str = "cpu",
        dtype: FeatureDtype = "float16",
        prompts: bool = False,
        shard_size: int = 65_536,
    ) -> None:
        """Load the network and open the store, or make it.

        Args:
            model: Not built yet: nothing but its backbone will be.
            data: Where the texts come from.
            folder: Of the store.
            device: Where the network runs.
            dtype: Of the stored vectors.
            prompts: Whether the prompts are embedded, too.
            shard_size: Vectors of a shard, >= 1.

        Raises:
            ValueError: If the backbone is not frozen or has no name, if the folder holds a store of something else, or
                a setting is off range.
        """
        description, text_format = model.backbone_config.description(), data.text_format()
        self.backbone = Backbone(model.backbone_config).to(device)
        model.backbone, model.text_format = self.backbone, text_format
        self._model, self._data, self._device = model, data, torch.device(device)
        self.writer = FeatureWriter(
            folder,
            backbone=description,
            text_format=text_format,
            hidden_size=self.backbone.hidden_size,
            dtype=dtype,
            prompts=prompts,
            shard_size=shard_size,
        )

    def run(self, *, max_tokens: int = 16_384) -> Iterator[tuple[str, int, int]]:
        """Embed what the store does not have yet of every split; what an interrupted run has embedded is kept.

        Args:
            max_tokens: Bound on rows x padded length of a batch.

        Yields:
            Split, texts of it that are done, and how many there are to do, after every batch.

        Raises:
            ValueError: If the network cannot read a batch.
        """
        return embed_features(
            self._data,
            self._encode,
            self.writer,
            layout=self.backbone.layout,
            max_tokens=max_tokens,
            check=self._model.check_network,
        )

    def _encode(self, batch: PreferenceBatch) -> Tensor:
        features: Tensor = self.backbone(move_data_to_device(batch, self._device))
        return features
