"""What is measured: agreement with people, users and groups, crowds of votes, each with intervals where they mean much."""

from .agreement import PairAgreement, VoteAgreement, best_accuracy, pair_agreement, vote_agreement
from .calibration import (
    ConfidenceBin,
    FittedLogLoss,
    Reliability,
    calibration_slope,
    equal_mass_bins,
    fitted_log_loss,
    reliability,
)
from .clustered import clustered_means, clustered_shares
from .crowd import NUM_BINS, SMALLEST_PROBABILITY, Bin, CrowdTable, crowd_table, item_values
from .distribution import StrengthHistogram
from .diversity import Diversity, response_diversity
from .estimate import Estimate, bootstrap, bootstrap_means, bootstrap_sums, percentile_interval
from .expert_weights import (
    ExpertWeights,
    TracedResponse,
    WeightShare,
    expert_weights_table,
    response_weights,
)
from .length import length_correlation
from .member_correlation import MemberCorrelation
from .paired import crossed_estimates
from .preference import TIE, PreferenceMetrics, log_loss, outcomes, within_prompts
from .prototypes import Example, Extremes, PrototypeTable, Sample, principal_plane
from .sign_flip import sign_flip_test
from .significance import PairedAccuracy, holm_correction, paired_accuracy
from .strength import StrengthGroup, StrengthRow, StrengthSummary, strength_summary
from .trade_off import JudgedColumns, Measure, TradeOff, TradeOffNames, TradeOffStart, trade_off_summary
from .uncertainty import ErrorPrediction, error_predictions
from .users import UserAccuracy, UserSummary, user_margin_accuracy, user_summary
from .win_rate import (
    WinRate,
    WinRates,
    average_win_rates,
    item_outcomes,
    outcome_rate,
    reward_verdicts,
    win_rates,
)

__all__ = [
    "NUM_BINS",
    "SMALLEST_PROBABILITY",
    "TIE",
    "Bin",
    "ConfidenceBin",
    "CrowdTable",
    "Diversity",
    "ErrorPrediction",
    "Estimate",
    "Example",
    "ExpertWeights",
    "Extremes",
    "FittedLogLoss",
    "JudgedColumns",
    "Measure",
    "MemberCorrelation",
    "PairAgreement",
    "PairedAccuracy",
    "PreferenceMetrics",
    "PrototypeTable",
    "Reliability",
    "Sample",
    "StrengthGroup",
    "StrengthHistogram",
    "StrengthRow",
    "StrengthSummary",
    "TracedResponse",
    "TradeOff",
    "TradeOffNames",
    "TradeOffStart",
    "UserAccuracy",
    "UserSummary",
    "VoteAgreement",
    "WeightShare",
    "WinRate",
    "WinRates",
    "average_win_rates",
    "best_accuracy",
    "bootstrap",
    "bootstrap_means",
    "bootstrap_sums",
    "calibration_slope",
    "clustered_means",
    "clustered_shares",
    "crossed_estimates",
    "crowd_table",
    "equal_mass_bins",
    "error_predictions",
    "expert_weights_table",
    "fitted_log_loss",
    "holm_correction",
    "item_outcomes",
    "item_values",
    "length_correlation",
    "log_loss",
    "outcome_rate",
    "outcomes",
    "pair_agreement",
    "paired_accuracy",
    "percentile_interval",
    "principal_plane",
    "reliability",
    "response_diversity",
    "response_weights",
    "reward_verdicts",
    "sign_flip_test",
    "strength_summary",
    "trade_off_summary",
    "user_margin_accuracy",
    "user_summary",
    "vote_agreement",
    "win_rates",
    "within_prompts",
]
