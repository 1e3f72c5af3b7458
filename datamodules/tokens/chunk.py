"""A chunk of rows becomes columns, wherever it is tokenised: in this process, in another one, or on another machine.

Beside the columns of the cache a batch has those of :func:`chunk_schema`: what the writer of a split counts, compares and keeps
of every row. So whoever writes the cache reads nothing of a row but numbers.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from hashlib import blake2b
from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..columns import Column, Item, optional_columns
from ..records import Comparison, PreferenceRecord, RecordError, Response, is_blank, record_key
from .cache import ORIGINS
from .merging import DIGEST, prompt_digest
from .rendering import INVALID
from .report import SplitReport
from .schema import schema
from .text import RecordTokenizer, TokenizedRecord

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "ChunkRow",
    "ChunkTokenizer",
    "TokenisedChunk",
    "WrittenRow",
    "chunk_batch",
    "chunk_schema",
    "vote_columns",
]

ChunkRow = tuple[str, PreferenceRecord | RecordError, str, int]
"""Split of a row, its record or what is wrong with it, and file and line that it is from."""
WrittenRow = tuple[PreferenceRecord, TokenizedRecord, str, int]
"""A record with its tokens, and file and line that it is from."""
Items = Sequence[PreferenceRecord] | Sequence[Response] | Sequence[Comparison]


@cache
def vote_columns() -> tuple[str, ...]:
    """Columns of votes, whose numbers of categories are the same in all records."""
    return tuple(dict.fromkeys(entry.votes for entry in optional_columns(kind="counts")))


def chunk_schema() -> "pa.Schema":
    """Names and types of the columns of a chunk: those of the cache, then what is kept of each row beside it.

    ``id_hash`` and ``digest`` tell ids and prompts, ``judgements`` what each comparison says; ``categories`` has the number of categories
    of each of :func:`vote_columns`, 0 where the row has no such votes; ``cut`` are tokens cut from the prompt, ``unread`` responses
    whose user or domain nobody reads, and ``dropped`` is the JSON of what was dropped by reason, empty for nothing.
    """
    import pyarrow as pa

    beside = pa.schema(
        [
            ("id_hash", pa.uint64()),
            ("digest", pa.binary(DIGEST)),
            ("judgements", pa.list_(pa.uint64())),
            ("categories", pa.list_(pa.int32())),
            ("cut", pa.int32()),
            ("unread", pa.int32()),
            ("dropped", pa.string()),
        ]
    )
    return pa.schema([*schema(), *beside])


def chunk_batch(rows: Sequence[WrittenRow], split: str, source: str) -> "pa.RecordBatch":
    """Rows of a split as a batch of :func:`chunk_schema`.

    Args:
        rows: At least one.
        split: Name of the split.
        source: What records are of that do not say it themselves.
    """
    import pyarrow as pa

    columns = {**_columns(rows, split, source), **_beside(rows)}
    fields = chunk_schema()
    arrays = [
        column if isinstance(column := columns[each.name], pa.Array) else pa.array(column, each.type)
        for each in fields
    ]
    return pa.record_batch(arrays, schema=fields)


# What the cache holds of a row -----------------------------------------------------------------------------


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def _items(rows: Sequence[WrittenRow], split: str) -> dict[Item, list[Items]]:
    """What a column may be of, row by row: kept responses and comparisons alone; what is asked is of ``predict`` alone."""
    requests = [record.requests if split == "predict" else () for record, *_ in rows]
    return {
        "record": [(record,) for record, *_ in rows],
        "response": [[record.responses[i] for i in tokens.responses] for record, tokens, *_ in rows],
        "request": [
            [asked[i] for i in tokens.responses] if asked else ()
            for asked, (_, tokens, *_) in zip(requests, rows, strict=True)
        ],
        "comparison": [[record.comparisons[i] for i in tokens.comparisons] for record, tokens, *_ in rows],
    }


def _values(entry: Column, items: Items) -> list[object]:
    """A row's values in a column, what is missing filled in; nothing at all if everything is."""
    values = [entry.of(item) for item in items]
    known = next((value for value in values if value is not None), None)
    if known is None:
        return []
    if entry.kind == "name":
        return values
    assert entry.missing is not None  # of these columns alone an item may lack a value
    if entry.kind != "counts":
        return [entry.missing if value is None else float(value) for value in values]
    nothing = (entry.missing,) * len(known)
    return [float(count) for value in values for count in (nothing if value is None else value)]


