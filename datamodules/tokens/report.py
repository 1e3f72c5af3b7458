"""What became of a split's rows: kept, merged, cut, skipped, dropped; every loss by its reason."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Self

from ..records import RecordError

__all__ = ["SplitReport"]

LARGEST = ("longest", "largest_token")
"""Fields of a report of several that hold the largest of theirs; all others the sum."""

FIRST = 5
"""Messages of skipped rows that are kept."""


@dataclass
class SplitReport:
    """What became of a split's rows; every loss is counted by reason.

    Attributes:
        rows: Rows read.
        records: Records kept, after rows of equal prompts were merged.
        responses: Responses kept, equal ones of merged rows once.
        comparisons: Comparisons kept.
        prompts: Different prompts of the rows that are kept.
        merged: Rows that are part of a record with others.
        tokens: Tokens of an epoch, in shared rows.
        tokens_apart: As many as there would be if every row were a record of its own.
        longest: Tokens of the longest response with its prompt.
        largest_token: Largest token id.
        cut_prompts: Records whose prompt was cut from the left.
        cut_tokens: Tokens cut in all.
        invalid: Rows skipped, by reason.
        dropped: Parts of valid rows dropped, by reason.
        in_train: Records whose prompt (or group) also occurs in the training split.
        first_errors: The first messages of skipped rows.
        without_prompt: Records whose prompt is blank, of data that should have one; a warning if none has.
        repeated: Comparisons that say again what was said before: same prompt, texts, share, judge, domain and aspect.
        notes: What is to be said of the source that the rows are of.
        unread_columns: Columns of the source that no field read.
    """

    rows: int = 0
    records: int = 0
    responses: int = 0
    comparisons: int = 0
    prompts: int = 0
    merged: int = 0
    tokens: int = 0
    tokens_apart: int = 0
    longest: int = 0
    largest_token: int = 0
    cut_prompts: int = 0
    cut_tokens: int = 0
    invalid: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    in_train: int = 0
    first_errors: list[str] = field(default_factory=list)
    without_prompt: int = 0
    repeated: int = 0
    notes: list[str] = field(default_factory=list)
    unread_columns: list[str] = field(default_factory=list)

    @classmethod
    def of_all(cls, reports: Sequence[Self]) -> Self:
        """What became of the rows of several, at least one, taken together."""
        whole = cls()
        for entry in fields(cls):
            first, *others = (getattr(report, entry.name) for report in reports)
            for value in others:
                first = max(first, value) if entry.name in LARGEST else first + value
            setattr(whole, entry.name, first)
        return whole

    def skip(self, error: RecordError) -> None:
        """Count a row that is skipped."""
        self.invalid[error.reason] += 1
        if len(self.first_errors) < FIRST:
            self.first_errors.append(str(error))

    def take(self, further: Self) -> None:
        """Add what became of a further chunk of rows, before any of it was written.

        Args:
            further: Its rows, those that are skipped or dropped, and those without a prompt.
        """
        self.rows += further.rows
        self.without_prompt += further.without_prompt
        self.invalid.update(further.invalid)
        self.dropped.update(further.dropped)
        self.first_errors += further.first_errors[: FIRST - len(self.first_errors)]

    def __str__(self) -> str:
        """One line: what was kept, then every loss by reason."""
        parts = [
            f"{self.records:,} records of {self.rows:,} rows, {self.responses:,} responses, {self.comparisons:,} comparisons"
        ]
        if self.merged:
            parts.append(
                f"{self.merged:,} rows merged by prompt (there are {self.prompts:,}): {self.tokens:,} tokens an epoch in "
                f"place of {self.tokens_apart:,}"
            )
        for title, counts in (("skipped", self.invalid), ("dropped", self.dropped)):
            if counts:
                parts.append(
                    f"{title}: "
                    + ", ".join(f"{count:,} {reason}" for reason, count in sorted(counts.items()))
                )
        if self.cut_prompts:
            parts.append(f"{self.cut_prompts:,} prompts cut by {self.cut_tokens:,} tokens")
        if self.without_prompt:
            parts.append(f"{self.without_prompt:,} records without a prompt")
        if self.repeated:
            parts.append(f"{self.repeated:,} comparisons repeat a judgement")
        if self.in_train:
            parts.append(f"{self.in_train:,} records share a prompt with the training split")
        return "; ".join(parts)
