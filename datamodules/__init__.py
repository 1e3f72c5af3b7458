"""One LightningDataModule per preference dataset: text in, :class:`PreferenceBatch` out."""

from .base import LoaderConfig, PreferenceDataModule
from .batch import PreferenceBatch, RewardOutput
from .dsp import DSPDataModule
from .hh_rlhf import HHRLHFDataModule
from .local import LocalDataModule
from .record import Comparison, Message, PreferenceRecord, RecordError, Response
from .synthetic import SyntheticDataModule
from .text import TextConfig
from .ukpconvarg1 import UKPConvArgDataModule

__all__ = [
    "Comparison",
    "DSPDataModule",
    "HHRLHFDataModule",
    "LoaderConfig",
    "LocalDataModule",
    "Message",
    "PreferenceBatch",
    "PreferenceDataModule",
    "PreferenceRecord",
    "RecordError",
    "Response",
    "RewardOutput",
    "SyntheticDataModule",
    "TextConfig",
    "UKPConvArgDataModule",
]
