"""Any number of models on any number of data sets: one board, with intervals and tests of what differs."""

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
    "Disagreement",
    "Measure",
    "Measured",
    "OfficialTable",
    "PairedDifference",
    "ReliabilityBin",
    "Standing",
]
