"""One data module per dataset."""

from .alpaca_eval import AlpacaEvalDataModule
from .arena import ArenaDataModule
from .beavertails import BeaverTailsDataModule
from .dices import DICESDataModule
from .dices_raters import DICESRatersDataModule
from .dsp import DSPDataModule
from .gpt4llm import GPT4LLMDataModule
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
from .helpsteer3 import HelpSteer3DataModule
from .hh_rlhf import HHRLHFDataModule
from .hhh import HHHDataModule
from .judgebench import JudgeBenchDataModule
from .llmbar import LLMBarDataModule
from .local import LocalDataModule
from .multipref import MultiPrefDataModule
from .oasst import OASSTDataModule
from .pandalm import PandaLMDataModule
from .persona import PersonaDataModule
from .persona_votes import PersonaVotesDataModule, update_posteriors
from .personal_rewardbench import PersonalRewardBenchDataModule
from .personalized_prompts import PersonalizedPromptsDataModule
from .personalized_rewardbench import PersonalizedRewardBenchDataModule
from .pick_a_pic import PickAPicDataModule
from .prism import PRISMDataModule
from .rewardbench import RewardBenchDataModule
from .rewardbench2 import RewardBench2DataModule
from .rm_bench import RMBenchDataModule
from .safe_rlhf import SafeRLHFDataModule
from .squality import SQuALITYDataModule
from .strength_cleaned_hh import StrengthCleanedHHDataModule
from .style_grammar import GrammarReward, StyleGrammarDataModule, StyleGrammarPairsDataModule
from .summarize_from_feedback import SummarizeFromFeedbackDataModule
from .synthetic import SyntheticDataModule
from .tulu_human_eval import TuluHumanEvalDataModule
from .ukpconvarg1 import UKPConvArgDataModule
from .ultrafeedback import UltraFeedbackDataModule
from .webgpt import WebGPTDataModule

__all__ = [
    "AlpacaEvalDataModule",
    "ArenaDataModule",
    "BeaverTailsDataModule",
    "DICESDataModule",
    "DICESRatersDataModule",
    "DSPDataModule",
    "GPT4LLMDataModule",
    "GivenSettings",
    "GrammarReward",
    "HHHDataModule",
    "HHRLHFDataModule",
    "HelpSteer2DataModule",
    "HelpSteer3DataModule",
    "JudgeBenchDataModule",
    "KnownTable",
    "LLMBarDataModule",
    "LocalDataModule",
    "MultiPrefDataModule",
    "OASSTDataModule",
    "OpenQuestion",
    "PRISMDataModule",
    "PandaLMDataModule",
    "PersonaDataModule",
    "PersonaVotesDataModule",
    "PersonalRewardBenchDataModule",
    "PersonalizedPromptsDataModule",
    "PersonalizedRewardBenchDataModule",
    "PickAPicDataModule",
    "RMBenchDataModule",
    "RewardBench2DataModule",
    "RewardBenchDataModule",
    "SQuALITYDataModule",
    "SafeRLHFDataModule",
    "StrengthCleanedHHDataModule",
    "StyleGrammarDataModule",
    "StyleGrammarPairsDataModule",
    "SummarizeFromFeedbackDataModule",
    "SyntheticDataModule",
    "TableGuess",
    "TableReading",
    "TuluHumanEvalDataModule",
    "UKPConvArgDataModule",
    "UltraFeedbackDataModule",
    "WebGPTDataModule",
    "guess_table",
    "outcome_words",
    "update_posteriors",
]
