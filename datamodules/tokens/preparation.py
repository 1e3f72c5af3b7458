"""Rows become records, records become tokens, tokens become the cache."""

from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from itertools import islice
from typing import Protocol

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from ..records import PreferenceRecord, RecordError, SourceRow, is_blank
from .cache_writer import CacheWriter
from .config import TextConfig
from .processes import Tokenised, tokenising
from .rendering import INVALID, without_keys
from .report import SplitReport
from .split_writer import WrittenRow
from .text import RecordTokenizer, TokenizedRecord

__all__ = ["RecordSource", "report_split", "tokenise"]

CHUNK = 256
"""Records tokenised at a time: enough to keep a fast tokenizer's threads busy, little enough for memory."""

UNUSED_JUDGEMENT = "judgement of records that are read without"

Routed = tuple[str, PreferenceRecord, SourceRow]


class RecordSource(Protocol):
    """What is needed of a data module."""

    text: TextConfig
    needs_judgement: bool
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


Chunk = list[Routed | RecordError]
"""Rows that were read together, each with its record or what is wrong with it."""


def tokenise(data: RecordSource, source: str, writer: CacheWriter) -> None:
    """Read, validate and tokenise one of the data's sources into the cache.

    While some chunks are tokenised, by a thread that needs no Python most of the time or by several processes, the next are read
    and those before are written; whatever is wrong is said in the order of the rows all the same, and what is written is the
    same to the bit.

    Raises:
        RecordError: At the first row that is no valid record, if the writer does not skip such rows.
    """
    chunks, waiting = _chunks(data, source), deque[tuple[Chunk, Future[Tokenised]]]()
    with tokenising(data.tokenizer, data.num_processes) as submit:
        while True:
            try:
                chunk = next(chunks, None)
            except Exception:
                while waiting:  # what is wrong with rows before comes first
                    _write(data, source, writer, *waiting.popleft())
                raise
            if chunk is not None:
                waiting.append((chunk, submit([row[1] for row in chunk if not isinstance(row, RecordError)])))
            if waiting and (chunk is None or len(waiting) > data.num_processes):
                _write(data, source, writer, *waiting.popleft())
            elif chunk is None:
                break
    writer.reports[source].notes += data.notes(source)
    writer.reports[source].unread_columns += data.unread_columns(source)


def _chunks(data: RecordSource, source: str) -> Iterator[Chunk]:
    rows = data.load(source)
    while read := list(islice(rows, CHUNK)):
        yield [row if isinstance(row, RecordError) else _routed(data, source, row) for row in read]


def _routed(data: RecordSource, source: str, row: SourceRow) -> Routed | RecordError:
    try:
        record = _record(data, row)
    except RecordError as error:
        return error
    split = data.route(record, source)
    return split, record if data.needs_judgement else _unjudged(record), row


def _record(data: RecordSource, row: SourceRow) -> PreferenceRecord:
    try:
        return without_keys(data.to_example(row), data.text.ignored_message_keys)
    except RecordError as error:
        raise error if error.file else error.at(row.file, row.line) from None


def _write(
    data: RecordSource,
    source: str,
    writer: CacheWriter,
    chunk: Chunk,
    tokenised: Future[Tokenised],
) -> None:
    tokens = iter(tokenised.result())
    kept: dict[str, list[WrittenRow]] = {split: [] for split in data.splits}
    for item in chunk:
        if isinstance(item, RecordError):
            writer.reports[source].rows += 1
            writer.skip(source, item)
            continue
        (split, record, row), result = item, next(tokens)
        report = writer.reports[split]
        report.rows += 1
        if isinstance(result, RecordError):
            if data.text.truncation == "error" or result.reason in INVALID:
                writer.skip(split, result.at(row.file, row.line))
            else:
                report.dropped[f"record: {result.reason}"] += 1
        elif split != "predict" and data.needs_judgement and not _judged(record, result):
            report.dropped.update(result.dropped)
            report.dropped["record without a judgement"] += 1
        else:
            report.without_prompt += data.needs_prompts and _lacks_prompt(record)
            kept[split].append((record, result, row.file, row.line))
    for split, rows in kept.items():
        writer.write(split, rows)


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


def _lacks_prompt(record: PreferenceRecord) -> bool:
    return isinstance(record.prompt, str) and is_blank(record.prompt)


def _judged(record: PreferenceRecord, tokens: TokenizedRecord) -> bool:
    """Whether a comparison, score or vote is left of what was said of the record."""
    kept = [record.responses[i] for i in tokens.responses]
    return bool(tokens.comparisons) or any(
        response.score is not None or response.votes is not None for response in kept
    )


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
