"""Any number of models on any number of data sets: one board, with intervals and tests of what differs."""

from .cells import Resampling
from .data import EvaluationData, Split, evaluation_data, read_data
from .evaluation import Contestant, Evaluation, Watch, evaluate_models
from .items import write_items
from .scoring import Scores, score_data
from .types import (
    MEASURES,
    Board,
    BoardData,
    BoardModel,
    Cell,
    Disagreement,
    Measure,
    Measured,
    OfficialTable,
    PairedDifference,
    ReliabilityBin,
    Standing,
)

__all__ = [
    "MEASURES",
    "Board",
    "BoardData",
    "BoardModel",
    "Cell",
    "Contestant",
    "Disagreement",
    "Evaluation",
    "EvaluationData",
    "Measure",
    "Measured",
    "OfficialTable",
    "PairedDifference",
    "ReliabilityBin",
    "Resampling",
    "Scores",
    "Split",
    "Standing",
    "Watch",
    "evaluate_models",
    "evaluation_data",
    "read_data",
    "score_data",
    "write_items",
]
