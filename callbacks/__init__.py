"""What is worth watching or saving, for any module."""

from .checkpoint_io import AtomicCheckpointIO
from .crowd_calibration import CrowdCalibration
from .general_preference import GeneralPreference
from .language_model_writer import LanguageModelWriter
from .longest_batch import LongestBatch
from .merge_trace import MergeTrace
from .prototype_map import PrototypeMap
from .recovery_report import RecoveryReport
from .reward_watch import RewardWatch
from .reward_writer import RewardWriter
from .run_logger import RunLogger
from .run_progress import RunProgress
from .save_on_signal import SaveOnSignal
from .skipped_steps import SkippedSteps
from .strength_report import StrengthReport
from .throughput import Throughput
from .user_metrics import UserMetrics

__all__ = [
    "AtomicCheckpointIO",
    "CrowdCalibration",
    "GeneralPreference",
    "LanguageModelWriter",
    "LongestBatch",
    "MergeTrace",
    "PrototypeMap",
    "RecoveryReport",
    "RewardWatch",
    "RewardWriter",
    "RunLogger",
    "RunProgress",
    "SaveOnSignal",
    "SkippedSteps",
    "StrengthReport",
    "Throughput",
    "UserMetrics",
]
