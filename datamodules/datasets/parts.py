"""Releases in parts: where their files are, one running number for all rows, and a test split of those that have none."""

import glob
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from ..records import (
    HubDataset,
    Prompt,
    RecordError,
    SourceRow,
    find_tables,
    hash_split,
    read_parquet,
    read_table,
)

__all__ = ["find_parts", "first_words", "numbered_rows", "pinned_dataset", "read_parts", "rows_of_source"]

HELD_OUT = {"train": 9_000, "test": 1_000}
"""Shares of a release without splits."""
OTHER_HASH = 1
"""Seed of these, so that the share of training that the base holds out by its own hash is what it is asked to be."""


def find_parts(folder: Path, *patterns: str) -> list[Path]:
    """Files of the first pattern that some have, in a folder or in ``data`` inside it, in order.

    Args:
        folder: Of the release.
        *patterns: Of file names, such as ``train-*.parquet``.

    Raises:
        FileNotFoundError: Naming the folder, what was looked for and what is there; or which of a release's numbered shards
            are missing.
        ValueError: If files are there twice, plain and packed or in two divisions.
    """
    places = (folder, folder / "data")
    for pattern in patterns:
        for place in places:
            if any(path.is_file() for path in place.glob(pattern)):
                name = f"{glob.escape(str(place))}/{pattern}"
                return find_tables(name, copies=place, argument="data_dir").files
    there = sorted(
        str(path.relative_to(folder)) for place in places if place.is_dir() for path in place.iterdir()
    )
    found = ", ".join(there[:20]) if there else "nothing" if folder.is_dir() else "no such folder"
    raise FileNotFoundError(
        f"data_dir={str(folder)!r} has no {' or '.join(patterns)}, nor has data in it; there: {found}"
    )


def read_parts(
    paths: Iterable[Path], columns: Collection[str] | None = None
) -> Iterator[SourceRow | RecordError]:
    """Rows of files by their suffix, one file after the other.

    Args:
        paths: JSON Lines, CSV or Parquet files.
        columns: Columns to read of Parquet files, where these have them; None for all.
    """
    for path in paths:
        yield from read_parquet(path, columns) if path.suffix == ".parquet" else read_table(path)


def pinned_dataset(name: str, revision: str | None, data_dir: str | None) -> HubDataset | None:
    """A data set on the hub at the commit that somebody names, where none could be pinned; None if none is named.

    Args:
        name: As on the hub.
        revision: Hash of a commit: a branch would be another data set tomorrow.
        data_dir: Folder of local files, which is not to be given as well.

    Raises:
        ValueError: If the revision is no such hash, or both are given.
    """
    if revision is None:
        return None
    if data_dir is not None:
        raise ValueError(
            f"data_dir and revision are two sources, give one; got {data_dir!r} and {revision!r}"
        )
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise ValueError(f"revision must be a commit of {name}, 40 hexadecimal digits; got {revision!r}")
    return HubDataset(name, revision)


def numbered_rows(name: str, rows: Iterable[SourceRow | RecordError]) -> Iterator[SourceRow | RecordError]:
    """Rows with an ``id``: a name and their number in the whole release, the same from files and from the hub."""
    for number, row in enumerate(rows, 1):
        if isinstance(row, RecordError):
            yield row
        else:
            yield row._replace(fields={**row.fields, "id": f"{name}:{number}"})


def rows_of_source(
    source: str, rows: Iterable[SourceRow | RecordError], key: Callable[[SourceRow], str]
) -> Iterator[SourceRow | RecordError]:
    """Rows of ``train`` or ``test`` of a release without splits; an error is of training.

    Args:
        source: One of them.
        rows: Of the whole release.
        key: What stays on one side, such as the prompt; goes into the row as ``group``.
    """
    for row in rows:
        side, item = "train", row
        if not isinstance(row, RecordError):
            try:
                group = key(row)
            except RecordError as error:
                item = error if error.file else error.at(row.file, row.line)
            else:
                side, item = (
                    hash_split(group, HELD_OUT, OTHER_HASH),
                    row._replace(fields={**row.fields, "group": group}),
                )
        if side == source:
            yield item


def first_words(prompt: Prompt) -> str:
    """What the user says first: what conversations with the same beginning share."""
    if isinstance(prompt, str):
        return prompt.strip()
    return next((turn.content for turn in prompt if turn.role == "user"), prompt[0].content).strip()
