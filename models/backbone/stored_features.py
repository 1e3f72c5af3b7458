"""StoredFeatures: what stands for a network whose states were computed before."""

from torch import Tensor, nn

from pluralign.datamodules.batch import PreferenceBatch

__all__ = ["StoredFeatures"]


class StoredFeatures(nn.Module):
    """Stands where the backbone would, when a run reads all its features from a store: nothing is loaded.

    Attributes:
        hidden_size: H.
    """

    layout = "separate"
    frozen = True
    vocab_size: int | None = None
    max_positions: int | None = None

    def __init__(self, hidden_size: int) -> None:
        """Remember the size.

        Args:
            hidden_size: H.
        """
        super().__init__()
        self.hidden_size = hidden_size

    def forward(self, batch: PreferenceBatch) -> Tensor:
        """Features of the batch, (R, H), as stored.

        Raises:
            ValueError: If the batch holds tokens.
        """
        if "features" not in batch:
            raise ValueError(
                "this module was built for stored features and has no network to read tokens with: load its checkpoint "
                "without loader.features, and the backbone is loaded, too"
            )
        return batch["features"]
