"""Files of Arrow data: Parquet, Arrow itself, and folders that ``save_to_disk`` of ``datasets`` wrote.

Their rows are read a batch at a time; Arrow's are mapped, not loaded.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from ..untrusted import UNREADABLE, json_object, path_inside
from .delimited import refuse_repeated
from .json_text import check_json, decode_json
from .reading import HEAD, readable, refuse_foreign, refuse_special, unreadable
from .record import RecordError, listed
from .rows import SourceRow

__all__ = ["STATE", "read_arrow", "read_parquet", "read_saved", "saved_files", "saved_splits"]

BATCH = 1024
"""Rows that are Python's at a time."""
BUFFER = 1 << 20
"""Bytes of a Parquet column that are read at a time."""
STREAM, STREAM_END = b"\xff\xff\xff\xff", b"\xff\xff\xff\xff\x00\x00\x00\x00"
"""How an Arrow stream begins, and its end mark."""
FILE = b"ARROW1"
STATE = "state.json"
"""What tells a folder of ``Dataset.save_to_disk``."""
SPLITS = "dataset_dict.json"
"""What tells one of ``DatasetDict.save_to_disk``, which has such folders inside."""


def arrow_cells(name: str, values: Any) -> list[object]:  # noqa: ANN401  pyarrow has no types
    """Cells of a column as Python values; what Arrow marks as JSON, as ``datasets`` does with columns of mixed types, is read.

    Args:
        name: Of the column.
        values: Its Arrow array.
    """
    cells: list[object] = values.to_pylist()
    return [_with_json(values.type, cell) for cell in cells] if _has_json(values.type) else cells


def _has_json(kind: Any) -> bool:  # noqa: ANN401  likewise
    if getattr(kind, "extension_name", None) == "arrow.json":
        return True
    return any(_has_json(kind.field(i).type) for i in range(kind.num_fields))


def _with_json(kind: Any, cell: Any) -> object:  # noqa: ANN401  likewise
    """A cell of a type that has JSON somewhere in it."""
    import pyarrow as pa

    if cell is None or not _has_json(kind):
        return cell
    if pa.types.is_struct(kind):
        return {name: _with_json(kind.field(name).type, inside) for name, inside in cell.items()}
    if pa.types.is_map(kind):
        return [(key, _with_json(kind.item_type, inside)) for key, inside in cell]
    if isinstance(cell, list):
        return [_with_json(kind.value_type, inside) for inside in cell]
    value, odd = decode_json(cell)
    if odd:
        check_json(value)
    return value


