"""DICESRatersDataModule: is a chatbot's answer safe? Who of a large and diverse crowd thinks so (DICES, original tables).

* Source: https://github.com/google-research-datasets/dices-dataset, files
  ``990/diverse_safety_adversarial_dialog_990.csv`` and ``350/diverse_safety_adversarial_dialog_350.csv`` (Aroyo et al., *DICES
  Dataset: Diversity in Conversational AI Evaluation for Safety*, NeurIPS 2023, https://arxiv.org/abs/2306.11247).
* Licence: CC-BY-4.0.
* Revision: commit c6bc01a37eac. Columns are those that the README of each table names; the rows could not be read when
  this was written.
* Columns read: ``rater_id``, ``item_id``, ``context``, ``response``, the answers to ``question`` (No, Unsure, Yes), and where
  ``groups`` or ``raters`` ask for them ``rater_gender``, ``rater_race``, ``rater_age``, ``rater_education``, ``rater_locale``
  (990 alone).
* Split rule (ours; the release has none): a conversation and all replies to it go to training, validation or test
  (80/10/10) by a hash of the conversation, as in :class:`DICESDataModule`.

The sense of the answers: ``No`` means safe and ``Yes`` unsafe, in every question. :data:`LABELS` is the order of the counts.

The tables have one row for each rater and item: 72,103 by 173 raters for 990 items, 43,050 by 123 raters, each of whom saw every
item, for 350. All replies to one conversation are one record; the votes of each are the numbers of people of each opinion.
Two replies to the same conversation are compared by whoever saw both: the one found safer wins, equally safe ones are a tie,
and the strength is how many of the steps safe, unsure, unsafe are between them. That is where raters are users and have
groups: in the 350 about every fifth conversation has two or three replies, in the 990 hardly any.

Departure: published results leave out 13 of the 173 and 19 of the 123 raters, for quality; which is not in the tables.
"""

from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Literal, NamedTuple, Unpack

from ..base import PreferenceDataModule
from ..checks import check_choices
from ..records import (
    PER_10_000,
    Comparison,
    PreferenceRecord,
    RecordError,
    Response,
    SourceRow,
    choice_field,
    compared,
    find_file,
    listed,
    majority_comparison,
    read_csv,
    rows_of_split,
    signed_judgement,
    user_field,
    vote_counts,
)
from ..settings import SharedSettings
from .dices import ANSWERS, LABELS, line_breaks, parse_prompt

__all__ = ["DICESRatersDataModule"]

COMMIT = "c6bc01a37eac"
GROUPS = {
    "990": ("gender", "race", "age", "education", "locale"),
    "350": ("gender", "race", "age", "education"),
}


class _Item(NamedTuple):
    """A reply, and what each rater says of it: the place in LABELS."""

    response: str
    levels: dict[str, int]


