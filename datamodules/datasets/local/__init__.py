"""Preference data of your own, in whatever form it is."""

from .likely import Reading, judgement_columns, likely_reading, likely_sides, score_pairs
from .module import LocalDataModule

__all__ = [
    "LocalDataModule",
    "Reading",
    "judgement_columns",
    "likely_reading",
    "likely_sides",
    "score_pairs",
]
