"""Records of several sources side by side, each named for its source."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from ..tokens import CHUNK, RecordTable, TokenRow

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["JoinedTable", "NamedTable"]

USERS = ("user", "request_user")
"""Columns of users."""


class NamedTable(RecordTable):
    """Records of a source: their ids begin with its name, which is their ``source`` as well.

    Attributes:
        table: The records as the source has them.
        source: Its name.
        apart: Whether its users' names begin with it, too.
    """

    def __init__(self, table: RecordTable, source: str, *, apart: bool) -> None:
        """Read nothing.

        Args:
            table: The records as the source has them.
            source: Its name.
            apart: Whether its users' names begin with it, too.
        """
        self.table, self.source, self.apart = table, source, apart
        self.sizes = table.sizes

    def without_tokens(self) -> Self:
        """The same records, whose tokens are not read."""
        other = copy.copy(self)
        other.table = self.table.without_tokens()
        return other

    def column(self, name: str) -> "pa.ChunkedArray":
        """One column of every record, and nothing else read."""
        if name == "source":
            import pyarrow as pa

            places = pa.array(np.arange(len(self) + 1, dtype=np.int32))
            return pa.chunked_array([pa.ListArray.from_arrays(places, pa.array([self.source] * len(self)))])
        column = self.table.column(name)
        if name in ("id", "merged_id") or (self.apart and name in USERS):
            return _each(column, self._name_all)
        return column

    def _name_all(self, names: "pa.StringArray") -> "pa.StringArray":
        import pyarrow.compute

        pc: Any = pyarrow.compute  # made when it is imported, which type checkers do not see
        return pc.binary_join_element_wise(self.source, names, "/")

    def rows(self, chunk: int = CHUNK) -> Iterator[TokenRow]:
        """Every record in order."""
        return map(self._named, self.table.rows(chunk))

    def __getitem__(self, rows: list[int]) -> list[TokenRow]:
        """Read several records at once."""
        return [self._named(row) for row in self.table[rows]]

    def _named(self, row: TokenRow) -> TokenRow:
        source: list[str | None] = [self.source]
        columns = {**row.columns, "source": source}
        for name in USERS if self.apart else ():
            if name in columns:
                columns[name] = [user and f"{self.source}/{user}" for user in columns[name]]
        origins = row.origins and row.origins._replace(
            ids=[f"{self.source}/{name}" for name in row.origins.ids]
        )
        return row._replace(id=f"{self.source}/{row.id}", columns=columns, origins=origins)


class JoinedTable(RecordTable):
    """Records of several sources, one source after the other.

    Attributes:
        parts: The sources' records by name, in order.
        bounds: Where each source's records begin, and where the last end, (sources + 1,).
    """

    def __init__(self, parts: Mapping[str, NamedTable]) -> None:
        """Put them together.

        Args:
            parts: The sources' records by name, in order; at least one.
        """
        self.parts = dict(parts)
        self.sizes = np.concatenate([part.sizes for part in self.parts.values()])
        self.bounds: NDArray[np.int64] = np.cumsum([0, *map(len, self.parts.values())])

    def without_tokens(self) -> Self:
        """The same records, whose tokens are not read."""
        other = copy.copy(self)
        other.parts = {source: part.without_tokens() for source, part in self.parts.items()}
        return other

    def column(self, name: str) -> "pa.ChunkedArray":
        """One column of every record, and nothing else read."""
        import pyarrow as pa

        columns = [part.column(name) for part in self.parts.values()]
        return pa.chunked_array([chunk for column in columns for chunk in column.chunks], columns[0].type)

    def rows(self, chunk: int = CHUNK) -> Iterator[TokenRow]:
        """Every record in order."""
        for part in self.parts.values():
            yield from part.rows(chunk)

    def __getitem__(self, rows: list[int]) -> list[TokenRow]:
        """Read several records at once: of each source together, given back in the order asked for."""
        places = np.asarray(rows, dtype=np.int64)
        of = np.searchsorted(self.bounds, places, side="right") - 1
        found: dict[int, TokenRow] = {}
        for number, part in enumerate(self.parts.values()):
            mine = np.flatnonzero(of == number)
            if len(mine):
                found.update(
                    zip(mine.tolist(), part[(places[mine] - self.bounds[number]).tolist()], strict=True)
                )
        return [found[place] for place in range(len(rows))]


def _each(
    column: "pa.ChunkedArray", change: "Callable[[pa.StringArray], pa.StringArray]"
) -> "pa.ChunkedArray":
    """A column of names, or of lists of names, with each of them changed; what is unknown stays unknown."""
    import pyarrow as pa

    chunks: Sequence[Any] = column.chunks
    if pa.types.is_string(column.type):
        return pa.chunked_array([change(chunk) for chunk in chunks], column.type)
    changed = [
        pa.ListArray.from_arrays(
            pa.array(np.cumsum([0, *chunk.value_lengths().to_pylist()], dtype=np.int32)),
            change(chunk.flatten()),
        )
        for chunk in chunks
    ]
    return pa.chunked_array(changed, column.type)
