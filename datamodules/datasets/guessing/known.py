"""Public data sets with a data module of their own, told by columns that nothing else has together."""

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
    """

    module: str
    columns: tuple[str, ...]
    levels: int = 1
    settings: tuple[tuple[str, object], ...] = ()


KNOWN = (
    KnownTable("DICESDataModule", ("instances", "original_prompt", "dataset_url")),
    KnownTable("DSPDataModule", ("query", "responses.academy", "responses.business", "responses.normal")),
    KnownTable("HelpSteer2DataModule", ("prompt", "response", "helpfulness", "correctness", "coherence", "verbosity")),
    KnownTable("PandaLMDataModule", ("motivation_app", "response1", "response2", "annotator1", "annotator2", "annotator3")),
    KnownTable("PersonaDataModule", ("statement", "answer_matching_behavior", "answer_not_matching_behavior")),
    KnownTable("PRISMDataModule", ("utterance_id", "user_prompt", "model_response", "if_chosen", "user_id")),
    KnownTable("SafeRLHFDataModule", ("response_0", "response_1", "better_response_id", "safer_response_id"), 2),
    KnownTable("SQuALITYDataModule", ("passage-id", "questions.0.human", "questions.0.bart")),
    KnownTable("SummarizeFromFeedbackDataModule", ("info.post", "summaries.0.text", "summaries.0.policy", "choice", "worker"), 2),
)
"""Tables that one of our data modules reads."""


def known_table(table: TableProfile) -> KnownTable | None:
    """The public data set that a table is of; None if it is of none that is known.

    Args:
        table: What the table holds.
    """
    fits = [known for known in KNOWN if all(name in table.columns for name in known.columns)]
    return max(fits, key=lambda known: len(known.columns), default=None)
