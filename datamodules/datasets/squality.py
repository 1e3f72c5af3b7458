"""SQuALITYDataModule: summaries that answer a question about a story, rated by three readers each (SQuALITY).

* Source: https://github.com/nyu-mll/SQuALITY, folder ``data``: ``human-eval/all-responses.jsonl`` and the question
  texts of ``v1-3/txt/test.jsonl`` (Wang et al., *SQuALITY: Building a Long-Document Summarization Dataset the Hard
  Way*, EMNLP 2022, https://arxiv.org/abs/2205.11465). Not on the Hugging Face hub in this form.
* Licence: CC-BY-4.0.
* Revision: commit dc08d4f574639d773bc64ef3ab3527043108fb4e.
* Fields read: of a passage ``passage-id`` and, by question and system (``bart``, ``bart-dpr``, ``human``),
  ``response`` and of each of ``reviews`` ``worker_id`` and ``correctness-rating``, ``selection-rating`` or
  ``overall-rating`` (0 to 100); of the questions ``metadata.passage_id``, ``question_number``, ``question_text``.
* Split rule (ours; the release has none): passages in the order of the SHA-1 of their id, the first eighth to
  test, the next to validation, the others to training (of 16 passages 2, 2 and 12).

A question is one record. The prompt is the question's text alone: the story it is about is not read (it is longer
than what most backbones take), so a model sees the summary without what it summarises. Responses carry their system,
the ratings as votes and their mean, divided by 100, as score. Every two responses are a comparison: the votes
are how many of the reviewers of both rated the first higher, both equally, the second higher; two responses
without a common reviewer are not compared. A rating that is missing or no number in 0..100 is an error: the 720
reviews of 16 passages that were checked have none, and the same three people review all responses of a question.
"""

from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Literal, NamedTuple, Unpack

from ..base import PreferenceDataModule
from ..checks import check_choices, check_range
from ..records import (
    Comparison,
    PreferenceRecord,
    RecordError,
    Response,
    SourceRow,
    find_file,
    list_field,
    majority_comparison,
    mapping_field,
    number_field,
    ordered_split,
    parse_rows,
    read_json_lines,
    text_field,
    vote_counts,
    whole_field,
)
from ..settings import SharedSettings

__all__ = ["LABELS", "SQuALITYDataModule"]

LABELS = ("low", "high")
"""Categories of a response's votes with ``votes="share"``, in their order."""

COMMIT = "dc08d4f574639d773bc64ef3ab3527043108fb4e"
SCALE = 100
ONE_IN = 8

Passage = tuple[SourceRow, str, Mapping[str, object]]


class Answer(NamedTuple):
    """A response and what each reviewer gave it, 0..100."""

    text: str
    system: str
    ratings: dict[str, float]