def _pairs(record: PreferenceRecord, tokens: TokenizedRecord) -> list[int]:
    """Chosen and rejected of each kept comparison, among the kept responses."""
    place = {response: i for i, response in enumerate(tokens.responses)}
    sides = (record.comparisons[i] for i in tokens.comparisons)
    return [place[side] for each in sides for side in (each.chosen, each.rejected)]


def _list_array(parts: Sequence[NDArray[np.int32]]) -> "pa.ListArray[Any]":
    """Arrays as one column of lists."""
    import pyarrow as pa

    offsets = np.zeros(len(parts) + 1, dtype=np.int32)
    np.cumsum([len(part) for part in parts], out=offsets[1:])
    return pa.ListArray.from_arrays(offsets, np.concatenate(parts))


def _columns(rows: Sequence[WrittenRow], split: str, source: str) -> dict[str, Any]:
    """Every column of some rows as the cache has it."""
    nothing: list[list[object]] = [[]] * len(rows)
    columns: dict[str, Any] = {
        "id": [record.id for record, *_ in rows],
        "record_key": [
            record_key(source if record.source is None else record.source, split, record.id)
            for record, *_ in rows
        ],
        "split_key": np.asarray([_hash(record.split_key) for record, *_ in rows], np.uint64).view(np.int64),
        "file": [file for *_, file, _ in rows],
        "line": [line for *_, line in rows],
        "prompt_length": [row.prompt_length for _, row, _, _ in rows],
        "tokens": _list_array([row.tokens for _, row, _, _ in rows]),
        "lengths": _list_array([row.lengths for _, row, _, _ in rows]),
        "response_index": [row.responses for _, row, _, _ in rows],
        "comparisons": [_pairs(record, row) for record, row, _, _ in rows],
        "comparison_index": [row.comparisons for _, row, _, _ in rows],
        "preference": [
            [float(record.comparisons[i].preference) for i in row.comparisons] for record, row, _, _ in rows
        ],
        **dict.fromkeys(ORIGINS, nothing),
    }
    items = _items(rows, split)
    for entry in optional_columns():
        assert entry.field is not None  # all of these are of the data
        every = map(attrgetter(entry.field), chain.from_iterable(items[entry.item]))
        lacking = all(value is None for value in every)
        columns[entry.stored] = nothing if lacking else [_values(entry, each) for each in items[entry.item]]
    return columns


# What is kept beside it ------------------------------------------------------------------------------------


def _beside(rows: Sequence[WrittenRow]) -> dict[str, list[Any]]:
    return {
        "id_hash": [_hash(record.id) for record, *_ in rows],
        "digest": [prompt_digest(record, tokens.cut) for record, tokens, *_ in rows],
        "judgements": [_judgements(record, tokens.comparisons) for record, tokens, *_ in rows],
        "categories": [_categories(record) for record, *_ in rows],
        "cut": [tokens.cut for _, tokens, *_ in rows],
        "unread": [_num_unread(record) for record, *_ in rows],
        "dropped": [json.dumps(tokens.dropped) if tokens.dropped else "" for _, tokens, *_ in rows],
    }


def _num_unread(record: PreferenceRecord) -> int:
    """Responses outside the predict split whose user or domain nobody reads; that of a row is its comparisons', too."""
    asked = record.responses if record.comparisons else record.requests
    return sum(response.user is not None or response.domain is not None for response in asked)


def _categories(record: PreferenceRecord) -> list[int]:
    """Number of categories of each of the columns of votes; nothing at all for a record without any."""
    sizes: dict[str, int] = {}
    for entry in optional_columns(kind="counts"):
        for item in record.responses if entry.item == "response" else record.comparisons:
            if (counts := entry.of(item)) is not None:
                sizes.setdefault(entry.votes, len(counts))
    return [sizes.get(name, 0) for name in vote_columns()] if sizes else []


