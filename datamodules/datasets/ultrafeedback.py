"""UltraFeedbackDataModule: four completions of each instruction, rated by a language model in four respects (UltraFeedback).

* Source: https://huggingface.co/datasets/openbmb/UltraFeedback (Cui et al., *UltraFeedback: Boosting Language Models with
  Scaled AI Feedback*, ICML 2024, https://arxiv.org/abs/2310.01377), and the pairs made of it,
  https://huggingface.co/datasets/HuggingFaceH4/ultrafeedback_binarized (Tunstall et al., *Zephyr: Direct Distillation of
  LM Alignment*, 2023, https://arxiv.org/abs/2310.16944).
* Licence: MIT, both.
* Revision: 40b436560ca83a8dba36114c22ab3c66e43f6d5e of the raw release, 3949bf5f8c17c394422ccfab0c31ea9c20bdeb85 of the pairs.
  The schemas are those of the releases' cards and of public readers of them; the bytes were not at hand.
* Columns read: of the raw release ``source``, ``instruction``, and of each of ``completions`` ``response``, ``model``,
  ``annotations.<aspect>.Rating`` and, if asked for, ``overall_score``; of the pairs ``prompt``, ``chosen``, ``rejected``,
  ``score_chosen``, ``score_rejected``. The system prompts that the completions were made with, each another one, are
  not read.
* Split rule: the pairs have ``train_prefs`` and ``test_prefs``, which is the test split here. The raw release has one split: a
  tenth of the instructions, by their hash, is the test split (ours). Validation is carved out of training by
  another hash.

A raw row is one record with all completions and a comparison of every two of them that have a score: the greater score
wins, equal scores are a tie with a share of 0.5, and the difference is the strength. A rating is text, ``1`` to ``5``
(more is better), or ``N/A``, which is no rating: it leaves the mean, and a completion without any score has no comparison.
The judge is one language model, so nobody has a name.

``overall_score`` goes to 10, and a 10 whose ratings have a mean of at most 2 is a known fault of the release: a 1 that was read as
10. With ``score="overall"`` the row is an error (counted as ``faulty score``), or the score is mended to 1 by
``faulty_scores="mend"``.

A row of the pairs is one record: the sides are whole conversations, whose shared beginning is the prompt and must hold the text
of ``prompt``. ``chosen`` wins unless both scores are equal: such pairs are common, one side having been drawn from the rest,
and are a tie here. A row whose rejected side has the greater score is an error.
"""

from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Literal, Unpack

from ..base import PreferenceDataModule
from ..checks import check_choices, check_subset
from ..records import (
    Comparison,
    HubDataset,
    Judgement,
    PreferenceRecord,
    RecordError,
    Response,
    SourceRow,
    choice_field,
    compared,
    find_file,
    list_field,
    mapping_field,
    nested_field,
    number_field,
    parse_messages,
    parse_rows,
    signed_judgement,
    split_sides,
    system_field,
    text_field,
)
from ..settings import LenientSettings, OnInvalid
from .parts import find_parts, numbered_rows, read_parts, rows_of_source

__all__ = ["UltraFeedbackDataModule"]

HUBS = {
    "raw": HubDataset("openbmb/UltraFeedback", "40b436560ca83a8dba36114c22ab3c66e43f6d5e"),
    "binarized": HubDataset(
        "HuggingFaceH4/ultrafeedback_binarized", "3949bf5f8c17c394422ccfab0c31ea9c20bdeb85"
    ),
}
SUBSETS = ("evol_instruct", "false_qa", "flan", "sharegpt", "truthful_qa", "ultrachat")
ASPECTS = ("helpfulness", "honesty", "instruction_following", "truthfulness")
RATINGS = {str(level): float(level) for level in range(1, 6)} | {"N/A": None}
RELEASED = {"train": "train_prefs", "test": "test_prefs"}
FAULTY, FAULTY_MEAN, MENDED = 10.0, 2.0, 1.0

Score = Literal["mean", "overall", "helpfulness", "honesty", "instruction_following", "truthfulness"]


