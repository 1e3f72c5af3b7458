"""What is measured: agreement with people, users and groups, crowds of votes, each with intervals where they mean much."""

from .agreement import PairAgreement, VoteAgreement, best_accuracy, pair_agreement, vote_agreement
from .crowd import NUM_BINS, SMALLEST_PROBABILITY, Bin, CrowdTable, crowd_table, item_values
from .distribution import StrengthHistogram
from .estimate import Estimate, bootstrap, bootstrap_means, bootstrap_sums, percentile_interval
from .member_correlation import MemberCorrelation
from .paired import crossed_estimates
from .preference import TIE, PreferenceMetrics, log_loss, outcomes, within_prompts
from .prototypes import Example, Extremes, PrototypeTable, Sample, principal_plane
from .strength import StrengthGroup, StrengthRow, StrengthSummary, strength_summary
from .trade_off import JudgedColumns, Measure, TradeOff, TradeOffNames, TradeOffStart, trade_off_summary
from .uncertainty import ErrorPrediction, error_predictions
from .users import UserAccuracy, UserSummary, user_margin_accuracy, user_summary

__all__ = [
    "NUM_BINS",
    "SMALLEST_PROBABILITY",
    "TIE",
    "Bin",
    "CrowdTable",
    "ErrorPrediction",
    "Estimate",
    "Example",
    "Extremes",
    "JudgedColumns",
    "Measure",
    "MemberCorrelation",
    "PairAgreement",
    "PreferenceMetrics",
    "PrototypeTable",
    "Sample",
    "StrengthGroup",
    "StrengthHistogram",
    "StrengthRow",
    "StrengthSummary",
    "TradeOff",
    "TradeOffNames",
    "TradeOffStart",
    "UserAccuracy",
    "UserSummary",
    "VoteAgreement",
    "best_accuracy",
    "bootstrap",
    "bootstrap_means",
    "bootstrap_sums",
    "crossed_estimates",
    "crowd_table",
    "error_predictions",
    "item_values",
    "log_loss",
    "outcomes",
    "pair_agreement",
    "percentile_interval",
    "principal_plane",
    "strength_summary",
    "trade_off_summary",
    "user_margin_accuracy",
    "user_summary",
    "vote_agreement",
    "within_prompts",
]
