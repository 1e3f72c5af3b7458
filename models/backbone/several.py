"""Several: networks of one configuration, each with weights of its own, that read a batch one after the other."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pluralign.datamodules.batch import PreferenceBatch

from .network import Backbone
from .stored_features import StoredFeatures

__all__ = ["Several"]


class Several(nn.Module):
    """M networks that stand where one backbone would: M times its weights, and M passes over a batch.

    Attributes:
        networks: The networks, M >= 1, alike but for their weights.
        hidden_size: H.
        layout: Of the rows that all of them take.
        vocab_size: As :class:`Backbone` has it.
        max_positions: As :class:`Backbone` has it.
    """

    def __init__(self, networks: Sequence[Backbone | StoredFeatures]) -> None:
        """Keep them.

        Args:
            networks: Of one configuration.

        Raises:
            ValueError: If there are none.
        """
        super().__init__()
        if not networks:
            raise ValueError("networks must hold at least one, got none")
        first = networks[0]
        self.networks = nn.ModuleList(networks)
        self.hidden_size, self.layout = first.hidden_size, first.layout
        self.vocab_size, self.max_positions = first.vocab_size, first.max_positions

    def forward(self, batch: PreferenceBatch) -> Tensor:
        """States of the responses as each network has them, (M, R, H), in the backbone's dtype."""
        return torch.stack([network(batch) for network in self.networks])