class UltraFeedbackDataModule(PreferenceDataModule):
    """Four completions of each instruction with the ratings of a language model, or pairs of them (UltraFeedback)."""

    name = "ultrafeedback"
    sources = ("train", "test")

    def __init__(
        self,
        *,
        release: Literal["raw", "binarized"] = "raw",
        score: Score = "mean",
        faulty_scores: Literal["refuse", "mend"] = "refuse",
        subsets: tuple[str, ...] = SUBSETS,
        data_dir: str | None = None,
        on_invalid: OnInvalid = "skip",
        **shared: Unpack[LenientSettings],
    ) -> None:
        """Choose release, score and source; reads nothing.

        Args:
            release: ``raw``: all completions with their ratings. ``binarized``: one pair an instruction; the settings
                of the raw release must be left alone.
            score: What compares completions: the ``mean`` of the four ratings, the ``overall`` score, or one of the ratings.
            faulty_scores: What becomes of a row with an overall score of 10 whose ratings say at most 2: ``refuse``
                or ``mend``; for ``score="overall"`` alone.
            subsets: Whose instructions to use: ``evol_instruct``, ``false_qa``, ``flan``, ``sharegpt``, ``truthful_qa``,
                ``ultrachat``. Leave ``truthful_qa`` and ``false_qa`` out where you test on these benchmarks.
            data_dir: Folder with a ``<subset>.jsonl`` (also ``.gz``) for each subset in use, or, of the pairs, with
                ``train_prefs*`` and ``test_prefs*`` as ``.parquet`` or ``.jsonl``, or with these in its folder ``data``; None
                loads the pinned revision from the Hugging Face hub.
            on_invalid: ``error`` or ``skip``; blank completions and faulty scores are known, so ``skip`` by default.
            **shared: Settings that all datasets share, see :class:`PreferenceDataModule`.

        Raises:
            ValueError: If a setting is unknown, or is one that the others leave without effect.

        Example:
            >>> UltraFeedbackDataModule(score="honesty", subsets=("flan", "ultrachat")).subsets
            ('flan', 'ultrachat')

        .. versionadded:: 0.1
        """
        super().__init__(on_invalid=on_invalid, **shared)
        check_choices(
            UltraFeedbackDataModule.__init__, release=release, score=score, faulty_scores=faulty_scores
        )
        self.subsets = check_subset("subsets", subsets, SUBSETS)
        if release == "binarized" and (score != "mean" or self.subsets != SUBSETS):
            raise ValueError(
                f"score and subsets must not be given for release='binarized', got score={score!r} and "
                f"subsets={subsets!r}: a pair has the scores that it was made by, and does not say its subset"
            )
        if faulty_scores != "refuse" and score != "overall":
            raise ValueError(
                f"faulty_scores={faulty_scores!r} needs release='raw' and score='overall', got score={score!r}: ratings "
                "have no such fault"
            )
        self.release, self.score, self.faulty_scores = release, score, faulty_scores
        self.data_dir = data_dir

    def files(self, source: str) -> list[Path]:
        """Files of the subsets, whatever the source, or the parts of the source's pairs, if they are local."""
        if self.data_dir is None:
            return []
        folder, split = Path(self.data_dir), RELEASED[source]
        if self.release == "raw":
            return [find_file(folder, f"{subset}.jsonl") for subset in self.subsets]
        return find_parts(folder, f"{split}*.parquet", f"{split}*.jsonl", f"{split}*.jsonl.gz")

    def settings(self) -> dict[str, object]:
        """Release, score, faulty scores and subsets, and the pinned revision if the hub is the source."""
        names = ("release", "score", "faulty_scores", "subsets")
        hub = HUBS[self.release].pin(self.data_dir)
        return {"hub": hub, **{name: getattr(self, name) for name in names}}

    def load(self, source: str) -> Iterator[SourceRow | RecordError]:
        """Rows of the source; of the raw release, one whose instruction cannot be read is an error of training."""
        hub, local = HUBS[self.release], self.data_dir is not None
        if self.release == "binarized":
            rows = read_parts(self.files(source)) if local else hub.rows(RELEASED[source])
            yield from numbered_rows(RELEASED[source], rows)
        else:
            rows = read_parts(self.files(source)) if local else hub.rows("train")
            yield from rows_of_source(source, self._named(rows), lambda row: row.text("instruction").strip())

    def _named(self, rows: Iterator[SourceRow | RecordError]) -> Iterator[SourceRow | RecordError]:
        """Rows of the subsets in use, with their subset and their number in it as ``id``."""
        numbers = Counter[str]()
        for row in parse_rows(rows, _of_a_subset):
            if isinstance(row, RecordError):
                yield row
                continue
            subset = row.text("source")
            numbers[subset] += 1
            if subset in self.subsets:
                yield row._replace(fields={**row.fields, "id": f"{subset}:{numbers[subset]}"})

    def to_example(self, row: SourceRow) -> PreferenceRecord:
        """An instruction with its completions and every comparison of two, or a pair."""
        return self._completions(row) if self.release == "raw" else _pair(row)

    def _completions(self, row: SourceRow) -> PreferenceRecord:
        field = "completions"
        completions = [
            (f"{field}[{i}]", mapping_field(f"{field}[{i}]", completion))
            for i, completion in enumerate(list_field(field, row.get(field)))
        ]
        responses = tuple(
            Response(
                text_field(f"{place}.response", completion.get("response")).strip(),
                score=self._score(place, completion),
                system=system_field(f"{place}.model", completion.get("model")),
            )
            for place, completion in completions
        )
        return PreferenceRecord(
            id=row.text("id"),
            prompt=row.text("instruction").strip(),
            responses=responses,
            comparisons=tuple(_comparisons(responses)),
            group=row.text("group"),
        )

    def _score(self, place: str, completion: object) -> float | None:
        """Score of a completion; None if none of its ratings is one."""
        aspects = ASPECTS if self.score in ("mean", "overall") else (self.score,)
        ratings = [rating for aspect in aspects if (rating := _rating(place, completion, aspect)) is not None]
        mean = fmean(ratings) if ratings else None
        if self.score != "overall":
            return mean
        field = f"{place}.overall_score"
        overall = number_field(field, mapping_field(place, completion).get("overall_score"), 0, FAULTY)
        if overall < FAULTY or mean is None or mean > FAULTY_MEAN:
            return overall
        if self.faulty_scores == "refuse":
            allowed = (
                f"a score that fits the ratings, whose mean is {mean:g}; faulty_scores: mend reads it as 1"
            )
            raise RecordError(field, overall, allowed, reason="faulty score")
        return MENDED


