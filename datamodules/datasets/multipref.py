"""MultiPrefDataModule: pairs of answers, each judged by four people in four respects, on five levels (MultiPref).

* Source: https://huggingface.co/datasets/allenai/multipref, configuration ``default`` (Miranda et al., *Hybrid
  Preferences: Learning to Route Instances for Human vs. AI Feedback*, ACL 2025, https://arxiv.org/abs/2410.19133). The
  binarised configurations have lost the annotators.
* Licence: ODC-By.
* Revision: 12910233a0238a997ebe425656e9dfed7b0ff031. Its evaluators have random names; older revisions have raw worker
  ids. The schema is that of the release's card and of public readers of it; the bytes were not at hand.
* Columns read: ``text``, ``completion_a``, ``completion_b``, ``model_a``, ``model_b`` (may be missing), and of each entry of ``normal_worker_annotations`` and
  ``expert_worker_annotations`` ``evaluator`` and the chosen one of ``overall_pref``, ``helpful_pref``,
  ``truthful_pref``, ``harmless_pref``.
* Split rule (ours; the release has one split): a tenth of the prompts, by their hash, is the test split; validation is
  carved out of training by another hash.

The five levels name the side: ``A-is-clearly-better`` is a full preference for ``completion_a`` with a strength of 2,
``A-is-slightly-better`` one with a strength of 1, ``Tie`` a share of 0.5 and a strength of 0; the same for B. A
strength counts for the first response of the comparison, which is the winner.

A row is one record with two responses. With ``judgements="annotators"`` it has a comparison for each annotation, whose
user is the evaluator and whose group of users is ``normal`` or ``expert``; with ``"crowd"`` it has one, with the votes
for chosen, tie and rejected and the mean of the strengths. The record's aspect is the setting.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple, Unpack

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
    crowd_judgement,
    list_field,
    mapping_field,
    signed_judgement,
    system_field,
    user_field,
)
from ..settings import SharedSettings
from .parts import find_parts, numbered_rows, read_parts, rows_of_source

__all__ = ["MultiPrefDataModule"]

HUB = HubDataset("allenai/multipref", "12910233a0238a997ebe425656e9dfed7b0ff031")
CONFIGURATION = "default"
POOLS = ("normal", "expert")
LEVELS = {
    "A-is-clearly-better": 2,
    "A-is-slightly-better": 1,
    "Tie": 0,
    "B-is-slightly-better": -1,
    "B-is-clearly-better": -2,
}
"""Strength for the first side of each level."""


class Vote(NamedTuple):
    """One annotation: who judged, of which pool, and what."""

    evaluator: str
    pool: str
    judgement: Judgement


class MultiPrefDataModule(PreferenceDataModule):
    """Pairs of answers, each compared by two ordinary and two expert annotators with names (MultiPref)."""

    name = "multipref"
    sources = ("train", "test")

    def __init__(
        self,
        *,
        aspect: Literal["overall", "helpful", "truthful", "harmless"] = "overall",
        judgements: Literal["annotators", "crowd"] = "annotators",
        pools: tuple[str, ...] = POOLS,
        data_dir: str | None = None,
        **shared: Unpack[SharedSettings],
    ) -> None:
        """Choose aspect, judgements and source; reads nothing.

        Args:
            aspect: In which respect the answers are compared.
            judgements: ``annotators``: one comparison an annotation, with the evaluator as user. ``crowd``: one
                comparison a pair, with the counts of votes.
            pools: Whose annotations to use: ``normal``, ``expert``.
            data_dir: Folder with ``train*.parquet`` or ``train*.jsonl`` (also ``.gz``), or with such files in its
                folder ``data``, as the release has them; None loads the pinned revision from the Hugging Face hub.
            **shared: Settings that all datasets share, see :class:`PreferenceDataModule`.

        Raises:
            ValueError: If a setting is unknown.

        Example:
            >>> MultiPrefDataModule(aspect="harmless", pools=("expert",)).aspect
            'harmless'

        .. versionadded:: 0.1
        """
        super().__init__(**shared)
        check_choices(MultiPrefDataModule.__init__, aspect=aspect, judgements=judgements)
        self.pools = check_subset("pools", pools, POOLS)
        self.aspect, self.judgements, self.data_dir = aspect, judgements, data_dir

    def files(self, source: str) -> list[Path]:
        """The release's files, whatever the source, if they are local."""
        if self.data_dir is None:
            return []
        return find_parts(Path(self.data_dir), "train*.parquet", "train*.jsonl", "train*.jsonl.gz")

    def settings(self) -> dict[str, object]:
        """Aspect, judgements and pools, and the pinned revision if the hub is the source."""
        hub = HUB.pin(self.data_dir)
        return {"hub": hub, "aspect": self.aspect, "judgements": self.judgements, "pools": self.pools}

    def load(self, source: str) -> Iterator[SourceRow | RecordError]:
        """Rows of the prompts of the source; one whose prompt cannot be read is an error of training."""
        if self.data_dir is None:
            rows = HUB.rows("train", configuration=CONFIGURATION)
        else:
            columns = (
                "text",
                "completion_a",
                "completion_b",
                "model_a",
                "model_b",
                *(f"{pool}_worker_annotations" for pool in POOLS),
            )
            rows = read_parts(self.files(source), columns)
        yield from rows_of_source(source, numbered_rows("train", rows), lambda row: row.text("text").strip())

    def to_example(self, row: SourceRow) -> PreferenceRecord:
        """A prompt, two completions, and what each annotator, or all together, thought of them."""
        votes = list(self._votes(row))
        comparisons: tuple[Comparison, ...]
        if self.judgements == "crowd":
            comparisons = (crowd_judgement(0, 1, [vote.judgement for vote in votes]),)
        else:
            comparisons = tuple(
                compared(0, 1, vote.judgement, user=vote.evaluator, group=vote.pool) for vote in votes
            )
        return PreferenceRecord(
            id=row.text("id"),
            prompt=row.text("text").strip(),
            responses=tuple(
                Response(
                    row.text(f"completion_{side}").strip(),
                    system=system_field(name, row.get(name, optional=True)),
                )
                for side, name in (("a", "model_a"), ("b", "model_b"))
            ),
            comparisons=comparisons,
            group=row.text("group"),
            aspect=self.aspect,
        )

    def _votes(self, row: SourceRow) -> Iterator[Vote]:
        for pool in self.pools:
            field = f"{pool}_worker_annotations"
            for i, value in enumerate(list_field(field, row.get(field))):
                place = f"{field}[{i}]"
                annotation = mapping_field(place, value)
                column = f"{self.aspect}_pref"
                level = choice_field(f"{place}.{column}", annotation.get(column), LEVELS)
                judgement = signed_judgement(f"{place}.{column}", LEVELS[level], "first")
                yield Vote(user_field(f"{place}.evaluator", annotation.get("evaluator")), pool, judgement)
