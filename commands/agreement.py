"""What ``pluralign data inspect`` says of the people behind the data: how much they judged, and how far they agree."""

import math
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from pluralign.datamodules import PreferenceDataModule
from pluralign.datamodules.tokens import RecordTable
from pluralign.metrics import best_accuracy, pair_agreement, vote_agreement

__all__ = ["judgements", "people"]

FEW = 5
"""Judgements below which little is known of a user."""

VOTES = {"votes": "responses", "comparison_votes": "comparisons"}
"""Columns of votes, and what they are on."""

Judgements = tuple[Tensor, Tensor, Tensor, Tensor]


def people(data: PreferenceDataModule) -> Iterator[Table | str]:
    """Tables and lines about judgements, users and votes, as far as the data have them.

    Args:
        data: Set up for every split.
    """
    judged = {split: judgements(data.table(split)) for split in data.splits}
    judged = {split: columns for split, columns in judged.items() if len(columns[0])}
    if judged:
        yield from _agreement(judged)
    if counts := {split: user[user >= 0].bincount() for split, (*_, user) in judged.items()}:
        yield from _users({split: count[count > 0] for split, count in counts.items() if len(count)})
    cast = {(split, name): _votes(data.table(split), name) for split in data.splits for name in VOTES}
    if cast := {key: votes for key, votes in cast.items() if len(votes)}:
        yield _votes_table(cast)


def judgements(table: RecordTable) -> Judgements:
    """Every comparison of a split, as :func:`pluralign.metrics.pair_agreement` takes them.

    Returns:
        Record (J,) int64, comparisons (J, 2) int64, share (J,) float64, and user (J,) int64, numbered as they come and
        -1 where nobody knows.
    """
    numbers: dict[str | None, int] = {None: -1}
    comparisons, shares = [np.empty((0, 2), np.int32)], [np.empty(0, np.float32)]
    records: list[int] = []
    users: list[int] = []
    for place, row in enumerate(table.without_tokens().rows()):
        records += [place] * len(row.comparisons)
        comparisons.append(row.comparisons)
        shares.append(row.preference)
        names = row.columns.get("user", [None] * len(row.comparisons))
        users += [numbers.setdefault(name, len(numbers) - 1) for name in names]
    return (
        torch.tensor(records, dtype=torch.int64),
        torch.from_numpy(np.concatenate(comparisons)).long(),
        torch.from_numpy(np.concatenate(shares)).double(),
        torch.tensor(users, dtype=torch.int64),
    )


def _agreement(judged: Mapping[str, Judgements]) -> Iterator[Table | str]:
    telling = False
    measured: dict[str, dict[str, str]] = {}
    for split, (record, comparisons, share, user) in judged.items():
        found = pair_agreement(record, comparisons, share, user)
        named = bool((user >= 0).all())
        measured[split] = {
            "judgements": f"{found.judgements:,}",
            "ties": f"{found.ties:,}",
            "pairs": f"{found.pairs:,}",
            "judged again": f"{found.judged_again:,}",
            "disputed": f"{found.disputed:,}",
            "two agree": _percent(found.two_agree),
            "on the losing side": _percent(found.minority),
            "one reward reaches at most": _percent(best_accuracy(record, comparisons, share)),
            "a reward per user at most": _percent(best_accuracy(record, comparisons, share, user))
            if named
            else "-",
        }
        telling = telling or found.judged_again > 0 or not math.isnan(found.minority)
        if found.repeated or found.contradicted:
            yield (
                f"{split}: users judged a pair again the same way {found.repeated:,} times, and {found.contradicted:,} "
                "pairs both ways"
            )
    # A row for each measure, since so many columns would be cut in a terminal of the usual width.
    table = Table("agreement", *measured)
    for name in next(iter(measured.values())):
        table.add_row(name, *(values[name] for values in measured.values()))
    yield table
    if not telling:
        yield "Each pair was judged once: nothing in these judgements tells how far people agree."


def _users(counts: Mapping[str, Tensor]) -> Iterator[Table]:
    if not counts:
        return
    table = Table("users", "split", "least judgements", "median", "most", f"fewer than {FEW}")
    for split, count in counts.items():
        spread = (int(count.min()), f"{float(count.double().quantile(0.5)):g}", f"{int(count.max()):,}")
        table.add_row(f"{len(count):,}", split, *map(str, spread), f"{int((count < FEW).sum()):,}")
    yield table


def _votes(table: RecordTable, name: str) -> Tensor:
    """Counts of every item of the split that has any, (items, C) float64."""
    items = "comparisons" if name == "comparison_votes" else "response_index"
    rows = [
        np.asarray(row.columns[name], np.float32).reshape(len(getattr(row, items)), -1)
        for row in table.without_tokens().rows()
        if name in row.columns
    ]
    return torch.from_numpy(np.concatenate(rows)).double() if rows else torch.empty(0)


def _votes_table(cast: Mapping[tuple[str, str], Tensor]) -> Table:
    table = Table(
        "votes on", "split", "items", "voted again", "unanimous", "two agree", "one label can reach"
    )
    for (split, name), votes in cast.items():
        found = vote_agreement(votes)
        counts = (f"{n:,}" for n in (found.items, found.voted_again, found.unanimous))
        table.add_row(VOTES[name], split, *counts, _percent(found.two_agree), _percent(found.majority))
    return table


def _percent(share: float) -> str:
    """A share as people read it; a dash for none."""
    return "-" if math.isnan(share) else f"{share:.1%}"
