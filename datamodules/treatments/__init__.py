"""Treatments of training labels by their strength: kept, flipped, smoothed, dropped, or with a margin."""

from .config import TreatmentConfig, TreatmentRule
from .decisions import NO_RULE, CoverReport, Decisions, TreatmentReport, decide
from .strengths import (
    Strengths,
    VotedStrengths,
    check_names,
    given_strengths,
    joined_values,
    voted_strengths,
)
from .treated_labels import treated_batch, treated_comparisons
from .view import TreatedView

__all__ = [
    "NO_RULE",
    "CoverReport",
    "Decisions",
    "Strengths",
    "TreatedView",
    "TreatmentConfig",
    "TreatmentReport",
    "TreatmentRule",
    "VotedStrengths",
    "check_names",
    "decide",
    "given_strengths",
    "joined_values",
    "treated_batch",
    "treated_comparisons",
    "voted_strengths",
]
