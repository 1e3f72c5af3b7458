"""The settings that all data modules share."""

from typing import Literal, TypedDict

from .batches import LoaderConfig
from .tokens import TextConfig

__all__ = ["LenientSettings", "OnInvalid", "SharedSettings"]

OnInvalid = Literal["error", "skip"]


class LenientSettings(TypedDict, total=False):
    """What a dataset passes on to the base if it names ``on_invalid`` itself, since it skips by default.

    The base's constructor says what the settings mean and has their defaults.
    """

    text: TextConfig
    loader: LoaderConfig
    validation_share: float
    merged_tokens: int
    cache_dir: str | None
    num_processes: int


class SharedSettings(LenientSettings, total=False):
    """What every other dataset passes on to the base."""

    on_invalid: OnInvalid
