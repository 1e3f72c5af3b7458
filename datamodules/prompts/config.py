"""The settings that all data modules of prompts share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

from ..checks import check_range
from ..settings import OnInvalid
from ..tokens import TextConfig

__all__ = ["Combinations", "OpenPromptSettings", "PromptLoaderConfig", "PromptSettings"]

Combinations = Literal["all", "draw"] | list[list[str]]
"""Which preferences prompts come with: every full combination, one of them an epoch, or those of a list."""


@dataclass(frozen=True)
class PromptLoaderConfig:
    """How items become batches: their number, order and workers.

    Attributes:
        batch_size: Items of a batch, on each device. Of prompts of a split that have several preferences each is an item.
        mega_batch: Batches' worth of items that are sorted by length together, so that rows of a batch are alike in length.
        shuffle: Whether training order is random, anew each epoch by seed and epoch.
        seed: Of the order, and of the preferences that are drawn.
        num_workers: Processes that make batches; 0 makes them in the training process.
    """

    batch_size: int = 16
    mega_batch: int = 16
    shuffle: bool = True
    seed: int = 0
    num_workers: int = 0

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            ValueError: Naming the argument, its value and what is allowed.
        """
        for name, low in (("batch_size", 1), ("mega_batch", 1), ("seed", 0), ("num_workers", 0)):
            check_range(f"loader.{name}", getattr(self, name), at_least=low)


class OpenPromptSettings(TypedDict, total=False):
    """What a data set that names ``held_out`` itself passes on to the base, whose constructor says what the settings mean."""

    text: TextConfig
    loader: PromptLoaderConfig
    preferences: Combinations
    max_new_tokens: int | None
    on_invalid: OnInvalid
    validation_share: float
    test_share: float
    cache_dir: str | None


class PromptSettings(OpenPromptSettings, total=False):
    """What every other data set of prompts passes on to the base."""

    held_out: Sequence[Sequence[str]]
