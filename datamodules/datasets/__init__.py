"""One data module per dataset."""

from .dices import DICESDataModule
from .dsp import DSPDataModule
from .guessing import (
    GivenSettings,
    KnownTable,
    OpenQuestion,
    TableGuess,
    TableReading,
    guess_table,
    outcome_words,
)
from .helpsteer2 import HelpSteer2DataModule
from .hh_rlhf import HHRLHFDataModule
from .local import LocalDataModule
from .pandalm import PandaLMDataModule
from .persona import PersonaDataModule
from .persona_votes import PersonaVotesDataModule, update_posteriors
from .pick_a_pic import PickAPicDataModule
from .prism import PRISMDataModule
from .safe_rlhf import SafeRLHFDataModule
from .squality import SQuALITYDataModule
from .summarize_from_feedback import SummarizeFromFeedbackDataModule
from .synthetic import SyntheticDataModule
from .ukpconvarg1 import UKPConvArgDataModule

__all__ = [
    "DICESDataModule",
    "DSPDataModule",
    "GivenSettings",
    "HHRLHFDataModule",
    "HelpSteer2DataModule",
    "KnownTable",
    "LocalDataModule",
    "OpenQuestion",
    "PRISMDataModule",
    "PandaLMDataModule",
    "PersonaDataModule",
    "PersonaVotesDataModule",
    "PickAPicDataModule",
    "SQuALITYDataModule",
    "SafeRLHFDataModule",
    "SummarizeFromFeedbackDataModule",
    "SyntheticDataModule",
    "TableGuess",
    "TableReading",
    "UKPConvArgDataModule",
    "guess_table",
    "outcome_words",
    "update_posteriors",
]
