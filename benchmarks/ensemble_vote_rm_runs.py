"""Runs of `ensemble_vote_rm.py`: members that vote on the training pairs, and what the same pairs teach once treated."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import lightning as L
import numpy as np
import torch
from ensemble_vote_rm_data import Judged, Source
from quiet_runs import adamw, quiet_trainer
from torch import Tensor

from pluralign.datamodules import PreferenceDataModule, TreatmentConfig, TreatmentRule
from pluralign.datamodules.votes import VoteFolder, VoteSource, VoteTable, described_data, members_digest
from pluralign.inference import cast_votes, check_votes, gather_votes
from pluralign.models import BackboneConfig, BradleyTerryRM, EnsembleVoteRM, LoRAConfig, RewardModule

__all__ = [
    "DECILES",
    "NONE",
    "TREATMENTS",
    "Kind",
    "Rates",
    "Votes",
    "right",
    "trained",
    "voted",
]

Kind = Literal["head", "lora", "full"]
MEMBERS = 10
LORA = LoRAConfig(rank=4, last_layers=1)
SMOOTHING = 0.2
"""Of the dossier's preset: the report's loss floor is its entropy."""
FLIP, DROP = "flip", "drop"
NONE = "none"


def flip(share: float, *, margin: float | None = None, rest: bool = False) -> tuple[TreatmentRule, ...]:
    """The weakest are turned round, perhaps with a margin; all others, too, have one if asked for."""
    first = TreatmentRule(high=share, label="flip", margin=margin)
    return (first, TreatmentRule(low=share, margin=margin)) if rest else (first,)


TREATMENTS: dict[str, tuple[TreatmentRule, ...]] = {
    "flip 10 %": flip(0.1),
    "flip 15 %": flip(0.15),
    "flip 10 % + margin": flip(0.1, margin=1.0, rest=True),
    "flip 15 % + margin": flip(0.15, margin=1.0, rest=True),
    "drop 15 %": (TreatmentRule(high=0.15, label="drop"),),
    "smoothing of 15 %": (TreatmentRule(high=0.15, smoothing=SMOOTHING),),
    "smoothing of all": (TreatmentRule(smoothing=SMOOTHING),),
    "margin": (TreatmentRule(margin=1.0),),
    "smoothing + margin": (TreatmentRule(smoothing=SMOOTHING, margin=1.0),),
}
"""By quantile of the strength. The report flips the bottom 10 % where it knows no share; 15 % are planted here."""


def decile(number: int, *, flipped: bool = False) -> tuple[TreatmentRule, ...]:
    """One tenth of the strengths alone."""
    low, high = number / 10, (number + 1) / 10
    rules = [TreatmentRule(low=low, high=high, label="flip")] if flipped else []
    if number:
        rules.append(TreatmentRule(high=low, label="drop"))
    if number < 9:
        rules.append(TreatmentRule(low=high, label="drop"))
    return tuple(rules)


DECILES: dict[str, tuple[TreatmentRule, ...]] = {f"decile {number}": decile(number) for number in range(10)}
DECILES |= {f"decile {number} flipped": decile(number, flipped=True) for number in (0, 1)}


@dataclass(frozen=True)
class Rates:
    """How long and how fast a network learns.

    Attributes:
        steps: Of an optimiser.
        rate: Its learning rate.
        dropout: Of members, on the pooled states.
    """

    steps: int
    rate: float
    dropout: float = 0.1


class Votes(NamedTuple):
    """What members said of the training pairs."""

    folder: str
    table: VoteTable
    correlation: float
    """Mean over pairs of members."""

    def strength_of(self, keys: Sequence[int]) -> Tensor:
        """Strength of pairs, (n,) float64; NaN of those that were not read."""
        entries = self.table.find(np.asarray(keys, np.int64), np.zeros(len(keys), np.int64))
        return torch.from_numpy(np.where(entries >= 0, self.table.mean[entries], np.nan).astype(np.float64))


# Members -------------------------------------------------------------------------------------------------


def members(
    kind: Kind, resample: str, backbone: BackboneConfig, data: Callable[[int], PreferenceDataModule],
    rates: Rates, seed: int,
) -> list[EnsembleVoteRM]:  # fmt: skip
    """Trained members: one module that has all of them, or one for each.

    Args:
        kind: What each member has of its own.
        resample: What it sees.
        backbone: Of all.
        data: The data in the order of a seed.
        rates: How they learn.
        seed: Of the first member.
    """
    first = seed * 1000
    found = []
    for member in range(MEMBERS) if kind == "full" else (None,):
        own = first + (member or 0)
        L.seed_everything(own, verbose=False)
        model = EnsembleVoteRM(
            backbone,
            num_members=MEMBERS,
            members=kind,
            lora=LORA if kind == "lora" else None,
            member=member,
            resample=resample,  # type: ignore[arg-type]  # one of its choices
            seed=first,
            dropout=rates.dropout,
            largest_correlation=1.0,  # how alike they are is what is asked
            optimizer=adamw(rates.rate),
        )
        quiet_trainer(rates.steps).fit(model, data(own))
        found.append(model)
    return found


def voted(models: Sequence[EnsembleVoteRM], data: PreferenceDataModule, folder: Path) -> Votes:
    """Votes of members on the training pairs, as ``pluralign vote`` writes them.

    Args:
        models: As :func:`members` gives them.
        data: The pairs, without treatments.
        folder: For the votes.
    """
    data.setup("fit")
    description, records = described_data(data), {"train": len(data.rows("train"))}
    digests = [
        members_digest([{"state_dict": model.state_dict(), "hyper_parameters": {"seed": model.seed}}])
        for model in models
    ]
    resample = models[0].resample
    whole = VoteFolder(folder, VoteSource(description, "+".join(digests)[:64], MEMBERS, resample), records)
    if len(models) == 1:
        for _ in cast_votes(models[0], data, whole, "train"):
            pass
    else:
        parts = []
        for number, (model, digest) in enumerate(zip(models, digests, strict=True)):
            source = VoteSource(description, digest, 1, resample)
            parts.append(VoteFolder(folder / f"{number}", source, records))
            for _ in cast_votes(model, data, parts[-1], "train"):
                pass
        gather_votes(whole, parts, "train")
    correlation = check_votes(whole, "train").correlation
    whole.finish()
    return Votes(str(folder), VoteTable.load(folder), correlation)


# What is learned -----------------------------------------------------------------------------------------


def trained(
    source: Source, files: Path, backbone: BackboneConfig, rates: Rates, seed: int,
    rules: tuple[TreatmentRule, ...] = (), votes: Votes | None = None,
) -> RewardModule:  # fmt: skip
    """A Bradley-Terry model of the training pairs, their labels treated by the votes.

    Args:
        source: How pairs are read.
        files: The pairs.
        backbone: What it starts from.
        rates: How it learns.
        seed: Of its order and head.
        rules: By quantile of the strength; none leave the labels as they are.
        votes: On the training pairs.
    """
    L.seed_everything(seed, verbose=False)
    treatments = TreatmentConfig(rules, votes=votes.folder) if rules and votes else None
    model = BradleyTerryRM(backbone, optimizer=adamw(rates.rate))
    quiet_trainer(rates.steps).fit(model, source.data(files, seed=seed, treatments=treatments))
    return model


@torch.no_grad()
def right(model: RewardModule, judged: Judged) -> Tensor:
    """Which comparisons a model is right about, (P,) float64; an equal reward is half right."""
    model.eval()
    gaps = []
    for batch in judged.batches:
        output = model(batch)
        gaps.append(output["chosen"] - output["rejected"])
    gap = torch.cat(gaps)
    return (gap > 0).double() + 0.5 * (gap == 0).double()


def found_flips(
    votes: Votes, keys: Sequence[int], flipped: Sequence[bool], share: float
) -> tuple[Tensor, Tensor]:
    """Which of the planted flips are among the weakest pairs.

    Args:
        votes: On the training pairs.
        keys: Of the training pairs.
        flipped: Whether each is turned round.
        share: Of the pairs, that counts as the weakest.

    Returns:
        (F,) float64 for each flip that was read, and the numbers of their pairs, (F,) int64.
    """
    strength = votes.strength_of(keys)
    there = ~strength.isnan()
    number = int((share * there.sum()).round())
    weak = torch.zeros(len(strength), dtype=torch.float64)
    weak[strength.nan_to_num(torch.inf).argsort(stable=True)[:number]] = 1
    planted = there & torch.tensor(flipped)
    return weak[planted], planted.nonzero()[:, 0]
