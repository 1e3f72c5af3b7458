"""What is measured: agreement with people, users and groups, crowds of votes, each with intervals where they mean much."""

from .crowd import NUM_BINS, SMALLEST_PROBABILITY, Bin, CrowdTable, crowd_table, item_values
from .estimate import Estimate, bootstrap, bootstrap_means, bootstrap_sums, percentile_interval
from .paired import crossed_estimates
from .preference import TIE, PreferenceMetrics, log_loss, outcomes, within_prompts
from .prototypes import Example, Extremes, PrototypeTable, Sample, principal_plane
from .users import UserAccuracy, UserSummary, user_margin_accuracy, user_summary

__all__ = [
    "NUM_BINS",
    "SMALLEST_PROBABILITY",
    "TIE",
    "Bin",
    "CrowdTable",
    "Estimate",
    "Example",
    "Extremes",
    "PreferenceMetrics",
    "PrototypeTable",
    "Sample",
    "UserAccuracy",
    "UserSummary",
    "bootstrap",
    "bootstrap_means",
    "bootstrap_sums",
    "crossed_estimates",
    "crowd_table",
    "item_values",
    "log_loss",
    "outcomes",
    "percentile_interval",
    "principal_plane",
    "user_margin_accuracy",
    "user_summary",
    "within_prompts",
]
