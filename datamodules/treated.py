"""TreatedData: the open splits, side tables beside them, and how the training split's labels are treated; for all datasets."""

from collections import Counter
from collections.abc import Mapping
from typing import Any, Unpack

import numpy as np
from lightning.pytorch.trainer.states import TrainerFn

from .batches import LoaderConfig
from .content import content_changes
from .joins import SideTable, load_joins
from .named import NamedData
from .settings import SharedSettings
from .tokens import ComparisonView, RecordTable, lengths
from .treatments import (
    Decisions,
    Strengths,
    TreatedView,
    TreatmentConfig,
    decide,
    given_strengths,
    voted_strengths,
)
from .votes import VoteTable

__all__ = ["TreatedData"]


class TreatedData(NamedData):
    """Part of every data module that knows its open splits, what is joined to them, and what is done to labels.

    A subclass opens the splits.
    """

    def __init__(self, **shared: Unpack[SharedSettings]) -> None:
        """Keep the settings that all datasets share; reads nothing.

        Args:
            **shared: As :class:`PreparedData` has them.
        """
        super().__init__(**shared)
        self._joins: tuple[tuple[str, ...], tuple[SideTable, ...]] = (), ()
        self._tables: dict[str, RecordTable] = {}
        self._decided: tuple[object, Decisions] | None = None

    def table(self, split: str) -> RecordTable:
        """The tokenised records of a split.

        Raises:
            ValueError: If the dataset has no such split.
            RuntimeError: If ``setup`` has not opened it.
        """
        if split not in self.splits:
            raise ValueError(f"{type(self).__name__} has no {split} split; it has {', '.join(self.splits)}")
        if split not in self._tables:
            raise RuntimeError(f"the {split} split is not open: call setup() for its stage first")
        return self._tables[split]

    @property
    def joins(self) -> tuple[SideTable, ...]:
        """The side tables that ``loader.joins`` names, read when first asked for."""
        if self._joins[0] != self.loader.joins:
            self._joins = self.loader.joins, load_joins(self.loader.joins)
        return self._joins[1]

    @property
    def decisions(self) -> Decisions | None:
        """What ``loader.treatments`` does to each comparison of the training split, with its report; None without it.

        Raises:
            FileNotFoundError: If there are no votes where it names them.
            RuntimeError: If ``setup`` has not opened the training split.
            ValueError: If votes are of other data or members, strengths are missing, or margins of the data are in the way.
        """
        config = self.loader.treatments
        if config is None:
            return None
        key = config, self.loader.joins
        if self._decided is None or self._decided[0] != key:
            self._check_margins(config)
            decided = decide(f"{self.name} train", self.table("train"), config, self._strengths(config))
            self._decided = key, decided
        return self._decided[1]

    def state_dict(self) -> dict[str, Any]:
        """Names and what the data were; and, of an open training split, how its labels are treated."""
        state = super().state_dict()
        if "train" in self._tables:
            state["treatments"] = {} if self.decisions is None else self.decisions.content()
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take users and domains from a checkpoint.

        Raises:
            ValueError: If a run is to go on with other data, or labels treated otherwise, than it was trained with.
        """
        super().load_state_dict(state_dict)
        before, now = state_dict.get("treatments"), self.state_dict().get("treatments")
        fitting = self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        if not fitting or before is None or now is None:  # an earlier version kept none
            return
        changes = content_changes(before, now, "loader.treatments")
        if changes and not (before and now):
            changes = [
                f"loader.treatments was {'given' if before else 'null'}, is {'given' if now else 'null'}"
            ]
        if changes:
            raise ValueError(
                f"{self.name}: a run cannot go on with labels that are treated otherwise than it was trained with: "
                f"{'; '.join(changes)}. Give it the treatments and votes it had; to start a new run from its weights, name the "
                "checkpoint as model.init_from and leave ckpt_path out"
            )

    def _strengths(self, config: TreatmentConfig) -> Strengths:
        title, table = f"{self.name} train", self.table("train")
        if config.votes is None:
            return given_strengths(title, table, self.joins)
        votes = self.vote_table(config.votes)
        return voted_strengths(title, table, votes, config.votes)

    def vote_table(self, folder: str) -> VoteTable:
        """Votes on the training split.

        Args:
            folder: Where ``pluralign vote`` wrote them.

        Raises:
            FileNotFoundError: If there are none.
            ValueError: If they are of other data, or of several members' runs, or not complete.
        """
        votes = VoteTable.load(folder, splits=("train",))
        votes.check_data(self)
        return votes

    def _check_margins(self, config: TreatmentConfig) -> None:
        """Refuse margins of the rules beside those of the data, unless the settings say what becomes of these."""
        assert self._reader is not None  # the split is open
        joined = next((table.path for table in self.joins if table.column == "margin"), None)
        if (
            config.gives_margins
            and config.margins == "error"
            and (joined or "margin" in self._reader.present)
        ):
            raise ValueError(
                f"{self.name}: rules of loader.treatments give margins, and {joined or 'the data'} have margins already: set "
                "loader.treatments.margins to replace or add, or take margin out of the rules"
            )

    def _treats(self, split: str, settings: LoaderConfig) -> bool:
        """Whether labels of a split are treated: those of the training split alone."""
        return split == "train" and settings.treatments is not None

    def _treated(self, rows: RecordTable | ComparisonView) -> TreatedView:
        """Records of the training split, or some of them, with what is done to their comparisons."""
        decisions = self.decisions
        assert decisions is not None  # the caller looked
        return TreatedView(rows, decisions)

    def judgements_of_users(self) -> dict[str, int]:
        """Judgements in the training split of each user whom its loader shows; empty where data have no such split.

        Those that a treatment drops do not count where the training split is open.

        Raises:
            RuntimeError: If ``setup`` has not run.
        """
        counts = super().judgements_of_users()
        decisions = self.decisions if "train" in self._tables else None
        if not counts or decisions is None or decisions.kept.all():
            return counts
        column = self.table("train").column("user")
        named = np.repeat(lengths(column) > 0, self.table("train").comparison_counts())
        users = [name for chunk in column.chunks for name in chunk.flatten().to_pylist()]
        dropped = Counter(
            user for user, kept in zip(users, decisions.kept[named].tolist(), strict=True) if not kept
        )
        return {name: number - dropped[name] for name, number in counts.items()}
