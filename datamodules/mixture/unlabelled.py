"""Sources without judgements: which of a mixture's they are, and how their batches are made."""

import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from ..batches import LoaderConfig
from ..checks import check_range
from ..columns import optional_columns
from .amounts import Amounts

__all__ = ["check_unlabelled", "columns_of_groups", "names_of_groups", "unlabelled_settings"]

APART = zlib.crc32(b"unlabelled")
"""Added to the seed: with the seed of the others, two sets of equally many records would go in step."""


def check_unlabelled(
    unlabelled: Sequence[str], sources: Collection[str], amounts: Amounts, prompts: int | None
) -> tuple[str, ...]:
    """Names of the sources without judgements.

    Args:
        unlabelled: As the setting has them.
        sources: All sources.
        amounts: What an epoch takes of the others.
        prompts: Bound on their prompts in a batch.

    Raises:
        TypeError: If it is one name and no list of names.
        ValueError: If a name is unknown or twice there, nothing is left to train on, or amounts name one of them.
    """
    if isinstance(unlabelled, str):
        raise TypeError(f"unlabelled must be a list of sources, got {unlabelled!r}")
    names = tuple(unlabelled)
    if unknown := [name for name in names if name not in sources]:
        raise ValueError(
            f"unlabelled names {', '.join(unknown)}, but sources are {', '.join(sources)}: name those"
        )
    if len(set(names)) < len(names):
        raise ValueError(f"unlabelled names a source twice: {', '.join(names)}")
    if set(names) == set(sources):
        raise ValueError(
            f"unlabelled names all sources ({', '.join(names)}), so that there is no judgement to train on: add a source that "
            "has some"
        )
    for setting, values in (("weights", amounts.weights), ("counts", amounts.counts)):
        if mixed := [name for name in names if name in (values or ())]:
            raise ValueError(
                f"{setting} names {', '.join(mixed)}, which unlabelled names as well: those are no part of what an epoch "
                f"takes; leave them out of {setting}, and set how many come beside each batch by unlabelled_prompts"
            )
    check_range("unlabelled_prompts", prompts, at_least=1)
    if prompts is not None and not names:
        raise ValueError(f"unlabelled_prompts={prompts} needs unlabelled: name the sources that it is about")
    return names


def columns_of_groups(present: Collection[str]) -> frozenset[str]:
    """Which of the columns that are present say something of records or of who wrote a response."""
    groups = [*optional_columns("record"), *optional_columns("response", "name")]
    return frozenset({entry.stored for entry in groups} | {"merged_id"}) & frozenset(present)


def unlabelled_settings(loader: LoaderConfig, prompts: int | None) -> LoaderConfig:
    """The loader's settings for batches without judgements.

    Args:
        loader: Of the batches that they stand beside.
        prompts: Bound on prompts of a batch; None for the loader's.
    """
    return replace(
        loader,
        batch_size=loader.batch_size if prompts is None else prompts,
        seed=loader.seed + APART,
        joins=(),
    )


def names_of_groups(names: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Names of what groups have: of everything but those who judge, and what their judgements are of."""
    columns = columns_of_groups(names.keys())
    return {column: values for column, values in names.items() if column in columns}
