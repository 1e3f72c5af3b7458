"""Rows of equal prompts become one record: prompt and equal responses are read once, every judgement points at them.

Files with one row a judgement name a prompt again for each, and a response for each comparison that it is in. They are
tokenised as they come; then the rows of every prompt are found by a digest (16 bytes a row, however long the text) and
read from the finished stream again, wherever they lie, so that memory holds no more than :data:`SLICE` rows. What is
merged is tokens: each response keeps exactly those that its row alone would have, and every judgement stays one.
"""

import json
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..columns import Column, optional_columns
from ..records import PreferenceRecord
from .cache import ORIGINS, TokenTable, token_rows
from .report import SplitReport
from .rows import Columns, Origins, TokenRow
from .schema import schema
from .table import CHUNK, lengths
from .text import common_prefix

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

__all__ = [
    "DIGEST",
    "LEAST_SAVING",
    "MOST_JUDGEMENTS",
    "SLICE",
    "merge_rows",
    "merge_split",
    "prompt_digest",
    "record_sizes",
]

DIGEST = 16
"""Bytes that a prompt is told by: among a billion, two are taken for one with a chance of 1 in 10^20."""
SLICE = 4096
"""Rows of one prompt that are looked at together: what bounds memory where all rows share a prompt."""
MOST_JUDGEMENTS = 1024
"""Comparisons of a merged record, so that one prompt is no batch of its own."""
LEAST_SAVING = 0.05
"""Share of their tokens that rows must save to be merged: a short prompt alone should not tie long responses together."""


def prompt_digest(record: PreferenceRecord, cut: int) -> bytes:
    """What rows have in common that may be one record, as :data:`DIGEST` bytes.

    That is the prompt and how much of it was cut, the group, and all that is said of the record itself. Rows without a
    prompt have their responses in common instead.

    Args:
        record: A row of the data.
        cut: Tokens cut from its prompt.
    """
    prompt: object
    if isinstance(record.prompt, tuple):
        prompt = [[message.role, message.content, message.rest] for message in record.prompt]
    elif record.prompt.strip():
        prompt = record.prompt
    else:
        prompt = [record.prompt, sorted(response.text for response in record.responses)]
    said = [entry.of(record) for entry in optional_columns("record")]
    text = json.dumps([prompt, cut, record.group, said])
    return blake2b(text.encode(), digest_size=DIGEST).digest()


# Rows of one prompt ----------------------------------------------------------------------------------------


class _Responses(NamedTuple):
    """Responses of some rows, equal ones of one system once."""

    tokens: list[NDArray[np.int32]]
    """Each with its prompt."""
    members: list[list[int]]
    """Of each row, which of them its responses are."""


