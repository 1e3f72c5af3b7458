"""What becomes of data modules that are made sources of a mixture: names, settings that hold for all, side tables."""

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from inspect import signature

import numpy as np

from ..base import PreferenceDataModule
from ..joins import SideTable
from ..prepared import SPLITS, PreparedData
from .tables import NamedTable

__all__ = ["adopt", "check_joins", "check_name"]

OF_ALL = ("text", "loader", "merged_tokens", "cache_dir")
"""Settings that are the mixture's and hold for every source."""


def adopt(mixture: PreferenceDataModule, source: str, part: PreferenceDataModule) -> None:
    """Give a source the settings that hold for all.

    Args:
        mixture: Whose settings they are.
        source: Name of the source.
        part: The source; changed in place.

    Raises:
        TypeError: If it is no data module of this package.
        ValueError: If it has vectors of its own, or sets one of them otherwise.
    """
    if not isinstance(part, PreferenceDataModule):
        raise TypeError(f"sources.{source} must be a PreferenceDataModule, got a {type(part).__name__}")
    if part.has_own_features:
        raise ValueError(
            f"sources.{source}: {type(part).__name__} brings stored vectors of its own and no text that a network "
            "reads, so that it cannot be mixed with others: train on it alone"
        )
    for setting in OF_ALL:
        mine, own = getattr(mixture, setting), getattr(part, setting)
        if own not in (mine, signature(PreparedData.__init__).parameters[setting].default):
            raise ValueError(
                f"sources.{source} sets {setting} for itself, which is one for all sources of a mixture: leave it out "
                f"there and set data.{setting} beside sources (one says {_difference(own, mine)})"
            )
        setattr(part, setting, mine)


def check_joins(joins: Iterable[SideTable], parts: Mapping[str, NamedTable]) -> None:
    """Refuse a side table of which an entry is of records of two sources: their keys do not tell them apart.

    Args:
        joins: The side tables.
        parts: Records of a split, by source.

    Raises:
        ValueError: Naming the table, the key and both sources.
    """
    for table in joins:
        owner = np.full(len(table), -1)
        for number, part in enumerate(parts.values()):
            mine = np.isin(table.record_key, part.named_items(table.item)[0])
            if (twice := mine & (owner >= 0)).any():
                sources = list(parts)
                raise ValueError(
                    f"{table.path}: record_key {table.record_key[twice][0]} is of records of both "
                    f"{sources[owner[twice][0]]} and {sources[number]}, whose names, splits and ids are equal: give one "
                    "of them other ids, or leave the side table out of loader.joins"
                )
            owner[mine] = number


def check_name(source: str) -> None:
    """Refuse a name that ids, metrics or files could not hold.

    Raises:
        ValueError: Saying what is allowed.
    """
    if not source or "/" in source or source != source.strip() or source in SPLITS:
        raise ValueError(
            f"a source cannot be called {source!r}: ids and metrics are named by it, so give it a name without / and spaces "
            f"at its ends, and none of {', '.join(SPLITS)}"
        )


def _difference(own: object, mine: object) -> str:
    """Values of two settings, of their fields that differ."""
    if not is_dataclass(own) or not is_dataclass(mine):
        return f"{own!r}, the other {mine!r}"
    names = [each.name for each in fields(own) if getattr(own, each.name) != getattr(mine, each.name)]
    first, second = (
        ", ".join(f"{name}={getattr(settings, name)!r}" for name in names) for settings in (own, mine)
    )
    return f"{first}, the other {second}"