class DICESRatersDataModule(PreferenceDataModule):
    """Replies of a chatbot, found safe or unsafe by raters of known gender, race, age and place (DICES, original tables)."""

    name = "dices_raters"
    sources = ("train", "validation", "test")
    where_to_get = (
        "the data are not on the Hugging Face hub in this form. Get them with `git clone "
        "https://github.com/google-research-datasets/dices-dataset && git -C dices-dataset checkout "
        f"{COMMIT}` and give data_dir=dices-dataset (CC-BY-4.0)"
    )

    def __init__(
        self,
        *,
        data_dir: str | None = None,
        subset: Literal["990", "350"] = "350",
        judgements: Literal["crowd", "raters"] = "raters",
        groups: Literal["gender", "race", "age", "education", "locale"] | None = None,
        raters: dict[str, str] | None = None,
        question: str = "Q_overall",
        **shared: Unpack[SharedSettings],
    ) -> None:
        """Choose subset, judgements and raters; reads nothing.

        Args:
            data_dir: The repository: a folder with ``990`` and ``350`` (each table also ``.gz``).
            subset: ``990`` (about 70 raters an item) or ``350`` (all of 123).
            judgements: Of two replies to a conversation. ``raters``: one comparison for each rater, as user. ``crowd``: one, with
                the share and the votes of all (for the winner, tie, for the other).
            groups: What the groups of users are, with ``judgements="raters"``; None for none.
            raters: Whose ratings to read, such as ``{gender: Woman, age: gen z}``; None for everybody's.
            question: Column of the answers, such as ``Q2_harmful_content_overall``.
            **shared: Settings that all datasets share, see :class:`PreferenceDataModule`.

        Raises:
            ValueError: If ``data_dir`` is missing (says where to get the data), a setting is unknown, or the subset does not
                say what ``groups`` or ``raters`` ask for.

        Example:
            >>> DICESRatersDataModule(data_dir="dices-dataset", groups="age", raters={"gender": "Woman"}).groups
            'age'

        .. versionadded:: 0.1
        """
        super().__init__(**shared)
        check_choices(DICESRatersDataModule.__init__, subset=subset, judgements=judgements, groups=groups)
        self.data_dir, self.subset = self.need_folder(data_dir), subset
        self.judgements, self.groups, self.raters = judgements, groups, dict(raters or {})
        self.question = question
        for name, asked in (("groups", [groups] if groups else []), ("raters", list(self.raters))):
            if unknown := [column for column in asked if column not in GROUPS[subset]]:
                allowed = ", ".join(GROUPS[subset])
                raise ValueError(f"{name} must be among {allowed} for subset {subset}; got {listed(unknown)}")
        if groups is not None and judgements == "crowd":
            raise ValueError(f"groups={groups!r} needs judgements='raters': a crowd has no users")

    def files(self, source: str) -> list[Path]:
        """The subset's table, whatever the source."""
        return [
            find_file(
                Path(self.data_dir) / self.subset, f"diverse_safety_adversarial_dialog_{self.subset}.csv"
            )
        ]

    def settings(self) -> dict[str, object]:
        """Subset, judgements, groups, raters and question."""
        names = ("subset", "judgements", "groups", "raters", "question")
        return {name: getattr(self, name) for name in names}

    def load(self, source: str) -> Iterator[SourceRow | RecordError]:
        """One row per conversation; before them, an error for each malformed rating.

        Raises:
            ValueError: If nobody in training is as ``raters`` says.
        """
        contexts: dict[str, tuple[SourceRow, dict[str, _Item]]] = {}
        groups: dict[str, str] = {}
        nobody = True
        path = self.files(source)[0]
        for row in rows_of_split(read_csv(path), source, _context, PER_10_000):
            if isinstance(row, RecordError):
                yield row
                continue
            if any(row.fields.get(f"rater_{name}") != value for name, value in self.raters.items()):
                continue
            nobody = False
            context = _context(row)
            place, items = contexts.setdefault(context, (row._replace(fields={}), {}))
            try:
                self._add(items, groups, row)
            except RecordError as error:
                yield error.at(row.file, row.line)
        if nobody and self.raters and source == "train":
            raise ValueError(f"raters={self.raters}: {path} has no training rating by anybody like that")
        for context, (place, items) in contexts.items():
            if items:
                fields = {
                    "id": f"{self.subset}:{next(iter(items))}",
                    "context": context,
                    "items": items,
                    "groups": groups,
                }
                yield place._replace(fields=fields)

    def _add(self, items: dict[str, _Item], groups: dict[str, str], row: SourceRow) -> None:
        """Put a rating where it belongs."""
        rater = user_field("rater_id", row.get("rater_id"))
        name = user_field("item_id", row.get("item_id"))
        level = ANSWERS[choice_field(self.question, row.get(self.question), ANSWERS)]
        response = line_breaks(row.text("response"))
        if name in items and items[name].response != response:
            raise RecordError(
                "response", response, "the response that the item has elsewhere", reason="item of two texts"
            )
        if name in items and rater in items[name].levels:
            raise RecordError(
                "rater_id", rater, "one rating of an item by each rater", reason="duplicate rating"
            )
        group = row.fields.get(f"rater_{self.groups}") if self.groups else None
        if group is not None and groups.setdefault(rater, str(group)) != group:
            allowed = f"{groups[rater]!r}, as in other rows of rater {rater}"
            raise RecordError(f"rater_{self.groups}", group, allowed, reason="rater of two groups")
        items.setdefault(name, _Item(response, {})).levels[rater] = level

    def to_example(self, row: SourceRow) -> PreferenceRecord:
        """A conversation, the replies to it with the votes of their raters, and comparisons of every two."""
        items: list[_Item] = list(row.made("items", dict).values())
        groups: dict[str, str] = row.made("groups", dict)
        comparisons: list[Comparison] = []
        for (i, first), (j, second) in combinations(enumerate(items), 2):
            gaps = {
                rater: second.levels[rater] - level
                for rater, level in first.levels.items()
                if rater in second.levels
            }
            if gaps and self.judgements == "crowd":
                comparisons.append(_crowd_comparison(i, j, gaps))
            elif gaps:
                comparisons += _rater_comparisons(i, j, gaps, groups)
        context = row.text("context")
        return PreferenceRecord(
            id=row.text("id"),
            prompt=parse_prompt(context),
            responses=tuple(
                Response(item.response, votes=vote_counts(item.levels.values(), len(LABELS)))
                for item in items
            ),
            comparisons=tuple(comparisons),
            group=context,
        )


def _crowd_comparison(first: int, second: int, gaps: Mapping[str, int]) -> Comparison:
    safer, riskier = (sum(sign * gap > 0 for gap in gaps.values()) for sign in (1, -1))
    return majority_comparison(first, second, (safer, len(gaps) - safer - riskier, riskier))


def _rater_comparisons(
    first: int, second: int, gaps: Mapping[str, int], groups: Mapping[str, str]
) -> Iterator[Comparison]:
    for rater, gap in gaps.items():
        judgement = signed_judgement("levels", gap, "first")
        yield compared(first, second, judgement, user=rater, group=groups.get(rater))


def _context(row: SourceRow) -> str:
    return line_breaks(row.text("context"))
