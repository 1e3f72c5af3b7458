"""One data module per dataset."""

from .arena import ArenaDataModule
from .dices import DICESDataModule
from .dsp import DSPDataModule
from .helpsteer2 import HelpSteer2DataModule
from .helpsteer3 import HelpSteer3DataModule
from .hh_rlhf import HHRLHFDataModule
from .local import LocalDataModule
from .multipref import MultiPrefDataModule
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
from .ultrafeedback import UltraFeedbackDataModule
from .webgpt import WebGPTDataModule

__all__ = [
    "ArenaDataModule",
    "DICESDataModule",
    "DSPDataModule",
    "HHRLHFDataModule",
    "HelpSteer2DataModule",
    "HelpSteer3DataModule",
    "LocalDataModule",
    "MultiPrefDataModule",
    "PRISMDataModule",
    "PandaLMDataModule",
    "PersonaDataModule",
    "PersonaVotesDataModule",
    "PickAPicDataModule",
    "SQuALITYDataModule",
    "SafeRLHFDataModule",
    "SummarizeFromFeedbackDataModule",
    "SyntheticDataModule",
    "UKPConvArgDataModule",
    "UltraFeedbackDataModule",
    "WebGPTDataModule",
    "update_posteriors",
]
