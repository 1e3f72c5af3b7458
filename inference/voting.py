"""Votes of reward models on every comparison of a split, shard by shard: scored in evaluation mode, resumable, at flat memory."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from pluralign.datamodules import LoaderConfig, PreferenceBatch, PreferenceDataModule
from pluralign.datamodules.batches import TokenBudgetBatchSampler, changed, settled
from pluralign.datamodules.joins import batch_items
from pluralign.datamodules.votes import FEWEST_VOTES, VoteFolder, VoteShard, vote_strengths
from pluralign.metrics import MemberCorrelation
from pluralign.models import EnsembleVoteRM, RewardModule

__all__ = [
    "Ballots",
    "SplitVotes",
    "cast_votes",
    "check_votes",
    "gather_votes",
    "member_ballots",
]

Progress = Iterator[tuple[str, int, int]]
"""What is scored, how many records of it are done, and how many there are."""
Precision = Callable[[], AbstractContextManager[object]]
DECILES = tuple(tenth / 10 for tenth in range(11))


class Ballots(NamedTuple):
    """What members say of the comparisons of a batch."""

    differences: Tensor
    """(P, M) float32: reward of the first response minus that of the second."""
    seen: Tensor
    """(P, M) bool: whether a member has trained on the comparison's prompt and may not vote where others have not."""


def member_ballots(model: RewardModule, batch: PreferenceBatch) -> Ballots:
    """What a module's members say of a batch; a module of one reward is one member.

    Args:
        model: In evaluation mode.
        batch: Of comparisons, on its device.
    """
    output = model(batch)
    if isinstance(model, EnsembleVoteRM):
        differences, seen = model.member_differences(output, batch).float(), model.seen(batch)
        return Ballots(differences, seen if model.resample == "folds" else torch.zeros_like(seen))
    difference = (output["chosen"] - output["rejected"]).float().unsqueeze(1)
    return Ballots(difference, torch.zeros_like(difference, dtype=torch.bool))


class _ShardBatches:
    """Batches of the records of some shards, each shard's by themselves, neighbours of similar length."""

    def __init__(
        self,
        sizes: NDArray[np.int32],
        spans: Sequence[tuple[int, int]],
        settings: LoaderConfig,
    ) -> None:
        self.sizes, self.spans, self.settings = sizes, spans, settings

    def of(self, span: tuple[int, int]) -> list[list[int]]:
        """Records of each batch of a shard."""
        first, stop = span
        bound = settled(self.settings, None).max_tokens
        assert bound != "auto"  # it is settled
        sampler = TokenBudgetBatchSampler(
            self.sizes[first:stop],
            layout=self.settings.layout,
            max_tokens=bound,
            batch_size=self.settings.batch_size,
            shuffle=False,
        )
        return [[first + record for record in batch] for batch in sampler]

    def __iter__(self) -> Iterator[list[int]]:
        """All of them, shard after shard."""
        return (batch for span in self.spans for batch in self.of(span))


class _Scored(NamedTuple):
    """A batch of a shard, scored: where its comparisons stand, and what was said of them, still on the device."""

    record: NDArray[np.int64]
    key: NDArray[np.int64]
    place: NDArray[np.int64]
    ballots: Ballots


def cast_votes(
    model: RewardModule,
    data: PreferenceDataModule,
    folder: VoteFolder,
    split: str,
    *,
    shards: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
    precision: Precision = nullcontext,
    title: str | None = None,
) -> Progress:
    """Score every comparison of the shards that a folder of votes lacks, and write each as soon as it is scored.

    The module is put into evaluation mode: dropout would be taken for disagreement. In a shard the comparisons are in the
    order of the split, however they were put into batches. Memory holds one shard. Whoever has trained on a prompt does not
    vote on it, where the module says so (``resample="folds"``), in the training split; no member has trained on another.

    Args:
        model: Built and on its device; its trainer, if it has one, knows the data.
        data: Set up for the split.
        folder: Where the votes are written, of as many members as the module has.
        split: ``train`` or ``validation``.
        shards: Which shards, of those that the folder lacks; None for all of these.
        device: Where the module is.
        precision: Makes the context in which the module runs, such as autocast; called once a batch.
        title: What is scored, for the progress; the split by default.

    Yields:
        Progress after every batch.

    Raises:
        ValueError: If a reward is not finite; names member and record.
    """
    model.eval()
    pending = [shard for shard in folder.pending(split) if shards is None or shard in set(shards)]
    if not pending:
        return
    layout: Literal["shared", "separate"] = "separate" if model.layout == "separate" else "shared"
    settings = changed(data.loader, users="all", layout=layout)
    rows, spans = data.rows(split, settings), [folder.span(split, shard) for shard in pending]
    batches = _ShardBatches(np.asarray(rows.sizes), spans, settings)
    loader: Iterable[PreferenceBatch] = DataLoader(
        rows,
        batch_size=None,
        sampler=batches,
        collate_fn=data.collator(settings),
        num_workers=settings.num_workers,
        pin_memory=torch.cuda.is_available(),
    )
    read, total = iter(loader), folder.records[split]
    done, looked = total - sum(stop - first for first, stop in spans), False
    for shard, span in zip(pending, spans, strict=True):
        scored = []
        for records in batches.of(span):
            batch = next(read)
            if not looked:
                model.check_batch(batch)
                looked = True
            if len(batch.get("comparisons", ())):
                scored.append(_score(model, batch, records, device, precision))
            done += len(records)
            yield title or split, done, total
        folder.write(split, shard, _shard(scored, folder, split, title or split))


