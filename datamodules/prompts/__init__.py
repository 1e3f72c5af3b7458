"""Prompts become a batch: preferences, tokens, order and the data module that has them in common."""

from .base import PromptDataModule
from .config import OpenPromptSettings, PromptLoaderConfig, PromptSettings
from .loader import PromptDataLoader
from .preferences import PreferenceSpace
from .record import PromptRecord
from .report import PromptReport

__all__ = [
    "OpenPromptSettings",
    "PreferenceSpace",
    "PromptDataLoader",
    "PromptDataModule",
    "PromptLoaderConfig",
    "PromptRecord",
    "PromptReport",
    "PromptSettings",
]
