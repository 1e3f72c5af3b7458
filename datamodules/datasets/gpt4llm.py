"""GPT4LLMDataModule: answers of three models to Alpaca's prompts, scored 0 to 10 by GPT-4 (GPT-4-LLM).

* Source: https://github.com/Instruction-Tuning-with-GPT-4/GPT-4-LLM, file ``data/comparison_data_v2.json`` (Peng et al.,
  *Instruction Tuning with GPT-4*, 2023, https://arxiv.org/abs/2304.03277). Not on the Hugging Face hub.
* Licence: CC-BY-NC-4.0: not for commercial use.
* Revision: commit 80cda626ea30. Its README describes another schema than the file has; both are read. The bytes of
  the release itself could not be read when this was written.
* Columns read: ``user_input``, and ``responses_and_scores`` (of each ``response``, ``source`` and ``score``, 0 to 10, with halves); or, as
  the README has it, ``completion_a`` (the better one) and ``completion_b``.
* Split rule (ours; the release has none): a prompt goes to training, validation or test (80/10/10) by the SHA-1 of its text.

A row is one record. Of scored responses every two are a comparison: the greater score wins, equal scores are a tie, and the
strength is the difference, at least 0. Ties are common: nine of ten scores of GPT-4's answers are 9. The score itself is the
response's, as it stands. Of ``completion_a`` and ``completion_b`` the first wins; they have no scores and no strength.

Not every prompt has all three responses. One that is blank, or has no score, is an error that ``on_invalid="skip"``, the
default here, counts; the others of the row stay. There is one judge, so comparisons name no user.
"""

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Unpack

from ..base import PreferenceDataModule
from ..records import (
    Comparison,
    PreferenceRecord,
    RecordError,
    Response,
    SourceRow,
    compared,
    find_file,
    list_field,
    mapping_field,
    number_field,
    read_json_list,
    rows_of_split,
    signed_judgement,
    system_field,
    text_field,
)
from ..settings import LenientSettings, OnInvalid

__all__ = ["GPT4LLMDataModule"]

COMMIT = "80cda626ea30"
NAMES = ("comparison_data_v2.json", "comparison_data.json")
SCORED = "responses_and_scores"
BETTER, WORSE = "completion_a", "completion_b"
HIGHEST = 10


class GPT4LLMDataModule(PreferenceDataModule):
    """Three answers to each prompt, scored 0 to 10 by GPT-4, with many ties (GPT-4-LLM comparison data)."""

    name = "gpt4llm"
    sources = ("train", "validation", "test")
    where_to_get = (
        "the data are not on the Hugging Face hub. Get them with `git clone "
        "https://github.com/Instruction-Tuning-with-GPT-4/GPT-4-LLM && git -C GPT-4-LLM checkout "
        f"{COMMIT}` and give data_dir=GPT-4-LLM/data (CC-BY-NC-4.0)"
    )

    def __init__(
        self,
        *,
        data_dir: str | None = None,
        on_invalid: OnInvalid = "skip",
        **shared: Unpack[LenientSettings],
    ) -> None:
        """Name the folder; reads nothing.

        Args:
            data_dir: The folder ``data`` of the repository: ``comparison_data_v2.json``, or else ``comparison_data.json``
                (also ``.gz``).
            on_invalid: ``error`` or ``skip``; prompts lack responses, so ``skip`` by default.
            **shared: Settings that all datasets share, see :class:`PreferenceDataModule`.

        Raises:
            ValueError: If ``data_dir`` is missing (says where to get the data).

        Example:
            >>> GPT4LLMDataModule(data_dir="GPT-4-LLM/data").sources
            ('train', 'validation', 'test')

        .. versionadded:: 0.1
        """
        super().__init__(on_invalid=on_invalid, **shared)
        self.data_dir = self.need_folder(data_dir)

    def files(self, source: str) -> list[Path]:
        """The one file, whatever the source."""
        return [find_file(Path(self.data_dir), *NAMES)]

    def load(self, source: str) -> Iterator[SourceRow | RecordError]:
        """One row per prompt, with the responses that can be used; an error for each other one."""
        for row in rows_of_split(read_json_list(self.files(source)[0]), source, _prompt):
            if isinstance(row, RecordError):
                yield row
                continue
            answers: list[Response] = []
            for answer in _answers(row):
                if isinstance(answer, RecordError):
                    yield answer.at(row.file, row.line)
                else:
                    answers.append(answer)
            if answers:
                fields = {"prompt": _prompt(row), "answers": answers, "ranked": SCORED not in row.fields}
                yield row._replace(fields=fields)

    def to_example(self, row: SourceRow) -> PreferenceRecord:
        """A prompt, its responses, and a comparison of every two."""
        answers: list[Response] = row.made("answers", list)
        ranked = row.made("ranked", bool)
        pairs = combinations(range(len(answers)), 2)
        return PreferenceRecord(
            id=f"{Path(row.file).name.split('.')[0]}:{row.line}",
            prompt=row.text("prompt"),
            responses=tuple(answers),
            comparisons=tuple(
                Comparison(i, j) if ranked else _compared_scores(i, j, answers) for i, j in pairs
            ),
        )


def _compared_scores(first: int, second: int, answers: list[Response]) -> Comparison:
    gap = (answers[first].score or 0.0) - (answers[second].score or 0.0)
    return compared(first, second, signed_judgement("score", gap, "first"))


def _prompt(row: SourceRow) -> str:
    return row.text("user_input").strip()


def _answers(row: SourceRow) -> Iterator[Response | RecordError]:
    """Responses of a row; of the README's schema both or an error, for one alone says nothing."""
    if SCORED not in row.fields:
        try:
            texts = [text_field(name, row.get(name), blank="empty response") for name in (BETTER, WORSE)]
        except RecordError as error:
            yield error
            return
        yield from (Response(text.strip()) for text in texts)
        return
    try:
        entries = list_field(SCORED, row.fields[SCORED])
    except RecordError as error:
        yield error
        return
    for i, entry in enumerate(entries):
        try:
            yield _scored(f"{SCORED}[{i}]", entry)
        except RecordError as error:
            yield error


def _scored(field: str, entry: object) -> Response:
    fields = mapping_field(field, entry)
    text = text_field(f"{field}.response", fields.get("response"), blank="empty response")
    score = number_field(f"{field}.score", fields.get("score"), 0, HIGHEST)
    return Response(text.strip(), score, system=system_field(f"{field}.source", fields.get("source")))
