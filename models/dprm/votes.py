"""Votes on responses or on comparisons: where a batch has them, and what is to be learned of them."""

import math
from typing import Literal, NamedTuple

from torch import Tensor

from pluralign.datamodules.batch import PreferenceBatch

__all__ = ["VOTES", "Judged", "JudgedVotes"]

Judged = Literal["responses", "comparisons"]


def _are_shares(shares: Tensor) -> bool:
    if not shares.numel():
        return True
    low, high = shares.aminmax()  # both NaN if anything is
    return float(low) >= 0 and math.isfinite(high)


class JudgedVotes(NamedTuple):
    """Keys of what a batch knows of the judged items."""

    votes: Literal["votes", "comparison_votes"]
    target: Literal["target", "comparison_target"]
    target_votes: Literal["target_votes", "comparison_target_votes"]

    def shares(self, batch: PreferenceBatch) -> tuple[Tensor, Tensor]:
        """Shares of the labels to learn, and how many votes they are worth.

        Args:
            batch: With a target, as the data modules make it, else with the votes alone.

        Returns:
            (items, K) and (items,), float32.

        Raises:
            ValueError: If a share is negative or not finite, as in batches made by hand; asked on the host alone, since
                reading makes a device wait.
        """
        if self.target in batch:
            shares, total = batch[self.target], batch[self.target_votes]
        else:
            votes = batch[self.votes].float()
            total = votes.sum(-1)
            shares = votes / total.unsqueeze(-1)
        if shares.device.type == "cpu" and not _are_shares(shares):
            item = int((~((shares >= 0) & shares.isfinite())).any(-1).nonzero()[0])
            raise ValueError(
                f"{self.votes}: item {item} of the batch has the shares {shares[item].tolist()} of {shares.shape[-1]} "
                "labels, which must be >= 0 and finite: every item needs votes >= 0, and at least one of them or a prior"
            )
        return shares, total

    def check_labels(self, batch: PreferenceBatch, labels: tuple[str, ...]) -> None:
        """Make sure that the votes are of these labels.

        Raises:
            ValueError: If there are more or fewer of them.
        """
        size = batch[self.votes].shape[-1]
        if size != len(labels):
            raise ValueError(
                f"the data's {self.votes} count {size} labels, the head has {len(labels)} ({', '.join(labels)}): set "
                "model.labels and model.rewards to those of the data"
            )


VOTES: dict[Judged, JudgedVotes] = {
    "responses": JudgedVotes("votes", "target", "target_votes"),
    "comparisons": JudgedVotes("comparison_votes", "comparison_target", "comparison_target_votes"),
}
