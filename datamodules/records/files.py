"""A table is read by the ending of its file, and its rows know where they came from.

Every reader yields :class:`SourceRow`, or, for a line that cannot be read, the :class:`RecordError` that says
why, so that one rule (``on_invalid``) decides about both. An error of the file as a whole is raised, never skipped. None
holds more than a few thousand rows at a time.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from .arrow_files import STATE, read_arrow, read_parquet, read_saved
from .delimited import read_csv, read_tsv
from .json_files import read_json_lines, read_json_rows
from .reading import PACKINGS
from .record import RecordError
from .rows import SourceRow

__all__ = ["ENDINGS", "TableKind", "has_text_cells", "read_table", "table_kind"]

TableKind = Literal["JSON Lines", "JSON", "CSV", "TSV", "Parquet", "Arrow", "save_to_disk"]
"""Of the last, a table is a folder."""


class TableFormat(NamedTuple):
    """How a kind of table is read.

    Attributes:
        endings: Of its files.
        is_text: Whether its files may be packed.
        read: Its reader.
    """

    endings: tuple[str, ...]
    is_text: bool
    read: Callable[[Path], Iterator[SourceRow | RecordError]]


FORMATS: dict[TableKind, TableFormat] = {
    "JSON Lines": TableFormat((".jsonl", ".ndjson"), True, read_json_lines),
    "JSON": TableFormat((".json",), True, read_json_rows),
    "CSV": TableFormat((".csv",), True, read_csv),
    "TSV": TableFormat((".tsv",), True, read_tsv),
    "Parquet": TableFormat((".parquet",), False, read_parquet),
    "Arrow": TableFormat((".arrow", ".feather"), False, read_arrow),
    "save_to_disk": TableFormat((), False, read_saved),
}
ENDINGS: dict[str, TableKind] = {ending: kind for kind, entry in FORMATS.items() for ending in entry.endings}
"""Kind of table for each ending, before which of a packing."""


def table_kind(path: Path) -> TableKind:
    """What kind of table a file is by its ending, in capitals or not; a folder is one of ``save_to_disk``.

    Raises:
        ValueError: If no kind has such an ending.
    """
    if (path / STATE).is_file():
        return "save_to_disk"
    name = Path(path.name.lower())
    packed = name.suffix in PACKINGS
    ending = Path(name.stem).suffix if packed else name.suffix
    kind = ENDINGS.get(ending)
    if kind is None:
        if path.is_dir():
            return "save_to_disk"
        packings = ", ".join(PACKINGS)
        raise ValueError(
            f"{path}: unknown suffix {ending!r}; allowed: {', '.join(ENDINGS)} (text also with {packings})"
        )
    if packed and not FORMATS[kind].is_text:
        raise ValueError(f"{path}: a {kind} file is packed inside; unpack it, so that it ends in {ending}")
    return kind


def has_text_cells(file: str) -> bool:
    """Whether every cell of a row's file is text, whatever it stands for: of CSV and TSV.

    Args:
        file: Of a :class:`SourceRow`.
    """
    name = Path(file.lower())
    ending = Path(name.stem).suffix if name.suffix in PACKINGS else name.suffix
    return ENDINGS.get(ending) in ("CSV", "TSV")


def read_table(path: Path) -> Iterator[SourceRow | RecordError]:
    """Rows of a file by its suffix, or of a folder that ``Dataset.save_to_disk`` wrote.

    ``.jsonl`` and ``.ndjson``, ``.json`` (one list, or objects one after another), ``.csv`` and ``.tsv``, each also with
    ``.gz``, ``.zst``, ``.bz2`` or ``.xz`` behind; ``.parquet``; ``.arrow`` and ``.feather``.

    Raises:
        ValueError: If the suffix is another one.
    """
    return FORMATS[table_kind(path)].read(path)
