"""What data modules over files of your own share: a file for each split, columns by other names, columns not read."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import ClassVar

from ..base import SPLITS, PreferenceDataModule
from ..records import (
    RecordError,
    SourceRow,
    TableSource,
    find_tables,
    is_blank,
    is_number,
    listed,
    without_secrets,
)

__all__ = ["LIKELY", "PERSONS", "OwnFilesDataModule", "UnreadColumns", "likely_columns"]

PERSONS = ("user", "annotator", "worker", "rater", "judge", "evaluator", "labeler", "labeller")
"""What others call those who judge."""
LIKELY: dict[str, tuple[str, ...]] = {
    "prompt": (
        "prompt", "question", "query", "instruction", "input", "userinput", "userprompt", "prompttext", "context",
        "conversation", "dialogue", "dialog", "history", "post", "article", "document", "sourcetext",
    ),
    "user": (*PERSONS, *(f"{person}id" for person in PERSONS)),
    "domain": ("domain", "category", "topic", "subset"),
}  # fmt: skip
"""What others call our fields, without case and punctuation."""


def likely_columns(field: str, columns: Iterable[str]) -> list[str]:
    """Columns that are called as a field is called elsewhere.

    Args:
        field: Ours.
        columns: Theirs.
    """
    names = LIKELY.get(field, ())
    return [column for column in columns if "".join(filter(str.isalnum, column)).casefold() in names]


class UnreadColumns:
    """Columns of a file that no field reads, collected row by row.

    Attributes:
        text: Whether each holds text anywhere: what a field may have been meant to read.
        read: Columns that fields do read.
    """

    def __init__(self) -> None:
        """Begin with none."""
        self.text: dict[str, bool] = {}
        self.read: set[str] = set()

    def add(self, fields: Mapping[str, object], read: AbstractSet[str]) -> None:
        """Look at a row.

        Args:
            fields: Its columns.
            read: Those that a field reads.
        """
        self.read |= fields.keys() & read
        for column in fields.keys() - read:
            if not self.text.get(column):
                self.text[column] = _is_text(fields[column])

    def notes(self, file: str, missing: Collection[str] | None = None) -> list[str]:
        """A warning about those of text, and those that are called like a field that the file lacks; none without any.

        Args:
            file: File that they are of.
            missing: Fields without a column that ``columns`` could name; None where there is no such setting.
        """
        columns = sorted(self.text)
        likely = {field: likely_columns(field, columns)[:1] for field in missing or ()}
        meant = {field: column[0] for field, column in likely.items() if column}
        named = [column for column in columns if self.text[column] or column in meant.values()]
        if not named:
            return []
        example = ", ".join(f"{field}: {column}" for field, column in meant.items()) or f"FIELD: {named[0]}"
        hint = f"; columns: {{{example}}} would read it as that field" if missing is not None else ""
        return [f"no field reads these columns of {file}: {listed(named)}{hint}"]


def _is_text(value: object) -> bool:
    if isinstance(value, str):
        return not is_blank(value) and not is_number(value)
    return isinstance(value, list) and bool(value) and all(isinstance(part, dict | str) for part in value)


class OwnFilesDataModule(PreferenceDataModule):
    """Files for each split that there is.

    Attributes:
        suffixes: How the files may end, as a phrase.
        paths: What holds each split, as its argument names it: a file, a pattern, a folder, or several.
        unread: Columns of each split's file that no field reads, filled while it is read; of data modules that look.
    """

    suffixes: ClassVar[str]
    paths: dict[str, str | list[str]]
    unread: dict[str, UnreadColumns]

    def name_files(self, **given: str | list[str] | None) -> None:
        """Keep the splits' files; those that are None are left out.

        Raises:
            ValueError: If none is left, or a list is empty.
        """
        self.paths = {
            split: [str(one) for one in name] if isinstance(name, list) else str(name)  # of paths, too
            for split, name in given.items()
            if name is not None
        }
        for split, name in self.paths.items():
            if not all(name if isinstance(name, list) else [name]) or not name:
                raise ValueError(f"{split} must name a file, got {name!r}: leave it out if there is none")
        if not self.paths:
            raise ValueError(f"{type(self).__name__} has no file: give at least one of {', '.join(SPLITS)}")
        self.sources = tuple(self.paths)
        self.unread = {}

    def unread_columns(self, source: str) -> list[str]:
        """Columns of the split's file that no field read."""
        return sorted(self.unread[source].text) if source in self.unread else []

    def name_columns(self, columns: Mapping[str, str] | None, fields: Collection[str]) -> None:
        """Keep the columns of fields whose names differ.

        Raises:
            ValueError: If one is of a field that does not exist.
        """
        self.columns = dict(columns or {})
        if unknown := sorted(set(self.columns) - set(fields)):
            raise ValueError(
                f"columns maps unknown fields {', '.join(unknown)}; allowed: {', '.join(fields)}"
            )

    def tables(self, source: str) -> TableSource:
        """Tables that hold the split's rows, in order: looked for anew at each call.

        Raises:
            FileNotFoundError: Naming the argument, the path and what is there.
            ValueError: If files are of several kinds, or shards are missing.
            RecordError: If nobody may look, or a store does not answer.
        """
        return find_tables(
            self.paths[source],
            copies=self.cache_root() / "copies",
            argument=source,
            split=source,
            endings=self.suffixes,
        )

    def files(self, source: str) -> list[Path]:
        """The split's files, in order; raises what :meth:`tables` raises."""
        return self.tables(source).files

    def source_rows(self, source: str) -> Iterator[SourceRow | RecordError]:
        """Rows of the split's tables, one table after another; raises what :meth:`tables` raises."""
        return self.tables(source).rows()

    def place(self, source: str) -> str:
        """What a message calls the split's files."""
        name = self.paths[source]
        return without_secrets(name) if isinstance(name, str) else listed(map(without_secrets, name), 3)

    def file_names(self) -> dict[str, str | list[str]]:
        """Names of each split's tables without their folders; the endings say how they are read."""
        names = {
            split: [Path(table.name).name for table in self.tables(split).tables] for split in self.paths
        }
        return {split: several[0] if len(several) == 1 else several for split, several in names.items()}
