"""``pluralign data inspect FILE``: what the data seem to be, how to read them, and what their first rows then say."""

import json
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

import pluralign.datamodules
from pluralign.datamodules import PreferenceDataModule, PreferenceRecord
from pluralign.datamodules.datasets import Given, Guess, Question, Reading, guess_table, reading_answers, reading_says
from pluralign.datamodules.records import listed, plain_turns

from .parser import Parser
from .program import EPILOG
from .sampling import Outcome, Sample, SampledDataModule, take_records, take_sample, tokenised

__all__ = ["inspect_unknown", "yaml_lines"]

EXAMPLES = 3
SHOWN_LETTERS = 320
"""Letters of a text that an example shows."""
TOP = 5
"""Names that are shown of many."""
OPEN, UNREADABLE = 2, 2
"""Exit status where nothing was chosen."""
