"""PersonalRewardBenchDataModule: pairs that single users of PRISM or Chatbot Arena chose between (PersonalRewardBench).

* Source: https://huggingface.co/datasets/MichaelR207/prism_personalized_0125 and
  https://huggingface.co/datasets/MichaelR207/chatbot_arena_personalized_0125 (Ryan et al., *SynthesizeMe! Inducing Persona-Guided Prompts for
  Personalized Reward Models in LLMs*, ACL 2025, https://arxiv.org/abs/2506.05598); schema and rule as in SALT-NLP/SynthesizeMe at
  e91f340122db.
* Licence: see the cards of the data sets, which were not at hand.
* Revision: none is known here; give ``revision``, a commit of the hub's data set, or ``data_dir``.
* Columns read: ``user_id``, ``context`` (messages), ``chosen`` and ``rejected`` (one message each, or a list of one), ``split``.
* Split rule, two levels: the files ``train``, ``validation`` and ``test`` divide the *users* (``user_files``); the column ``split`` (``train``,
  ``val``, ``test``) divides *each user's pairs*, and is the split here. So the users of the test split are known from training.

A row is a record of two responses and one comparison of its user. Rows have no ids of their own, so that a record's is its file and
number. The turns before the responses are the prompt; ``model`` is the assistant.

**Official score** (:func:`official_scores`): every pair is asked in both orders; 1 if the chosen response wins, 0 for the other *and for
equal rewards*, so that for rewards, which do not depend on the order, ``accuracy`` is the mean over pairs. The release gives it with a
bootstrap interval over both orders as if they were independent, which is too short; intervals over prompts are those of the board.
``user_accuracy``, the mean over users of each one's accuracy, is ours.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, Unpack

from ..base import PreferenceDataModule
from ..checks import check_choices, check_subset
from ..official import OfficialScores, mean_by_name, pair_items, pair_results
from ..records import (
    Comparison,
    PreferenceRecord,
    RecordError,
    Response,
    SourceRow,
    choice_field,
    parse_messages,
    user_field,
)
from ..settings import SharedSettings
from .parts import find_parts, numbered_rows, pinned_dataset, read_parts

__all__ = ["PersonalRewardBenchDataModule"]

HUBS = {
    "prism": "MichaelR207/prism_personalized_0125",
    "chatbot_arena": "MichaelR207/chatbot_arena_personalized_0125",
}
FILES = ("train", "validation", "test")
SPLITS = {"train": "train", "val": "validation", "test": "test"}
COLUMNS = ("user_id", "context", "chosen", "rejected", "split")
RULE = "PersonalRewardBench: both orders, equal rewards are wrong (SALT-NLP/SynthesizeMe at e91f340122db)"


class PersonalRewardBenchDataModule(PreferenceDataModule):
    """Pairs that single users chose between, to be predicted from other pairs of theirs (PersonalRewardBench)."""

    name = "personal_rewardbench"
    sources = ("train", "validation", "test")
    where_to_get = (
        "get the files of a data set with `curl -LO "
        "https://huggingface.co/datasets/MichaelR207/prism_personalized_0125/resolve/COMMIT/data/test-00000-of-00001.parquet` (and so "
        "train and validation, or of chatbot_arena_personalized_0125) and give data_dir=FOLDER; or give revision=COMMIT"
    )

    def __init__(
        self,
        *,
        release: Literal["prism", "chatbot_arena"] = "prism",
        user_files: tuple[str, ...] = FILES,
        data_dir: str | None = None,
        revision: str | None = None,
        **shared: Unpack[SharedSettings],
    ) -> None:
        """Choose users and source; reads nothing.

        Args:
            release: Which data set on the hub: ``prism`` or ``chatbot_arena``. Of local files it only names the data.
            user_files: Whose pairs to read, by the file that the users are in: ``train``, ``validation``, ``test``.
            data_dir: Folder with ``train*``, ``validation*`` and ``test*``, each ``.parquet`` or ``.jsonl`` (also ``.gz``), or with these in
                its folder ``data``.
            revision: Commit of the data set on the Hugging Face hub to read, where ``data_dir`` is None.
            **shared: Settings that all datasets share, see :class:`PreferenceDataModule`.

        Raises:
            ValueError: If neither ``data_dir`` nor ``revision`` is given, or both are (says where to get the data), or a setting
                is unknown.

        Example:
            >>> PersonalRewardBenchDataModule(data_dir="prism_personalized", user_files=("test",)).user_files
            ('test',)

        .. versionadded:: 0.1
        """
        super().__init__(**shared)
        check_choices(PersonalRewardBenchDataModule.__init__, release=release)
        self.release, self.user_files = release, check_subset("user_files", user_files, FILES)
        self.hub = pinned_dataset(HUBS[release], revision, data_dir)
        self.data_dir = None if self.hub else self.need_folder(data_dir)

    def files(self, source: str) -> list[Path]:
        """Files of the users in use, if local, whatever the source."""
        return [path for name in self.user_files for path in self._files(name)]

    def _files(self, name: str) -> list[Path]:
        if self.data_dir is None:
            return []
        return find_parts(
            Path(self.data_dir), *(f"{name}*{end}" for end in (".parquet", ".jsonl", ".jsonl.gz"))
        )

    def settings(self) -> dict[str, object]:
        """Release and users, and the revision if the hub is the source."""
        hub = None if self.hub is None else self.hub.pin(None)
        return {"hub": hub, "release": self.release, "user_files": self.user_files}

    def load(self, source: str) -> Iterator[SourceRow | RecordError]:
        """Pairs of a split, of all users in use; one whose split is none is an error of training."""
        others = [name for name, split in SPLITS.items() if split != source]
        for name in self.user_files:
            rows = read_parts(self._files(name), COLUMNS) if self.hub is None else self.hub.rows(name)
            for row in numbered_rows(name, rows):
                found = None if isinstance(row, RecordError) else row.fields.get("split")
                if SPLITS.get(str(found)) == source or (source == "train" and found not in others):
                    yield row

    def to_example(self, row: SourceRow) -> PreferenceRecord:
        """A conversation, the response that its user chose and the other one."""
        choice_field("split", row.get("split"), SPLITS)
        prompt = parse_messages("context", row.get("context"))
        if not prompt:
            raise RecordError("context", [], "a list of messages that is not empty", reason="empty prompt")
        return PreferenceRecord(
            id=row.text("id"),
            prompt=prompt,
            responses=(_response(row, "chosen"), _response(row, "rejected")),
            comparisons=(Comparison(0, 1, user=user_field("user_id", row.get("user_id"))),),
        )

    def official_scores(
        self, records: Sequence[PreferenceRecord], rewards: Sequence[Sequence[float]]
    ) -> OfficialScores:
        """Accuracy over pairs, and the mean of the users' accuracies."""
        results = pair_results(records, rewards)
        right = [result.right for result in results]
        numbers = mean_by_name(["accuracy"] * len(right), right)
        of_user = mean_by_name([str(result.user) for result in results], right)
        numbers |= mean_by_name(["user_accuracy"] * len(of_user), list(of_user.values()))
        return OfficialScores(numbers, pair_items(results), RULE)


def _response(row: SourceRow, field: str) -> Response:
    messages = parse_messages(field, row.get(field))
    if len(messages) != 1:
        raise RecordError(field, row.get(field), "one message", reason="wrong length")
    return Response(messages[0].content)
