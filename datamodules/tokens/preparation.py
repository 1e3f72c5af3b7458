"""Rows become records, records become tokens, tokens become the cache."""

from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from itertools import count, islice
from typing import ClassVar, Literal, NamedTuple, Protocol

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from ..records import PreferenceRecord, RecordError, SourceRow
from .chunk import ChunkRow, ChunkTokenizer, TokenisedChunk
from .config import TextConfig
from .processes import tokenising
from .rendering import without_keys
from .report import SplitReport
from .text import RecordTokenizer

__all__ = ["WHOLE", "RecordSource", "Shard", "report_split", "tokenise"]

CHUNK = 256
"""Records tokenised at a time: enough to keep a fast tokenizer's threads busy, little enough for memory."""

UNUSED_JUDGEMENT = "judgement of records that are read without"


class Shard(NamedTuple):
    """A part of the work, one of several equal ones.

    Attributes:
        number: Which one, 1 to ``total``.
        total: How many there are, >= 1.
    """

    number: int
    total: int


WHOLE = Shard(1, 1)
"""All of the work."""


class RecordSource(Protocol):
    """What is needed of a data module."""

    name: str
    text: TextConfig
    on_invalid: Literal["error", "skip"]
    needs_judgement: bool
    notes_need_records: ClassVar[bool]
    num_processes: int

    @property
    def tokenizer(self) -> RecordTokenizer:
        """The tokenizer with its settled format."""
        ...

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits that the data have."""
        ...

    def load(self, source: str) -> Iterator[SourceRow | RecordError]:
        """Rows of a source."""
        ...

    def to_example(self, row: SourceRow) -> PreferenceRecord:
        """A row as a record."""
        ...

    def route(self, record: PreferenceRecord, source: str) -> str:
        """Split of a record."""
        ...

    @property
    def needs_prompts(self) -> bool:
        """Whether records without a prompt are worth a warning."""
        ...

    def notes(self, source: str) -> list[str]:
        """Warnings about a source that was read."""
        ...

    def unread_columns(self, source: str) -> list[str]:
        """Columns of a source that nothing read."""
        ...


class ChunkWriter(Protocol):
    """What keeps tokenised chunks: a cache, or a part of one."""

    def add(self, chunk: TokenisedChunk) -> None:
        """Keep a chunk of the source that is read, behind those before."""
        ...

    def end(self, source: str, notes: list[str], unread_columns: list[str]) -> None:
        """Keep what is to be said of a source that was read."""
        ...


def tokenise(data: RecordSource, source: str, writer: ChunkWriter, shard: Shard = WHOLE) -> None:
    """Read, validate and tokenise one of the data's sources, or a shard of it.

    While some chunks are tokenised, by a thread that needs no Python most of the time or by several processes, the next are read
    and those before are written; whatever is wrong is said in the order of the rows all the same, and what is written is the
    same to the bit.

    Args:
        data: The data module.
        source: Which of its sources.
        writer: Of the cache, or of the shard.
        shard: Whose chunks become records; every row is read, for names and warnings may depend on the rows before.

    Raises:
        RecordError: At the first row that is no valid record, if such rows are not skipped.
    """
    chunks, waiting = _chunks(data, source, shard), deque[Future[TokenisedChunk]]()
    rules = ChunkTokenizer(
        data.tokenizer,
        source=data.name,
        skips=data.on_invalid == "skip",
        needs_judgement=data.needs_judgement,
        needs_prompts=data.needs_prompts,
    )
    with tokenising(rules, data.num_processes) as submit:
        while True:
            try:
                chunk = next(chunks, None)
            except Exception:
                while waiting:  # what is wrong with rows before comes first
                    writer.add(waiting.popleft().result())
                raise
            if chunk is not None:
                waiting.append(submit(chunk))
            if waiting and (chunk is None or len(waiting) > data.num_processes):
                writer.add(waiting.popleft().result())
            elif chunk is None:
                break
    writer.end(source, data.notes(source), data.unread_columns(source))


def _chunks(data: RecordSource, source: str, shard: Shard) -> Iterator[list[ChunkRow]]:
    """The shard's chunks of rows as records; of the others every row is read, too."""
    rows = data.load(source)
    for number in count():
        read = list(islice(rows, CHUNK))
        if not read:
            return
        own = number % shard.total == shard.number - 1
        chunk = [_routed(data, source, row) for row in read] if own or data.notes_need_records else []
        if own:
            yield chunk


def _routed(data: RecordSource, source: str, row: SourceRow | RecordError) -> ChunkRow:
    if isinstance(row, RecordError):
        return source, row, row.file, row.line
    try:
        record = _record(data, row)
    except RecordError as error:
        return source, error, row.file, row.line
    split = data.route(record, source)
    return split, record if data.needs_judgement else _unjudged(record), row.file, row.line


def _record(data: RecordSource, row: SourceRow) -> PreferenceRecord:
    try:
        return without_keys(data.to_example(row), data.text.ignored_message_keys)
    except RecordError as error:
        raise error if error.file else error.at(row.file, row.line) from None


def _unjudged(record: PreferenceRecord) -> PreferenceRecord:
    """The record as a group of responses, without what was said of them; how much that was is counted."""
    bare = [replace(response, score=None, votes=None, prior=None) for response in record.responses]
    changed = sum(one != other for one, other in zip(bare, record.responses, strict=True))
    number = len(record.comparisons) + changed
    if not number:
        return record
    left_out = Counter(record.left_out) + Counter({UNUSED_JUDGEMENT: number})
    record = replace(record, responses=tuple(bare), left_out=left_out)
    # A row's user and domain are its comparisons' where it has some.
    return replace(record, comparisons=(), user=None, domain=None) if record.comparisons else record


def report_split(name: str, split: str, report: SplitReport) -> None:
    """Say what became of a split's rows.

    Raises:
        ValueError: If nothing is left of it.
    """
    rank_zero_info(f"{name} {split}: {report}")
    for message in report.first_errors:
        rank_zero_info(f"  skipped {message}")
    for note in report.notes:
        rank_zero_warn(f"{name} {split}: {note}")
    if report.records and report.without_prompt == report.records:
        rank_zero_warn(
            f"{name} {split}: none of its {report.records:,} records has a prompt: answers are read without the question"
        )
    if report.in_train:
        rank_zero_warn(
            f"{name} {split}: {report.in_train} records share a prompt with the training split; "
            "their numbers say less about new prompts"
        )
    if not report.records:
        first = f"; the first: {report.first_errors[0]}" if report.first_errors else ""
        if report.dropped["record without a judgement"] and not report.first_errors:
            first = ". Responses that nobody judged are for a predict split, or a source that a mixture's `unlabelled` names"
        raise ValueError(f"{name}: nothing is left of the {split} split: {report}{first}")
