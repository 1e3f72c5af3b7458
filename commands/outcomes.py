"""What the records of a sample say: who won, ties, shares, users, what was lost, a few of them in full; settings as YAML."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pluralign.datamodules import Comparison, PreferenceRecord
from pluralign.datamodules.records import listed, plain_turns

from .sampling import Outcome

__all__ = ["data_block", "print_outcome"]

SHOWN_LETTERS = 280
"""Letters of a text that an example shows."""
SHOWN_RESPONSES = 6
TOP = 5
"""Names that are shown of many."""
PLAIN = re.compile(
    r"(?!(?:y|n|yes|no|on|off|true|false|null|none)$)[A-Za-z_][\w./ -]*[\w/]|[A-Za-z]", re.IGNORECASE
)
"""Text that YAML takes for text without quotes."""


def data_block(class_path: str, settings: Mapping[str, object]) -> str:
    """A data module as the ``data`` part of a configuration.

    Args:
        class_path: Of the data module.
        settings: Its settings.
    """
    block: dict[str, object] = {"class_path": class_path}
    return "\n".join(_yaml({"data": block | ({"init_args": settings} if settings else {})}))


def _yaml(value: Mapping[str, object], indent: int = 0) -> list[str]:
    """Lines of YAML; numbers, lists and text that is not plain as JSON, which YAML reads."""
    lines = []
    for key, entry in value.items():
        if isinstance(entry, Mapping):
            lines += [f"{' ' * indent}{_scalar(key)}:", *_yaml(entry, indent + 2)]
        else:
            lines.append(f"{' ' * indent}{_scalar(key)}: {_scalar(entry)}")
    return lines


def _scalar(value: object) -> str:
    if isinstance(value, str) and PLAIN.fullmatch(value):
        return value
    return json.dumps(value, ensure_ascii=False)


def print_outcome(
    outcome: Outcome,
    examples: int,
    console: Console,
    *,
    sides: Sequence[str] = (),
    dropped: Mapping[str, int] | None = None,
    unread: Sequence[str] = (),
) -> None:
    """Print what records say.

    Args:
        outcome: The records, and what was lost.
        examples: How many are shown in full.
        console: Where to print.
        sides: Columns of the sides of neutral pairs.
        dropped: What tokenising dropped, by reason.
        unread: Columns that nothing reads.
    """
    console.print()
    console.print(_counts(outcome, dropped or {}, sides))
    for message in outcome.errors:
        console.print(Text.assemble(("lost     ", "bold red"), message))
    if unread:
        console.print(Text.assemble(("not read ", "bold cyan"), listed(unread, 40)))
    for record in _telling(outcome.records, examples):
        _print_example(record, console, sides)


def _counts(outcome: Outcome, dropped: Mapping[str, int], sides: Sequence[str]) -> Table:
    records = outcome.records
    comparisons = [comparison for record in records for comparison in record.comparisons]
    responses = sum(len(record.responses) for record in records)
    table = Table(show_header=False)
    table.add_row("rows", f"{outcome.rows:,}")
    table.add_row("records", f"{len(records):,}, of {responses:,} responses")
    if comparisons:
        first, ties, second = (sum(side == n for side in map(_side, comparisons)) for n in (1, 0, -1))
        names = [f" ({name})" for name in sides] or ["", ""]
        total = len(comparisons)
        table.add_row("comparisons", f"{total:,}")
        table.add_row(f"the first{names[0]} wins", f"{first:,}  {first / total:.1%}")
        table.add_row("ties", f"{ties:,}  {ties / total:.1%}")
        table.add_row(f"the second{names[1]} wins", f"{second:,}  {second / total:.1%}")
        shares = [c.preference for c in comparisons if c.preference not in (0.0, 0.5, 1.0)]
        table.add_row(
            "shares in between",
            f"{len(shares):,}" + (f", mean {sum(shares) / len(shares):.2f}" if shares else ""),
        )
    scores = [
        response.score for record in records for response in record.responses if response.score is not None
    ]
    if scores:
        table.add_row("scores", f"{len(scores):,}, from {min(scores):g} to {max(scores):g}")
    if counted := [votes for record in records for votes in _votes(record)]:
        by_label = [f"{sum(counts):,g}" for counts in zip(*counted, strict=False)]
        table.add_row("votes", f"on {len(counted):,}, by label: {', '.join(by_label)}")
    for title, names_of in (
        ("users", [c.user for c in comparisons]),
        ("domains", [c.domain for c in comparisons]),
    ):
        table.add_row(title, _names(names_of))
    lost = [f"{n:,} {why}" for counts in (outcome.lost, dropped) for why, n in sorted(counts.items())]
    table.add_row("lost and why", "\n".join(lost) or "nothing")
    return table


def _votes(record: PreferenceRecord) -> list[tuple[float, ...]]:
    """Counts of votes of a record, on its responses and on its comparisons."""
    every = [response.votes for response in record.responses]
    every += [comparison.votes for comparison in record.comparisons]
    return [votes for votes in every if votes is not None]


def _side(comparison: Comparison) -> int:
    """1 if the first response wins, -1 if another does, 0 for a tie."""
    if comparison.preference == 0.5:
        return 0
    return 1 if (comparison.preference > 0.5) == (comparison.chosen < comparison.rejected) else -1


def _names(names: Iterable[str | None]) -> str:
    counts = Counter(name for name in names if name is not None)
    if not counts:
        return "none named"
    top = ", ".join(f"{name[:40]} {n:,}" for name, n in counts.most_common(TOP))
    return f"{len(counts):,}: {top}" + (", ..." if len(counts) > TOP else "")


def _telling(records: Sequence[PreferenceRecord], number: int) -> list[PreferenceRecord]:
    """Records that show as many outcomes as there are: one of each first, then those that come."""
    by_side: dict[int, PreferenceRecord] = {}
    for record in records:
        for comparison in record.comparisons:
            by_side.setdefault(_side(comparison), record)
    chosen = {id(record): record for record in by_side.values()}
    for record in records[: number + len(chosen)]:
        chosen.setdefault(id(record), record)
    return list(chosen.values())[:number]


def _print_example(record: PreferenceRecord, console: Console, sides: Sequence[str]) -> None:
    console.rule(Text(record.id, "bold"), align="left")
    prompt = record.prompt if isinstance(record.prompt, str) else plain_turns(record.prompt)
    console.print(Text.assemble(("prompt  ", "bold cyan"), _short(prompt) or "(none)"))
    for i, response in enumerate(record.responses[:SHOWN_RESPONSES]):
        name = sides[i] if i < len(sides) else f"response {i}"
        said = [] if response.score is None else [f"score {response.score:g}"]
        said += [] if response.votes is None else [_counted(response.votes)]
        rating = f" ({', '.join(said)})" if said else ""
        console.print(Text.assemble((f"{name}{rating}  ", "bold cyan"), _short(response.text)))
    if len(record.responses) > SHOWN_RESPONSES:
        console.print(f"   and {len(record.responses) - SHOWN_RESPONSES:,} more responses")
    for comparison in record.comparisons[:4]:
        console.print(Text(f"-> {_won(comparison, sides)}", "bold"))
    if len(record.comparisons) > 4:
        console.print(f"   and {len(record.comparisons) - 4:,} more comparisons")


def _won(comparison: Comparison, sides: Sequence[str]) -> str:
    names = [
        sides[i] if i < len(sides) else f"response {i}" for i in (comparison.chosen, comparison.rejected)
    ]
    if comparison.preference < 0.5:
        names.reverse()
    share = max(comparison.preference, 1 - comparison.preference)
    parts = ["a tie" if share == 0.5 else f"{names[0]} wins over {names[1]}"]
    if share not in (0.5, 1.0):
        parts.append(f"share {share:.2f}")
    parts += [
        f"{name} {value}"
        for name, value in (("user", comparison.user), ("domain", comparison.domain))
        if value
    ]
    if comparison.votes is not None:
        parts.append(_counted(comparison.votes))
    if comparison.strength is not None:
        parts.append(f"strength {comparison.strength:g}")
    return ", ".join(parts)


def _counted(votes: Sequence[float]) -> str:
    return f"votes {', '.join(f'{count:g}' for count in votes)}"


def _short(text: str) -> str:
    """A text on few lines; the end of a long one is left out."""
    text = re.sub(r"\n\s*\n+", "\n", text.strip())
    return (
        text if len(text) <= SHOWN_LETTERS else f"{text[:SHOWN_LETTERS].rstrip()} ... ({len(text):,} letters)"
    )
