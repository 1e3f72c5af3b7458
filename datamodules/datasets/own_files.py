"""What data modules over files of your own share: a file for each split, columns by other names."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import ClassVar

from ..base import SPLITS, PreferenceDataModule

__all__ = ["OwnFilesDataModule"]


class OwnFilesDataModule(PreferenceDataModule):
    """A file for each split that there is.

    Attributes:
        suffixes: How the files may end, as a phrase.
        paths: File of each split.
    """

    suffixes: ClassVar[str]
    paths: dict[str, Path]

    def name_files(self, **paths: str | None) -> None:
        """Keep the splits' files; those that are None are left out.

        Raises:
            ValueError: If none is left.
        """
        self.paths = {split: Path(path) for split, path in paths.items() if path is not None}
        if not self.paths:
            raise ValueError(f"{type(self).__name__} has no file: give at least one of {', '.join(SPLITS)}")
        self.sources = tuple(self.paths)

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

    def files(self, source: str) -> list[Path]:
        """The split's file.

        Raises:
            FileNotFoundError: Naming the argument, the path and what is there.
        """
        path = self.paths[source]
        if not path.is_file():
            there = sorted(other.name for other in path.parent.iterdir()) if path.parent.is_dir() else []
            raise FileNotFoundError(
                f"{source}={str(path)!r} is not a file (looked for {path.absolute()}; that folder "
                f"{'has ' + ', '.join(there[:20]) if there else 'is empty or missing'}): change {source} to the path "
                f"of a {self.suffixes} file"
            )
        return [path]