def _of_a_subset(row: SourceRow) -> SourceRow:
    choice_field("source", row.get("source"), SUBSETS)
    return row


def _rating(place: str, completion: object, aspect: str) -> float | None:
    name = f"annotations.{aspect}.Rating"
    value = nested_field(mapping_field(place, completion), name, optional=True)
    return RATINGS[choice_field(f"{place}.{name}", value, RATINGS)]


def _comparisons(responses: tuple[Response, ...]) -> Iterator[Comparison]:
    for first, second in combinations(range(len(responses)), 2):
        scores = responses[first].score, responses[second].score
        if scores[0] is not None and scores[1] is not None:
            gap = signed_judgement("score", scores[0] - scores[1], "first")
            yield compared(first, second, gap)


def _pair(row: SourceRow) -> PreferenceRecord:
    sides = ("chosen", "rejected")
    prompt, responses = split_sides(
        sides, [parse_messages(side, row.get(side)) for side in sides], row.text("prompt")
    )
    first, second = (number_field(f"score_{side}", row.get(f"score_{side}")) for side in sides)
    if second > first:
        allowed = f"at most the {first:g} of score_chosen"
        raise RecordError("score_rejected", second, allowed, reason="rejected scores higher")
    judgement = Judgement(1.0 if first > second else 0.5, first - second)
    return PreferenceRecord(
        id=row.text("id"),
        prompt=prompt,
        responses=tuple(responses),
        comparisons=(compared(0, 1, judgement),),
        group=row.text("prompt").strip(),
    )