def _score(
    model: RewardModule,
    batch: PreferenceBatch,
    records: Sequence[int],
    device: torch.device | str,
    precision: Precision,
) -> _Scored:
    key, place = batch_items(batch, "comparison")
    prompts = batch["response_prompt"][batch["comparisons"][:, 0]]
    with torch.inference_mode(), precision():
        ballots = member_ballots(model, move_data_to_device(batch, torch.device(device)))
    record = np.asarray(records)[prompts.numpy()]
    return _Scored(record, key.numpy(), place.numpy(), ballots)


def _shard(scored: Sequence[_Scored], folder: VoteFolder, split: str, title: str) -> VoteShard:
    """The votes of a shard, in the order of its records."""
    width = folder.source.num_members
    if not scored:
        empty = np.empty(0, np.int64)
        return VoteShard(empty, empty, np.empty((0, width), np.float32))
    differences = torch.cat([each.ballots.differences for each in scored]).cpu().numpy()
    seen = torch.cat([each.ballots.seen for each in scored]).cpu().numpy()
    record, key, place = (
        np.concatenate([getattr(each, name) for each in scored]) for name in ("record", "key", "place")
    )
    order = np.argsort(record, kind="stable")  # those of a record stand together, in their order
    differences, seen = differences[order], seen[order]
    if not np.isfinite(differences).all():
        row, member = np.argwhere(~np.isfinite(differences))[0].tolist()
        raise ValueError(
            f"{title if width == 1 else f'member {member}'} gives a response of record {record[order][row]} of {split}, counted "
            "from 0, a reward that is not finite: its weights are not, or trainer.precision does not hold what it computes"
        )
    if split == "train":
        differences = np.where(seen, np.float32(np.nan), differences)
    return VoteShard(key[order], place[order], differences)


def gather_votes(folder: VoteFolder, members: Sequence[VoteFolder], split: str) -> None:
    """Put the columns of members that voted one after the other side by side, in every shard that is lacking.

    Args:
        folder: Of the votes of all.
        members: Folders of one member each.
        split: Of the shards.

    Raises:
        ValueError: If they have not voted on the same comparisons.
    """
    for shard in folder.pending(split):
        columns = [member.read(split, shard) for member in members]
        first = columns[0]
        for each in columns[1:]:
            if not (
                np.array_equal(first.record_key, each.record_key) and np.array_equal(first.index, each.index)
            ):
                raise ValueError(
                    f"{folder.path}: members have voted on other comparisons; vote anew with --overwrite"
                )
        differences = np.concatenate([each.differences for each in columns], axis=1)
        folder.write(split, shard, VoteShard(first.record_key, first.index, differences))


@dataclass(frozen=True)
class SplitVotes:
    """What the votes on a split come to.

    Attributes:
        comparisons: How many there are.
        mean: Of the strengths.
        std: Of the strengths, over the comparisons.
        disagreement: Mean over the comparisons of the members' standard deviation.
        negative: Share of the comparisons with a strength below 0: their label is doubted.
        deciles: Of the strengths, from the least to the largest, 11 numbers.
        fewest_votes: Members that voted on the comparison with the fewest votes.
        correlation: Mean correlation of two members' differences; NaN where members do not vary.
    """

    comparisons: int
    mean: float
    std: float
    disagreement: float
    negative: float
    deciles: tuple[float, ...]
    fewest_votes: int
    correlation: float


def check_votes(folder: VoteFolder, split: str) -> SplitVotes:
    """Look at all votes on a split, shard by shard.

    Args:
        folder: In which no shard of the split is lacking.
        split: Which one.

    Raises:
        ValueError: If a comparison has fewer votes than it needs; says what to change.
    """
    correlation = MemberCorrelation(folder.source.num_members)
    strengths: list[NDArray[np.float32]] = [np.empty(0, np.float32)]
    spread, fewest = 0.0, folder.source.num_members
    needed = FEWEST_VOTES if folder.source.resample == "folds" else fewest
    for shard in range(len(folder.names(split))):
        votes = folder.read(split, shard)
        mean, std, number = vote_strengths(votes.differences)
        least = int(number.min(initial=fewest))
        if least < needed:
            raise ValueError(
                f"{folder.path}: {int((number == least).sum()):,} comparisons of shard {shard} of {split} have the votes of "
                f"{least} members that have not seen their prompt, and need {needed}: train more members, or lower "
                "num_folds, so that each prompt is left out by more of them"
            )
        fewest = min(fewest, least)
        spread += float(std.sum(dtype=np.float64))
        strengths.append(mean)
        correlation.update(torch.tensor(votes.differences))  # a copy: what was read cannot be written to
    values = np.concatenate(strengths)
    if not len(values):
        raise ValueError(f"{folder.path}: the {split} split has no comparisons to vote on")
    return SplitVotes(
        comparisons=len(values),
        mean=float(values.mean(dtype=np.float64)),
        std=float(values.std(dtype=np.float64)),
        disagreement=spread / len(values),
        negative=float((values < 0).mean()),
        deciles=tuple(np.quantile(values, DECILES).tolist()),
        fewest_votes=fewest,
        correlation=float(correlation.compute()),
    )