def merge_rows(rows: Sequence[TokenRow], *, max_tokens: int, equal_once: bool) -> list[list[int]]:
    """Which rows of one prompt become a record.

    Where not all of them fit into one, responses are put into blocks of half its size, and the judgements within two
    blocks into one record: b blocks whose responses are compared at random give about b^2 / 2 records, however many
    judgements there are.

    Args:
        rows: Of one prompt.
        max_tokens: Bound on the tokens of a record, unless a single row has more.
        equal_once: Whether equal responses of one system become one.

    Returns:
        Numbers of the rows of each record; every row is in one.
    """
    prompt = min(row.prompt_length for row in rows)
    texts, members = _responses(rows, equal_once)
    costs = [len(tokens) - prompt for tokens in texts]
    order = list(range(len(rows)))
    if prompt + sum(costs) > max_tokens:
        blocks = _blocks(costs, max(1, (max_tokens - prompt) // 2))
        order.sort(key=lambda row: sorted({blocks[text] for text in members[row]}))
    records: list[list[int]] = []
    held: set[int] = set()
    tokens = judgements = 0
    for row in order:
        fresh = set(members[row]) - held
        added, judged = sum(costs[text] for text in fresh), len(rows[row].comparisons)
        if not records or tokens + added > max_tokens or judgements + judged > MOST_JUDGEMENTS:
            records.append([])
            held, tokens, judgements = set(), prompt, 0
            fresh = set(members[row])
            added = sum(costs[text] for text in fresh)
        records[-1].append(row)
        held |= fresh
        tokens, judgements = tokens + added, judgements + judged
    return [sorted(numbers) for numbers in records]


def _responses(rows: Sequence[TokenRow], equal_once: bool) -> _Responses:
    texts: list[NDArray[np.int32]] = []
    members: list[list[int]] = []
    known: dict[tuple[object, ...], int] = {}
    for row in rows:
        ends = np.cumsum(row.lengths).tolist()
        prefix = row.tokens[: ends[0]]
        members.append([])
        for (start, stop), names in zip(pairwise(ends), row.response_names(), strict=True):
            tokens = np.concatenate([prefix, row.tokens[start:stop]])
            content = tokens.tobytes(), *names  # who wrote what two systems wrote alike must not be lost
            number = known.setdefault(content, len(texts)) if equal_once else len(texts)
            if number == len(texts):
                texts.append(tokens)
            members[-1].append(number)
    return _Responses(texts, members)


def _blocks(costs: Sequence[int], size: int) -> list[int]:
    """Block of each response, in their order: as many in one as fit."""
    blocks, block, used = [], 0, 0
    for cost in costs:
        if used and used + cost > size:
            block, used = block + 1, 0
        used += cost
        blocks.append(block)
    return blocks


def merged_record(rows: Sequence[TokenRow], *, equal_once: bool) -> TokenRow:
    """One record of several rows of one prompt; its id and key are those of the first."""
    texts, members = _responses(rows, equal_once)
    prefix = min(
        min(common_prefix(texts[0], other) for other in texts), *(len(tokens) - 1 for tokens in texts)
    )
    parts = [texts[0][:prefix], *(tokens[prefix:] for tokens in texts)]
    first: dict[int, tuple[int, int]] = {}
    for number, (row, mine) in enumerate(zip(rows, members, strict=True)):
        for text, place in zip(mine, row.response_index.tolist(), strict=True):
            first.setdefault(text, (number, place))
    pairs = [np.asarray(mine, np.int32)[row.comparisons] for row, mine in zip(rows, members, strict=True)]
    counts = [len(row.comparisons) for row in rows]
    origins = Origins(
        ids=[row.id for row in rows],
        keys=np.asarray([row.record_key for row in rows], dtype=np.int64),
        response_origin=np.asarray([first[text][0] for text in range(len(texts))], dtype=np.int32),
        response_place=np.asarray([first[text][1] for text in range(len(texts))], dtype=np.int32),
        comparison_origin=np.repeat(np.arange(len(rows), dtype=np.int32), counts),
        comparison_place=np.concatenate([row.comparison_index for row in rows]),
    )
    return TokenRow(
        id=rows[0].id,
        tokens=np.concatenate(parts),
        lengths=np.asarray([len(part) for part in parts], dtype=np.int32),
        response_index=np.arange(len(texts), dtype=np.int32),
        comparisons=np.concatenate(pairs),
        comparison_index=np.arange(sum(counts), dtype=np.int32),
        preference=np.concatenate([row.preference for row in rows]),
        columns=_columns(rows, counts, members),
        record_key=rows[0].record_key,
        split_key=rows[0].split_key,
        prompt_length=min(prefix, *(row.prompt_length for row in rows)),
        origins=origins,
    )


def _columns(rows: Sequence[TokenRow], comparisons: Sequence[int], members: list[list[int]]) -> Columns:
    """The optional columns of all rows; those of the record itself are equal in all, by the digest.

    Responses that have become one have the same names, and nothing else is said of them: the first stands for all.
    """
    columns: Columns = {}
    counts = {"comparison": comparisons, "response": [len(row.response_index) for row in rows]}
    _, first = np.unique(np.concatenate(members), return_index=True)
    for entry in optional_columns():
        known = [row.columns[entry.stored] for row in rows if entry.stored in row.columns]
        if known:
            values = known[0] if entry.item == "record" else _joined(entry, rows, counts[entry.item])
            if entry.item == "response" and isinstance(values, list):
                values = [values[place] for place in first.tolist()]
            columns[entry.stored] = values
    return columns


def _joined(
    entry: Column, rows: Sequence[TokenRow], counts: Sequence[int]
) -> NDArray[np.float32] | list[str | None]:
    """A column of all rows, one after the other, ``missing`` for the items of rows that lack it."""
    values = [row.columns.get(entry.stored) for row in rows]
    if entry.kind == "name":
        return [
            name
            for part, count in zip(values, counts, strict=True)
            for name in ([None] * count if part is None else part)
        ]
    width = max(
        len(part) // count for part, count in zip(values, counts, strict=True) if part is not None and count
    )
    filled = [
        np.full(count * width, entry.missing) if part is None else np.asarray(part)
        for part, count in zip(values, counts, strict=True)
    ]
    return np.concatenate(filled).astype(np.float32)


# A split on disk -------------------------------------------------------------------------------------------


def merge_split(
    path: Path,
    kept: NDArray[np.int64],
    digests: NDArray[np.uint64],
    report: SplitReport,
    *,
    max_tokens: int,
    equal_once: bool,
    least_saving: float | None = LEAST_SAVING,
) -> tuple[NDArray[np.int64], NDArray[np.int32]] | None:
    """Write a split's stream anew with rows of equal prompts merged, unless there are none.

    Args:
        path: Of the finished stream; the new one takes its place.
        kept: Numbers of its rows that count, ascending.
        digests: What :func:`prompt_digest` says of each of these, (rows, 2).
        report: Of the split; what was saved is written into it.
        max_tokens: Bound on the tokens of a merged record; 0 merges none.
        equal_once: Whether equal responses of several rows become one, where one system wrote them.
        least_saving: Share of their tokens that rows must save to be merged; None merges them whatever it saves.

    Returns:
        Of every new record the row that names it, and its sizes as :class:`TokenTable` has them; None if nothing changed.
    """
    import pyarrow as pa

    order, starts = _groups(digests)
    report.prompts = len(starts)
    if not max_tokens or len(starts) == len(kept):
        return None
    report.records = report.responses = report.tokens = 0
    target = path.with_suffix(".merged")
    names, sizes = array("q"), array("i")
    groups = (kept[group] for group in _in_order(order, starts))
    merge = partial(_merged_group, max_tokens=max_tokens, equal_once=equal_once, least_saving=least_saving)
    with pa.ipc.new_stream(str(target), schema()) as stream:
        for chunk in _merged_chunks(path, groups, merge):
            names.extend(chunk.numbers)
            sizes.frombytes(chunk.sizes.tobytes())
            report.records += len(chunk.sizes)
            report.responses += int(chunk.sizes[:, 0].sum())
            report.tokens += int(chunk.sizes[:, 1:3].sum())
            report.merged += chunk.merged
            stream.write_table(chunk.table)
    os.replace(target, path)
    return np.asarray(names, dtype=np.int64), np.asarray(sizes, dtype=np.int32).reshape(-1, 4)


def _groups(digests: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places in the order of their digests, equal ones ascending; and where in it each digest begins."""
    order = np.lexsort(digests.T)
    fresh = np.ones(len(order), dtype=bool)
    for column in digests.T:  # one at a time, which holds less at once
        fresh[1:] &= column[order[1:]] == column[order[:-1]]
    fresh[1:] ^= True
    return order, np.flatnonzero(fresh)


def _in_order(order: NDArray[np.int64], starts: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Places of each digest, in the order in which the digests come first."""
    stops = np.append(starts[1:], len(order))
    for group in np.argsort(order[starts], kind="stable").tolist():
        yield order[starts[group] : stops[group]]


Placed = tuple[TokenRow, int, str, int]
"""A record, the place of the row that names it among those read together, and that row's file and line."""


class _Chunk(NamedTuple):
    """Some hundreds of new records."""

    table: Any
    """As the cache holds them, in one batch."""
    numbers: list[int]
    """Of each, the row that names it."""
    sizes: NDArray[np.int32]
    """Number of responses, tokens of the prefix, of all responses' own parts and of the longest, (records, 4)."""
    merged: int
    """Rows that are part of a record with others."""


def _merged_chunks(
    path: Path, groups: Iterator[NDArray[np.int64]], merge: Callable[[list[Placed]], list[Placed]]
) -> Iterator[_Chunk]:
    """New records; groups are read together as far as they are small."""
    dataset = TokenTable.read(path).with_format("arrow")
    waiting: list[NDArray[np.int64]] = []
    held = 0
    for group in groups:
        for start in range(0, len(group), SLICE):
            waiting.append(group[start : start + SLICE])
            held += len(waiting[-1])
            if held >= CHUNK:
                yield _merged_chunk(dataset, waiting, merge)
                waiting.clear()
                held = 0
    if waiting:
        yield _merged_chunk(dataset, waiting, merge)


def _merged_chunk(
    dataset: "datasets.Dataset",
    groups: Sequence[NDArray[np.int64]],
    merge: Callable[[list[Placed]], list[Placed]],
) -> _Chunk:
    """Records of some prompts; a row that stays alone is copied as it is."""
    import pyarrow as pa

    numbers = np.concatenate(groups)
    table: Any = dataset[numbers.tolist()]
    ends = np.cumsum([len(group) for group in groups]).tolist()
    several = [
        range(end - len(group), end) for group, end in zip(groups, ends, strict=True) if len(group) > 1
    ]
    rows = iter(_placed(table, [place for places in several for place in places]))
    order: list[int] = []
    merged: list[Placed] = []
    for group, end in zip(groups, ends, strict=True):
        if len(group) == 1:
            order.append(end - 1)
            continue
        for record in merge([next(rows) for _ in group]):
            order.append(record[1] if record[0].origins is None else len(numbers) + len(merged))
            merged += [record] if record[0].origins is not None else []
    if merged:
        table = pa.concat_tables([table, pa.Table.from_batches([_arrow(merged)])])
        numbers = np.concatenate([numbers, numbers[[place for _, place, _, _ in merged]]])
    if len(several):
        table = table.take(order)
    table = table.combine_chunks()
    counted = sum(len(row.origins.ids) for row, *_ in merged if row.origins is not None)
    return _Chunk(table, numbers[order].tolist(), record_sizes(table.column("lengths")), counted)


def _placed(table: Any, places: list[int]) -> list[Placed]:  # noqa: ANN401  pyarrow has no types
    """Some rows of a table."""
    if not places:
        return []
    some = table.take(places)
    files, lines = (some.column(name).to_pylist() for name in ("file", "line"))
    return list(zip(token_rows(some.drop_columns(["file", "line"])), places, files, lines, strict=True))


def record_sizes(column: "pa.ChunkedArray") -> NDArray[np.int32]:
    """Sizes of records by their lengths."""
    counts = lengths(column)
    values = np.concatenate([chunk.flatten().to_numpy() for chunk in column.chunks])
    starts = np.cumsum(counts) - counts
    prefix, total = values[starts], np.add.reduceat(values, starts)
    values[starts] = 0  # what is left is the responses' own
    longest = np.maximum.reduceat(values, starts)
    return np.stack([counts - 1, prefix, total - prefix, longest], axis=1).astype(np.int32)


def _merged_group(
    rows: list[Placed], *, max_tokens: int, equal_once: bool, least_saving: float | None
) -> list[Placed]:
    """Records of the rows of one prompt, merged where that saves enough."""
    out: list[Placed] = []
    for numbers in merge_rows([row[0] for row in rows], max_tokens=max_tokens, equal_once=equal_once):
        some = [rows[number] for number in numbers]
        if len(some) > 1:
            record = merged_record([row[0] for row in some], equal_once=equal_once)
            apart = sum(len(row[0].tokens) for row in some)
            if least_saving is None or len(record.tokens) <= (1 - least_saving) * apart:
                some = [(record, *some[0][1:])]
        out += some
    return out


def _arrow(records: Sequence[Placed]) -> "pa.RecordBatch":
    """Records as the cache holds them."""
    import pyarrow as pa

    fields = schema()
    data: dict[str, list[object]] = {name: [] for name in fields.names}
    for row, _, file, line in records:
        origins: Sequence[object] = row.origins or ([],) * len(ORIGINS)
        values: dict[str, object] = {
            **row._asdict(),
            "file": file,
            "line": line,
            "comparisons": row.comparisons.reshape(-1),
            **row.columns,
            **dict(zip(ORIGINS, origins, strict=True)),
        }
        for name, column in data.items():
            column.append(values.get(name, []))
    return pa.record_batch([pa.array(data[each.name], each.type) for each in fields], schema=fields)
