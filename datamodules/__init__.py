"""One LightningDataModule per preference dataset: text in, :class:`PreferenceBatch` out."""

from .base import LoaderConfig, PreferenceDataModule
from .batch import PreferenceBatch, RewardOutput
from .record import Comparison, Message, PreferenceRecord, RecordError, Response
from .text import TextConfig

__all__ = [
    "Comparison",
    "LoaderConfig",
    "Message",
    "PreferenceBatch",
    "PreferenceDataModule",
    "PreferenceRecord",
    "RecordError",
    "Response",
    "RewardOutput",
    "TextConfig",
]
