"""One LightningDataModule per preference dataset: text in, :class:`PreferenceBatch` out."""

from . import datasets
from .base import LoaderConfig, PreferenceDataModule
from .batch import PreferenceBatch, RewardOutput
from .batches import FeatureStore
from .crowd import CrowdConfig
from .datasets import *
from .mixture import MixtureDataModule
from .prompt_batch import PromptBatch
from .prompts import PromptDataModule, PromptLoaderConfig
from .records import Comparison, Message, PreferenceRecord, RecordError, Response
from .tokens import TextConfig
from .treatments import TreatmentConfig, TreatmentRule

__all__ = [
    "Comparison",
    "CrowdConfig",
    "FeatureStore",
    "LoaderConfig",
    "Message",
    "MixtureDataModule",
    "PreferenceBatch",
    "PreferenceDataModule",
    "PreferenceRecord",
    "PromptBatch",
    "PromptDataModule",
    "PromptLoaderConfig",
    "RecordError",
    "Response",
    "RewardOutput",
    "TextConfig",
    "TreatmentConfig",
    "TreatmentRule",
]
__all__ += datasets.__all__
