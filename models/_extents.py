"""Whether a network can read tokens: it must have their ids and their positions."""

from collections.abc import Mapping
from typing import Protocol

from pluralign.datamodules.batch import PreferenceBatch, TextExtent

__all__ = ["batch_extents", "check_extents"]


class Bounded(Protocol):
    """What is asked of a backbone; None where it names no bound."""

    vocab_size: int | None
    max_positions: int | None


def batch_extents(batch: PreferenceBatch) -> dict[str, TextExtent]:
    """How far the tokens of a batch go; nothing if it holds none."""
    if "input_ids" not in batch:
        return {}
    longest, largest = 1 + int(batch["position_ids"].max()), int(batch["input_ids"].max())
    return {"a batch": TextExtent(longest, largest)}


def check_extents(backbone: Bounded, extents: Mapping[str, TextExtent]) -> None:
    """Make sure that a network has the tokens and positions of some data.

    Args:
        backbone: The network.
        extents: How far each part of the data goes, by what it is called in messages.

    Raises:
        ValueError: If it has not; names the part.
    """
    vocabulary, positions = backbone.vocab_size, backbone.max_positions
    for where, extent in extents.items():
        if vocabulary is not None and extent.largest_token >= vocabulary:
            raise ValueError(
                f"token id {extent.largest_token} of {where} is outside the backbone's vocabulary of {vocabulary}: "
                "data.text.tokenizer and backbone do not belong together"
            )
        if positions is not None and extent.longest > positions:
            raise ValueError(
                f"responses of {where} have up to {extent.longest} tokens with their prompt, but the backbone has "
                f"{positions} positions: set data.text.max_length to at most {positions}, or leave it out"
            )
