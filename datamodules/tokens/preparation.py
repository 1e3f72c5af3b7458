"""Rows become records, records become tokens, tokens become the cache."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple, Protocol

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from ..records import PreferenceRecord, RecordError, SourceRow, is_blank
from .cache_writer import CacheWriter
from .config import TextConfig
from .rendering import INVALID, without_keys
from .report import SplitReport
from .text import RecordTokenizer, TokenizedRecord

__all__ = ["RecordSource", "report_split", "tokenise"]

CHUNK = 256
"""Records tokenised at a time: enough to keep a fast tokenizer's threads busy, little enough for memory."""

Routed = tuple[str, PreferenceRecord, SourceRow]


class RecordSource(Protocol):
    """What is needed of a data module."""

    text: TextConfig

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


class _Chunk(NamedTuple):
    """Rows that were read together.

    Attributes:
        errors: What is wrong with those that are no records.
        records: The others.
    """

    errors: list[RecordError]
    records: list[Routed]


def tokenise(data: RecordSource, source: str, writer: CacheWriter) -> None:
    """Read, validate and tokenise one of the data's sources into the cache.

    While a chunk is tokenised, which needs no Python, the next is read and the one before is written; whatever is wrong is
    said in the order of the rows all the same.

    Raises:
        RecordError: At the first row that is no valid record, if the writer does not skip such rows.
    """
    tokenizer = data.tokenizer
    with ThreadPoolExecutor(1) as pool:
        chunks, waiting = _chunks(data, source), None
        while True:
            try:
                chunk = next(chunks, None)
            except Exception:
                if waiting is not None:  # what is wrong with rows before comes first
                    _write(data, source, writer, *waiting)
                raise
            future = pool.submit(tokenizer, [record for _, record, _ in chunk.records] if chunk else [])
            if waiting is not None:
                _write(data, source, writer, *waiting)
            if chunk is None:
                break
            waiting = chunk, future
    writer.reports[source].notes += data.notes(source)
    writer.reports[source].unread_columns += data.unread_columns(source)


def _chunks(data: RecordSource, source: str) -> Iterator[_Chunk]:
    rows = data.load(source)
    while read := list(islice(rows, CHUNK)):
        chunk = _Chunk([], [])
        for row in read:
            try:
                if isinstance(row, RecordError):
                    raise row
                record = _record(data, row)
            except RecordError as error:
                chunk.errors.append(error)
                continue
            chunk.records.append((data.route(record, source), record, row))
        yield chunk


def _record(data: RecordSource, row: SourceRow) -> PreferenceRecord:
    try:
        return without_keys(data.to_example(row), data.text.ignored_message_keys)
    except RecordError as error:
        raise error if error.file else error.at(row.file, row.line) from None


def _write(
    data: RecordSource,
    source: str,
    writer: CacheWriter,
    chunk: _Chunk,
    tokenised: "Future[list[TokenizedRecord | RecordError]]",
) -> None:
    for error in chunk.errors:
        writer.reports[source].rows += 1
        writer.skip(source, error)
    tokens = tokenised.result()
    for split in data.splits:
        rows = []
        report = writer.reports[split]
        for (target, record, row), result in zip(chunk.records, tokens, strict=True):
            if target != split:
                continue
            report.rows += 1
            if isinstance(result, RecordError):
                if data.text.truncation == "error" or result.reason in INVALID:
                    writer.skip(split, result.at(row.file, row.line))
                else:
                    report.dropped[f"record: {result.reason}"] += 1
            elif split != "predict" and not _judged(record, result):
                report.dropped.update(result.dropped)
                report.dropped["record without a judgement"] += 1
            else:
                report.without_prompt += data.needs_prompts and _lacks_prompt(record)
                rows.append((record, result, row.file, row.line))
        writer.write(split, rows)


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
        raise ValueError(f"{name}: nothing is left of the {split} split: {report}{first}")