def _judgements(record: PreferenceRecord, comparisons: Sequence[int]) -> list[int]:
    """What comparisons say, whichever side is named first: equal for two of which one repeats the other."""
    if not comparisons:
        return []
    prompt: object = record.prompt
    if not isinstance(prompt, str):
        prompt = [(message.role, message.content, message.rest) for message in record.prompt]  # type: ignore[union-attr]
    stem = blake2b(repr(prompt).encode(), digest_size=8)
    found = []
    for comparison in map(record.comparisons.__getitem__, comparisons):
        first, second = (record.responses[i].text for i in (comparison.chosen, comparison.rejected))
        share = comparison.preference
        if first > second:
            first, second, share = second, first, 1 - share
        others = (comparison.user, comparison.domain, record.source, record.aspect)
        judged = stem.copy()
        judged.update(f"{(round(share, 9), len(first), *others)!r}{first}{second}".encode())
        found.append(int.from_bytes(judged.digest(), "little"))
    return found


# A chunk ---------------------------------------------------------------------------------------------------


@dataclass
class TokenisedChunk:
    """What became of some rows of a source.

    Attributes:
        batches: Of each split that has records of them, a batch of :func:`chunk_schema`.
        reports: Of each split that has rows of them: rows, and what is not among the records, by reason.
        error: The first row that is no valid record, where such a row stops; nothing else counts then.
    """

    batches: dict[str, "pa.RecordBatch"] = field(default_factory=dict)
    reports: dict[str, SplitReport] = field(default_factory=dict)
    error: RecordError | None = None


@dataclass(frozen=True)
class ChunkTokenizer:
    """Turns rows into a :class:`TokenisedChunk`; picklable.

    Attributes:
        tokenizer: Of the records.
        source: What records are of that do not say it themselves: the data module's name.
        skips: Whether rows that are no valid records are counted; otherwise the first one stops.
        needs_judgement: Whether records without a judgement are left out.
        needs_prompts: Whether records without a prompt are counted.
    """

    tokenizer: RecordTokenizer
    source: str
    skips: bool
    needs_judgement: bool
    needs_prompts: bool

    def __call__(self, rows: Sequence[ChunkRow]) -> TokenisedChunk:
        """Tokenise rows; those that are wrong are met in their order.

        Args:
            rows: Any number.
        """
        chunk = TokenisedChunk()
        tokenised = iter(
            self.tokenizer([record for _, record, *_ in rows if not isinstance(record, RecordError)])
        )
        kept: dict[str, list[WrittenRow]] = {}
        for split, record, file, line in rows:
            report = chunk.reports.setdefault(split, SplitReport())
            report.rows += 1
            wrong = record if isinstance(record, RecordError) else None
            if not isinstance(record, RecordError):
                tokens = next(tokenised)
                if isinstance(tokens, RecordError):
                    wrong = self._refused(tokens, file, line, report)
                elif split != "predict" and self.needs_judgement and not _judged(record, tokens):
                    report.dropped.update(tokens.dropped)
                    report.dropped["record without a judgement"] += 1
                else:
                    report.without_prompt += self.needs_prompts and _lacks_prompt(record)
                    kept.setdefault(split, []).append((record, tokens, file, line))
            if wrong is not None:
                if not self.skips:
                    return TokenisedChunk(error=wrong)
                report.skip(wrong)
        chunk.batches = {split: chunk_batch(each, split, self.source) for split, each in kept.items()}
        return chunk

    def _refused(self, problem: RecordError, file: str, line: int, report: SplitReport) -> RecordError | None:
        """What is wrong with a row that has no tokens; None where it is dropped by the truncation rule."""
        if self.tokenizer.config.truncation == "error" or problem.reason in INVALID:
            return problem.at(file, line)
        report.dropped[f"record: {problem.reason}"] += 1
        return None


def _lacks_prompt(record: PreferenceRecord) -> bool:
    return isinstance(record.prompt, str) and is_blank(record.prompt)


def _judged(record: PreferenceRecord, tokens: TokenizedRecord) -> bool:
    """Whether a comparison, score or vote is left of what was said of the record."""
    kept = [record.responses[i] for i in tokens.responses]
    return bool(tokens.comparisons) or any(
        response.score is not None or response.votes is not None for response in kept
    )
