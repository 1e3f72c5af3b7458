"""Studies of `ensemble_vote_rm.py`: flips planted in pairs, found by votes and treated; tenths of strength of pairs as they are."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from ensemble_vote_rm_data import (
    FLIPPED,
    Pair,
    PairSet,
    Source,
    is_flipped,
    keys_of,
)
from ensemble_vote_rm_runs import (
    DECILES,
    NONE,
    TREATMENTS,
    Kind,
    Rates,
    Votes,
    found_flips,
    members,
    right,
    trained,
    voted,
)
from torch import Tensor

from pluralign.models import BackboneConfig

__all__ = ["IN_SAMPLE", "MEMBERS_OF_RESAMPLE", "Planted", "Study", "Tenths"]

IN_SAMPLE = "bootstrap"
"""Members whose votes treatments go by: the method's default."""
MEMBERS_OF_RESAMPLE = ("none", IN_SAMPLE, "folds")
FLIP_ALL = "flip 15 %"


class Found(NamedTuple):
    """What one seed's votes found."""

    flips: Tensor
    """Whether each planted flip is among the weakest pairs, as many as were planted, float64."""
    pairs: Tensor
    """Number of the pair of each."""
    correlation: float
    """Mean correlation of two members' differences."""


@dataclass(frozen=True)
class Planted:
    """What one seed gave on pairs with flips.

    Attributes:
        found: By who voted.
        test: Who is right about each test comparison, (P,) float64, by what was done to the training labels.
        validation: Mean accuracy on validation, likewise.
        prompt: Of each test comparison, (P,).
    """

    found: dict[str, Found]
    test: dict[str, Tensor] = field(default_factory=dict)
    validation: dict[str, float] = field(default_factory=dict)
    prompt: Tensor = field(default_factory=lambda: torch.empty(0))


class Tenths(NamedTuple):
    """What one seed gave on pairs as they are."""

    test: dict[str, Tensor]
    """Who is right about each test comparison, (P,), by the tenth of the training pairs that was learned from."""
    prompt: Tensor
    """Of each test comparison, (P,)."""
    strength: Tensor
    """Of the training pairs, (N,); NaN where a pair was not read."""


@dataclass(frozen=True)
class Study:
    """Pairs, how they are read, and what learns from them.

    Attributes:
        name: Of files.
        source: How pairs are read by heads.
        pairs: True pairs of a seed.
        backbone: Of final models and of heads that vote.
        rates: Of heads and final models.
        treatments: Names of those that are tried.
    """

    name: str
    source: Source
    pairs: Callable[[int], PairSet]
    backbone: BackboneConfig
    rates: Rates
    treatments: tuple[str, ...] = tuple(TREATMENTS)

    @property
    def folder(self) -> Path:
        """For votes."""
        return self.source.folder / "votes"

    def votes(
        self, files: Path, seed: int, kind: Kind, resample: str, *, source: Source | None = None,
        backbone: BackboneConfig | None = None, rates: Rates | None = None,
    ) -> Votes:  # fmt: skip
        """Have members learn, and vote.

        Args:
            files: The pairs.
            seed: Of the members.
            kind: What each has of its own.
            resample: What it sees.
            source: How they read pairs, where not as heads do.
            backbone: Likewise.
            rates: Likewise.
        """
        source = source or self.source

        def data(order: int) -> object:
            return source.data(files, seed=order)

        models = members(kind, resample, backbone or self.backbone, data, rates or self.rates, seed)  # type: ignore[arg-type]
        folder = self.folder / f"{self.name}-{files.name}-{kind}-{resample}-{seed}"
        shutil.rmtree(folder, ignore_errors=True)
        return voted(models, source.data(files), folder)

    def found(self, votes: Votes, pairs: Sequence[Pair], seed: int) -> Found:
        """How many of the planted flips are among the weakest pairs."""
        flipped = [is_flipped(pair, seed) for pair in pairs]
        kept, number = found_flips(votes, keys_of(pairs, "train"), flipped, FLIPPED)
        return Found(kept, number, votes.correlation)

    def planted(self, seed: int, others: dict[str, Callable[[Path, int], Votes]] | None = None) -> Planted:
        """Flips of a seed: who finds them, and what treatments make of them.

        Args:
            seed: Of flips, members and final models.
            others: Further members by name, which vote after the heads.
        """
        true = self.pairs(seed)
        files = self.source.write(f"{self.name}-{seed}", true, seed)
        voters = {resample: self.votes(files, seed, "head", resample) for resample in MEMBERS_OF_RESAMPLE}
        further = {name: vote(files, seed) for name, vote in (others or {}).items()}
        all_votes = {f"head, {name}": votes for name, votes in voters.items()} | further
        found = {name: self.found(votes, true["train"], seed) for name, votes in all_votes.items()}
        test, validation = (self.source.judged(files, split) for split in ("test", "validation"))
        result = Planted(found, prompt=test.prompt)
        runs = {NONE: ((), None)}
        runs |= {name: (TREATMENTS[name], voters[IN_SAMPLE]) for name in self.treatments}
        runs |= {
            f"bottom 10 %{end} alone": (DECILES[f"decile 0{end}"], voters[IN_SAMPLE])
            for end in ("", " flipped")
        }
        runs |= {
            f"{FLIP_ALL}, votes of {name}": (TREATMENTS[FLIP_ALL], votes)
            for name, votes in all_votes.items()
            if name != f"head, {IN_SAMPLE}"
        }
        for name, (rules, votes) in runs.items():
            model = trained(self.source, files, self.backbone, self.rates, seed, rules, votes)
            result.test[name] = right(model, test)
            result.validation[name] = float(right(model, validation).mean())
        return result

    def tenths(self, seed: int) -> Tenths:
        """One model for each tenth of the strengths, of pairs as they are.

        Args:
            seed: Of members and models.
        """
        true = self.pairs(seed)
        files = self.source.write(f"{self.name}-clean", true)
        votes = self.votes(files, seed, "head", IN_SAMPLE)
        test = self.source.judged(files, "test")
        found = {
            name: right(trained(self.source, files, self.backbone, self.rates, seed, rules, votes), test)
            for name, rules in ({NONE: ()} | DECILES).items()
        }
        strength = votes.strength_of(keys_of(true["train"], "train"))
        return Tenths(found, test.prompt, strength)