def read_parquet(
    path: Path,
    columns: Collection[str] | None = None,
    *,
    cells: Callable[[str, Any], list[object]] = arrow_cells,
) -> Iterator[SourceRow | RecordError]:
    """Rows of a Parquet file, read a batch at a time; nulls are left out.

    Args:
        path: The file.
        columns: Columns to read, where the file has them; None for all.
        cells: Gives the cells of a column from its name and its Arrow array.

    Raises:
        RecordError: If the file as a whole cannot be read; of a cell that Python cannot hold, one is yielded.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    _look_at(path, (b"PAR1",))
    with readable(path, "a whole Parquet file", pa.ArrowException, ValueError, MemoryError, SystemError):
        # Either setting without the other, and pyarrow holds every column of a row group as a whole.
        file = pq.ParquetFile(path, buffer_size=BUFFER, pre_buffer=False)
        names = [name for name in file.schema_arrow.names if columns is None or name in columns]
        refuse_repeated(path, names)
        yield from _rows(path, file.iter_batches(batch_size=BATCH, columns=names), cells)


def read_arrow(path: Path) -> Iterator[SourceRow | RecordError]:
    """Rows of an Arrow file (Feather is one) or an Arrow stream, which is told by its bytes; nulls are left out.

    Raises:
        RecordError: If the file as a whole cannot be read, a stream without its end mark among them: cut between two
            batches it would read as a whole one. Of a cell that Python cannot hold, one is yielded.
    """
    import pyarrow as pa

    _look_at(path, (FILE, STREAM))
    with (
        readable(path, "a whole Arrow file", pa.ArrowException, ValueError, MemoryError, SystemError),
        pa.memory_map(str(path)) as source,
    ):
        if source.read(len(FILE)) == FILE:
            file = pa.ipc.open_file(source)
            names, batches = file.schema.names, (file.get_batch(i) for i in range(file.num_record_batches))
        else:
            _refuse_open_end(path)
            source.seek(0)
            stream = pa.ipc.open_stream(source)
            names, batches = stream.schema.names, stream
        refuse_repeated(path, names)
        yield from _rows(path, map(_valid, batches), arrow_cells)


def read_saved(folder: Path) -> Iterator[SourceRow | RecordError]:
    """Rows of a folder that ``Dataset.save_to_disk`` wrote; nulls are left out.

    Raises:
        RecordError: If it cannot be read as a whole; of a cell that Python cannot hold, one is yielded.
        FileNotFoundError: If a file of it is not there.
    """
    import pyarrow as pa
    from datasets import load_from_disk

    for path in saved_files(folder):
        if path.suffix == ".arrow":
            _look_at(path, (STREAM,))
            _refuse_open_end(path)
    allowed = "a whole folder of Dataset.save_to_disk"
    with readable(folder, allowed, pa.ArrowException, MemoryError, SystemError, *UNREADABLE):
        rows: Any = load_from_disk(str(folder))
        tables = map(_valid, rows.with_format("arrow").iter(BATCH))
        yield from _rows(
            folder, (batch for table in tables for batch in table.combine_chunks().to_batches()), arrow_cells
        )


def saved_files(folder: Path) -> list[Path]:
    """Files of a folder that ``Dataset.save_to_disk`` wrote, all of them there.

    Raises:
        RecordError: If it is none, or only holds such folders.
        FileNotFoundError: If one that it names is not there.
    """
    if splits := saved_splits(folder):
        raise unreadable(folder, "a folder of several splits", f"one of the folders in it: {listed(splits)}")
    state = folder / STATE
    if not state.is_file():
        allowed = f"a folder of Dataset.save_to_disk, whole: it has no {STATE}"
        raise unreadable(folder, "a folder", allowed)
    with readable(state, "a file that save_to_disk wrote", KeyError, TypeError, ValueError):
        shards = [path_inside(folder, entry["filename"]) for entry in json_object(state)["_data_files"]]
    files = [state, folder / "dataset_info.json", *shards]
    for path in files:
        if not path.is_file():
            raise FileNotFoundError(
                f"{folder} is no whole folder of save_to_disk: {path.name} is not there; copy all of the folder"
            )
    return files


def saved_splits(folder: Path) -> list[str]:
    """Splits in a folder that ``DatasetDict.save_to_disk`` wrote; none in any other.

    Raises:
        RecordError: If its list of them cannot be read.
    """
    path = folder / SPLITS
    if not path.is_file():
        return []
    with readable(path, "a file that save_to_disk wrote", KeyError, TypeError, ValueError):
        return [path_inside(folder, name).name for name in json_object(path)["splits"]]


def _valid(part: Any) -> Any:  # noqa: ANN401  a batch or a table of pyarrow's, which has no types
    """The same, once its offsets are known to lie in its buffers: pyarrow maps them unseen, and then reads anywhere."""
    part.validate(full=True)
    return part


def _look_at(path: Path, starts: tuple[bytes, ...]) -> None:
    refuse_special(path)
    with readable(path, "a file"), path.open("rb") as stream:
        refuse_foreign(path, stream.read(HEAD), starts)


def _refuse_open_end(path: Path) -> None:
    """Refuse a stream that does not end with its mark; one of before 2019, which has another form, is left alone."""
    with readable(path, "a whole Arrow stream"), path.open("rb") as stream:
        begins = stream.read(len(STREAM))
        stream.seek(max(0, path.stat().st_size - len(STREAM_END)))
        if begins == STREAM and stream.read() != STREAM_END:
            allowed = "a whole Arrow stream: it was cut, or whoever wrote it did not close it; get or write it again"
            raise unreadable(path, "no end mark", allowed)


def _rows(
    path: Path,
    batches: Iterable[Any],
    cells: Callable[[str, Any], list[object]],
) -> Iterator[SourceRow | RecordError]:
    number = 0
    for whole in batches:
        for start in range(0, len(whole), BATCH):
            for row in _batch_rows(whole.slice(start, BATCH), cells):
                number += 1
                yield (
                    row.at(str(path), number)
                    if isinstance(row, RecordError)
                    else SourceRow(str(path), number, row)
                )


def _batch_rows(
    batch: Any,  # noqa: ANN401  pyarrow has no types
    cells: Callable[[str, Any], list[object]],
) -> Iterator[dict[str, object] | RecordError]:
    """Rows of a batch; one by one if Python cannot hold all of it, such as text of wrong bytes or a date in year 0."""
    try:
        table = [cells(name, batch.column(i)) for i, name in enumerate(batch.schema.names)]
    except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
        if len(batch) > 1:
            for i in range(len(batch)):
                yield from _batch_rows(batch.slice(i, 1), cells)
            return
        yield RecordError("line", str(error), "values that Python can hold", reason="wrong type")
        return
    for row in zip(*table, strict=True):
        yield {name: cell for name, cell in zip(batch.schema.names, row, strict=True) if cell is not None}
