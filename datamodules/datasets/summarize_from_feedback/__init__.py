"""TL;DR comparisons."""

from .module import SummarizeFromFeedbackDataModule

__all__ = ["SummarizeFromFeedbackDataModule"]
