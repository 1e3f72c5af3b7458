"""What became of a split's prompts: kept, cut, skipped, dropped; every loss by its reason."""

from collections import Counter
from dataclasses import dataclass, field

from ..records import RecordError

__all__ = ["PromptReport"]


@dataclass
class PromptReport:
    """What became of a split's rows; every loss is counted by reason.

    Attributes:
        rows: Rows read.
        prompts: Prompts kept.
        items: Prompts with a preference kept, each combination of a prompt counting.
        preferences: Different preferences of the items.
        longest: Tokens of the longest prompt with its preference.
        cut_items: Items whose prompt was cut from the left.
        cut_tokens: Tokens cut in all.
        invalid: Rows skipped, by reason.
        dropped: Items, or rows, dropped, by reason.
        in_train: Prompts that also occur in the training split.
        first_errors: The first messages of skipped rows.
    """

    rows: int = 0
    prompts: int = 0
    items: int = 0
    preferences: int = 0
    longest: int = 0
    cut_items: int = 0
    cut_tokens: int = 0
    invalid: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    in_train: int = 0
    first_errors: list[str] = field(default_factory=list)

    def skip(self, error: RecordError) -> None:
        """Count a row that is skipped."""
        self.invalid[error.reason] += 1
        if len(self.first_errors) < 5:
            self.first_errors.append(str(error))

    def __str__(self) -> str:
        """One line: what was kept, then every loss by reason."""
        parts = [f"{self.prompts:,} prompts of {self.rows:,} rows, {self.items:,} items"]
        parts.append(f"{self.preferences:,} different preferences, up to {self.longest:,} tokens")
        for title, counts in (("skipped", self.invalid), ("dropped", self.dropped)):
            if counts:
                losses = ", ".join(f"{count:,} {reason}" for reason, count in sorted(counts.items()))
                parts.append(f"{title}: {losses}")
        if self.cut_items:
            parts.append(f"{self.cut_items:,} items cut by {self.cut_tokens:,} tokens")
        if self.in_train:
            parts.append(f"{self.in_train:,} prompts are in the training split, too")
        return "; ".join(parts)
