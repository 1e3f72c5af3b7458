"""What form a table has, guessed from its first rows; where two readings exist, both are said and none is taken."""

from .form import Given, Guess
from .guess import guess_table
from .known import KNOWN
from .readings import Question, Reading, answers, says

__all__ = ["KNOWN", "Given", "Guess", "Question", "Reading", "answers", "guess_table", "says"]
