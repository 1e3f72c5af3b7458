"""Public data sets with a data module of their own, told by columns that nothing else has together."""

from pathlib import Path
from typing import NamedTuple

from .profile import TableProfile

__all__ = ["KNOWN", "KnownTable", "known_table"]


class KnownTable(NamedTuple):
    """A table of a public data set.

    Attributes:
        module: Class of its data module.
        columns: Columns and nested fields that it has.
        levels: How many folders above the file ``data_dir`` is.
        settings: What tells this table from others of the module.
        otherwise: Settings that read files of which those alone do not.
    """

    module: str
    columns: tuple[str, ...]
    levels: int = 1
    settings: tuple[tuple[str, object], ...] = ()
    otherwise: tuple[tuple[str, object], ...] = ()

    def folder(self, file: Path) -> Path:
        """The folder that ``data_dir`` is to name, by one of its files."""
        path = file if len(file.parts) > self.levels else file.absolute()
        return path.parents[self.levels - 1]


ARENA = ("model_a", "model_b", "winner", "conversation_a", "conversation_b")
KNOWN = (
    KnownTable(
        "AlpacaEvalDataModule",
        ("generator_1", "generator_2", "output_1", "output_2", "annotator", "preference"),
        3,
    ),
    KnownTable("ArenaDataModule", (*ARENA, "judge", "tstamp"), settings=(("release", "33k"),)),
    KnownTable(
        "ArenaDataModule",
        ("winner_model_a", "winner_model_b", "winner_tie", "response_a", "response_b"),
        settings=(("release", "55k"),),
    ),
    KnownTable("ArenaDataModule", (*ARENA, "judge_hash"), settings=(("release", "100k"),)),
    KnownTable(
        "ArenaDataModule",
        (*ARENA, "evaluation_session_id", "evaluation_order"),
        settings=(("release", "140k"),),
    ),
    KnownTable("DICESDataModule", ("instances", "original_prompt", "dataset_url")),
    KnownTable("DICESRatersDataModule", ("rater_id", "item_id", "degree_of_harm", "Q_overall"), 2),
    KnownTable("DSPDataModule", ("query", "responses.academy", "responses.business", "responses.normal")),
    KnownTable("GPT4LLMDataModule", ("user_input", "responses_and_scores")),
    KnownTable(
        "HelpSteer2DataModule", ("prompt", "response", "helpfulness", "correctness", "coherence", "verbosity")
    ),
    KnownTable(
        "HelpSteer2DataModule",
        ("prompt", "response_1", "response_2", "preference_strength", "all_preferences_unprocessed"),
        2,
        (("judgements", "preference"),),
    ),
    KnownTable(
        "HelpSteer3DataModule",
        ("context", "response1", "response2", "overall_preference", "individual_preference"),
        2,
    ),
    KnownTable(
        "MultiPrefDataModule", ("comparison_id", "completion_a", "completion_b", "normal_worker_annotations")
    ),
    KnownTable("OASSTDataModule", ("message_tree_id", "tree_state", "prompt.replies")),
    KnownTable("OASSTDataModule", ("message_tree_id", "parent_id", "text", "role", "rank")),
    KnownTable(
        "PandaLMDataModule",
        ("motivation_app", "response1", "response2", "annotator1", "annotator2", "annotator3"),
    ),
    KnownTable(
        "PersonaDataModule", ("statement", "answer_matching_behavior", "answer_not_matching_behavior")
    ),
    KnownTable("PRISMDataModule", ("utterance_id", "user_prompt", "model_response", "if_chosen", "user_id")),
    KnownTable(
        "SafeRLHFDataModule", ("response_0", "response_1", "better_response_id", "safer_response_id"), 2
    ),
    KnownTable("SQuALITYDataModule", ("passage-id", "questions.0.human", "questions.0.bart")),
    KnownTable(
        "StrengthCleanedHHDataModule",
        ("chosen", "rejected", "mean preference difference", "chosen_score_list"),
    ),
    KnownTable(
        "SummarizeFromFeedbackDataModule",
        ("info.post", "summaries.0.text", "summaries.0.policy", "choice", "worker"),
        2,
        otherwise=(("split", "posts"), ("unseen_workers", False)),
    ),
    KnownTable(
        "TuluHumanEvalDataModule",
        (
            "completion_a",
            "completion_b",
            "completion_a_is_acceptable",
            "completion_b_is_acceptable",
            "preference",
            "evaluator",
        ),
    ),
    KnownTable(
        "UltraFeedbackDataModule",
        ("instruction", "completions", "models", "correct_answers"),
        settings=(("release", "raw"),),
    ),
    KnownTable("WebGPTDataModule", ("question.full_text", "answer_0", "answer_1", "score_0", "score_1")),
)
"""Tables that one of our data modules reads."""


def known_table(table: TableProfile) -> KnownTable | None:
    """The public data set that a table is of; None if it is of none that is known.

    Args:
        table: What the table holds.
    """
    fits = [known for known in KNOWN if all(name in table.columns for name in known.columns)]
    return max(fits, key=lambda known: len(known.columns), default=None)