class SQuALITYDataModule(PreferenceDataModule):
    """Three summaries for each question about a story, each rated 0 to 100 by three readers (SQuALITY)."""

    name = "squality"
    sources = ("train", "validation", "test")
    where_to_get = (
        "the ratings are not on the Hugging Face hub. Get them with `git "
        f"clone https://github.com/nyu-mll/SQuALITY && git -C SQuALITY checkout {COMMIT}` and give "
        "data_dir=SQuALITY/data (CC-BY-4.0)"
    )

    def __init__(
        self,
        *,
        data_dir: str | None = None,
        criterion: Literal["overall", "correctness", "selection"] = "overall",
        votes: Literal["share", "bins"] = "share",
        num_bins: int = 5,
        comparisons: bool = True,
        **shared: Unpack[SharedSettings],
    ) -> None:
        """Choose criterion and form of the votes; reads nothing.

        Args:
            data_dir: The folder ``data`` of the SQuALITY repository, or one with ``all-responses.jsonl`` and
                ``questions.jsonl`` side by side (each also ``.gz``).
            criterion: ``overall`` quality, ``correctness`` (no wrong statements), or ``selection`` (what matters
                is there).
            votes: ``share``: a rating of x is 1 - x/100 votes for ``low`` and x/100 for ``high``, so that a Beta
                distribution can be fitted. ``bins``: one vote for the bin of 0..100 that x lies in.
            num_bins: Equal bins of ``votes="bins"`` (>= 2); 100 is in the last.
            comparisons: Whether the responses of a question are also compared.
            **shared: Settings that all datasets share, see :class:`PreferenceDataModule`.

        Raises:
            ValueError: If ``data_dir`` is missing (says where to get the data), or a setting is off range.

        Example:
            >>> SQuALITYDataModule(data_dir="SQuALITY/data", votes="bins", num_bins=10).num_bins
            10

        .. versionadded:: 0.1
        """
        super().__init__(**shared)
        check_choices(SQuALITYDataModule.__init__, criterion=criterion, votes=votes)
        check_range("num_bins", num_bins, at_least=2)
        self.data_dir, self.criterion, self.votes = self.need_folder(data_dir), criterion, votes
        self.num_bins, self.comparisons = num_bins, comparisons

    def files(self, source: str) -> list[Path]:
        """Responses and questions, whatever the source."""
        folder = Path(self.data_dir)
        return [
            find_file(folder, "all-responses.jsonl", "human-eval/all-responses.jsonl"),
            find_file(folder, "questions.jsonl", "v1-3/txt/test.jsonl"),
        ]

    def settings(self) -> dict[str, object]:
        """Criterion, form of the votes and use of comparisons."""
        return {
            "criterion": self.criterion,
            "votes": self.votes,
            "num_bins": self.num_bins if self.votes == "bins" else None,
            "comparisons": self.comparisons,
        }

    def load(self, source: str) -> Iterator[SourceRow | RecordError]:
        """One row per question of the source's passages; a malformed passage is an error of training.

        Raises:
            RecordError: If the file of questions is malformed.
            ValueError: If there are too few passages to hold some out.
        """
        path, question_path = self.files(source)
        texts = read_questions(question_path)
        passages: list[Passage] = []
        for item in parse_rows(read_json_lines(path), _read_passage):
            if not isinstance(item, RecordError):
                passages.append(item)
            elif source == "train":
                yield item
        names = {passage for _, passage, _ in passages}
        splits = ordered_split(names, one_in=ONE_IN, what=f"passages of {path}")
        for row, passage, questions in passages:
            if splits[passage] != source:
                continue
            for key, systems in questions.items():
                fields = {"id": f"{passage}/{key}", "passage": passage, "systems": systems}
                number = int(key) + 1 if str(key).isascii() and str(key).isdecimal() else None
                yield row._replace(fields={**fields, "question": texts.get((passage, number))})

    def to_example(self, row: SourceRow) -> PreferenceRecord:
        """A question, the responses with their ratings, and the comparisons that follow from these."""
        question = row.get("question")
        if not isinstance(question, str):
            allowed = "a question whose text is in the file of questions"
            raise RecordError("question", row.text("id"), allowed, reason="no question text")
        answers = [
            self._answer(f"{row.text('id')}.{system}", system, content)
            for system, content in mapping_field("questions", row.get("systems")).items()
        ]
        return PreferenceRecord(
            id=row.text("id"),
            prompt=question,
            responses=tuple(map(self._response, answers)),
            comparisons=tuple(_comparisons(answers)) if self.comparisons else (),
            group=row.text("passage"),
        )

    def _answer(self, field: str, system: str, content: object) -> Answer:
        content = mapping_field(field, content)
        text = text_field(f"{field}.response", content.get("response"))
        ratings: dict[str, float] = {}
        for i, review in enumerate(list_field(f"{field}.reviews", content.get("reviews"))):
            place, name = f"{field}.reviews[{i}]", f"{self.criterion}-rating"
            review = mapping_field(place, review)
            worker = text_field(f"{place}.worker_id", review.get("worker_id"))
            if worker in ratings:
                allowed = "another worker for each review"
                raise RecordError(f"{place}.worker_id", worker, allowed, reason="duplicate worker")
            ratings[worker] = number_field(f"{place}.{name}", review.get(name), 0, SCALE)
        return Answer(text.strip(), system, ratings)

    def _response(self, answer: Answer) -> Response:
        ratings = answer.ratings.values()
        high = sum(ratings) / SCALE
        if self.votes == "share":
            votes: tuple[float, ...] = (len(ratings) - high, high)
        else:
            places = (min(int(x * self.num_bins / SCALE), self.num_bins - 1) for x in ratings)
            votes = vote_counts(places, self.num_bins)
        return Response(answer.text, score=high / len(ratings), votes=votes, system=answer.system)


def _comparisons(answers: list[Answer]) -> Iterator[Comparison]:
    for (i, first), (j, second) in combinations(enumerate(answers), 2):
        gaps = [
            first.ratings[user] - second.ratings[user] for user in first.ratings if user in second.ratings
        ]
        higher, lower = sum(gap > 0 for gap in gaps), sum(gap < 0 for gap in gaps)
        if gaps:
            yield majority_comparison(i, j, (higher, len(gaps) - higher - lower, lower))


def _read_passage(row: SourceRow) -> Passage:
    return row, row.text("passage-id"), mapping_field("questions", row.get("questions"))


def read_questions(path: Path) -> dict[tuple[str, int | None], str]:
    """Text of each question, by passage and number.

    Raises:
        RecordError: If a line is malformed.
    """
    texts: dict[tuple[str, int | None], str] = {}
    for item in parse_rows(read_json_lines(path), _read_questions):
        if isinstance(item, RecordError):
            raise item
        texts.update(item)
    return texts


def _read_questions(row: SourceRow) -> dict[tuple[str, int | None], str]:
    passage = row.text("metadata.passage_id")
    texts: dict[tuple[str, int | None], str] = {}
    for i, question in enumerate(list_field("questions", row.get("questions"), empty=True)):
        fields = mapping_field(f"questions[{i}]", question)
        number = whole_field(f"questions[{i}].question_number", fields.get("question_number"), 0)
        text = text_field(f"questions[{i}].question_text", fields.get("question_text"))
        texts[passage, number] = text.strip()
    return texts
