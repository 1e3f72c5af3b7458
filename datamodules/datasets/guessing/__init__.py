"""What form a table has, guessed from its first rows; where two readings exist, both are said and none is taken."""

from .form import GivenSettings, TableGuess
from .guess import guess_table
from .known import KNOWN, KnownTable
from .readings import OpenQuestion, TableReading, outcome_words

__all__ = [
    "KNOWN",
    "GivenSettings",
    "KnownTable",
    "OpenQuestion",
    "TableGuess",
    "TableReading",
    "guess_table",
    "outcome_words",
]
