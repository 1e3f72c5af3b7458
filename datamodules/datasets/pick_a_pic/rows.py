"""The half of PickAPicDataModule that handles vectors: rows with arrays in them, and vectors kept by name."""

import os
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...records import RecordError, SourceRow, read_parquet, read_table

__all__ = ["Name", "NamedVectors", "read_rows"]

TOLERANCE = 0.01
"""Of a vector's length, by which another of the same name may differ: batches of other sizes round differently."""

Name = tuple[Literal["prompt", "image"], str]


class NamedVectors:
    """Vectors by name, in a file that goes with the process, until the token rows tell their keys.

    Attributes:
        size: H, numbers of a vector.
        limit: Largest size of a number.
        records: Prompt and images of every record, by its id.
    """

    def __init__(self, folder: Path, size: int, limit: float) -> None:
        """Open the file.

        Args:
            folder: Where there is room for it: 4 H bytes per vector.
            size: H.
            limit: Largest size of a number.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  closed with the object
        self._places: dict[Name, int] = {}
        self.size, self.limit = size, limit
        self.records: dict[str, tuple[str, list[str]]] = {}

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def add(self, name: Name, field: str, value: object) -> None:
        """Keep a vector, or see that it is the one that is kept already.

        Args:
            name: Whose it is.
            field: Name to use in an error.
            value: What the row holds; None where the vector was given before.

        Raises:
            RecordError: If it is no vector of this size, its numbers are not finite or too large, it is missing, or
                another one than before.
        """
        if value is None:
            if name not in self._places:
                allowed = f"{self.size} numbers in the first row that has the {name[0]} {name[1]!r}"
                raise RecordError(field, None, allowed, reason="missing field")
            return
        vector = self._parse(field, value)
        if name not in self._places:
            self._places[name] = len(self._places)
            self._file.seek(0, os.SEEK_END)
            self._file.write(vector.tobytes())
            return
        before = self._read(name)
        if np.linalg.norm(vector - before) > TOLERANCE * np.linalg.norm(before):
            allowed = (
                f"the vector that the {name[0]} {name[1]!r} had before, within {TOLERANCE:.0%} of its length"
            )
            raise RecordError(field, vector.tolist(), allowed, reason="two vectors of one name")

    def take(self, names: list[Name]) -> Tensor:
        """Vectors of names that were added, (n, H) float32."""
        return torch.from_numpy(np.stack([self._read(name) for name in names]))

    def _read(self, name: Name) -> NDArray[np.float32]:
        self._file.seek(self._places[name] * self.size * 4)
        return np.frombuffer(self._file.read(self.size * 4), dtype=np.float32)

    def _parse(self, field: str, value: object) -> NDArray[np.float32]:
        allowed = f"a list of {self.size} numbers"
        try:
            numbers: NDArray[Any] = np.asarray(value)
        except ValueError:  # lists of several lengths
            raise RecordError(field, value, allowed, reason="wrong type") from None
        if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iuf"):
            raise RecordError(field, value, allowed, reason="wrong type")
        if len(numbers) != self.size:
            shown = f"a list of {len(numbers)}"
            raise RecordError(field, shown, f"{allowed}, as hidden_size says", reason="wrong length")
        for reason, wrong, allowed in (
            ("not finite", ~np.isfinite(numbers), "a finite number"),
            (
                "out of range",
                np.abs(numbers) > self.limit,
                f"a number within {self.limit:g} of 0, as dtype can hold",
            ),
        ):
            if wrong.any():
                first = int(wrong.argmax())
                raise RecordError(f"{field}[{first}]", float(numbers[first]), allowed, reason=reason)
        return numbers.astype(np.float32)


def read_rows(
    path: Path, columns: Collection[str], vectors: Collection[str]
) -> Iterator[SourceRow | RecordError]:
    """Rows of a file by its suffix; of Parquet only what is asked for, vectors as arrays: several times as fast.

    Args:
        path: A file that :func:`read_table` reads.
        columns: Columns to read, where the file has them.
        vectors: Those that hold vectors.
    """
    if path.suffix != ".parquet":
        yield from read_table(path)
        return

    def cells(name: str, values: Any) -> list[object]:  # noqa: ANN401  pyarrow's arrays of any type
        return _arrays(values) if name in vectors else list(values.to_pylist())

    yield from read_parquet(path, columns, cells=cells)


def _arrays(column: Any) -> list[object]:  # noqa: ANN401  pyarrow's arrays of any type
    """Cells of a column, lists of numbers as arrays (a null in one as NaN), others as they are."""
    import pyarrow as pa

    kind, types = column.type, pa.types
    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    if not is_list or not (types.is_floating(kind.value_type) or types.is_integer(kind.value_type)):
        return list(column.to_pylist())
    return [cell.values.to_numpy(zero_copy_only=False) if cell.is_valid else None for cell in column]
