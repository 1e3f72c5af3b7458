"""``pluralign data inspect``: what a data module makes of its data: counts, lengths, sharing, padding, examples."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pluralign.datamodules import PreferenceDataModule
from pluralign.datamodules.batches import TokenBudgetBatchSampler, settled
from pluralign.datamodules.columns import optional_columns
from pluralign.datamodules.records import listed
from pluralign.datamodules.tokens import TokenRow

from .agreement import people
from .cli import NoOptions, PluralignCLI
from .guessing import inspect_unknown

__all__ = ["inspect", "print_inspection"]

PERCENTILES = (5, 50, 95, 100)


def inspect(words: Sequence[str]) -> None:
    """Print decoded examples, counts, lengths and drops of the data that the options name.

    With a file, a pattern, a folder or a dataset on the hub in place of options (``pluralign data inspect pairs.jsonl``) no
    configuration is needed: it says what the data are and how to read them.
    """
    if words and not words[0].startswith("-"):
        inspect_unknown(words)
        return
    print_inspection(
        PluralignCLI("data inspect", words, description=inspect.__doc__, options=NoOptions).datamodule
    )


def print_inspection(
    data: PreferenceDataModule, *, examples: int = 2, console: Console | None = None
) -> None:
    """Prepare a data module and print what is in its splits.

    Args:
        data: The data module; prepared and set up here.
        examples: Records shown per dataset, with special tokens visible.
        console: Where to print; None for standard output.
    """
    console = console or Console(soft_wrap=True)
    data.setup()
    console.rule(f"[bold]{data.name}")
    for folder in data.cache_folders().values():
        console.print(f"token cache  {folder}", highlight=False)
    description = {name: value for name, value in data.text_format().items() if name != "chat_template"}
    console.print(
        "text format  " + ", ".join(f"{name}={value!r}" for name, value in description.items()),
        markup=False,
        emoji=False,
    )
    counts = Table("split", "rows", "records", "responses", "comparisons", "lost and why")
    for split in data.splits:
        report = data.reports[split]
        lost = [
            f"{n:,} {why}" for part in (report.invalid, report.dropped) for why, n in sorted(part.items())
        ]
        if report.cut_prompts:
            lost.append(f"{report.cut_prompts:,} prompts cut ({report.cut_tokens:,} tokens)")
        kept = (report.rows, report.records, report.responses, report.comparisons)
        counts.add_row(split, *(f"{n:,}" for n in kept), "\n".join(lost) or "nothing")
    console.print(counts)
    console.print(_merged(data))
    for split in data.splits:
        report = data.reports[split]
        for message in report.first_errors:
            console.print(f"skipped  {message}", markup=False, emoji=False)
        if report.unread_columns:
            console.print(
                f"not read  {split}: {listed(report.unread_columns, 40)}", markup=False, emoji=False
            )
    console.print(_lengths(data))
    console.print(_batches(data))
    for part in people(data):
        console.print(part, markup=False, emoji=False, highlight=False)
    if data.domains:
        console.print(
            f"{len(data.domains):,} domain{'s' * (len(data.domains) > 1)}: {', '.join(data.domains[:12])}",
            markup=False,
        )
    split = data.splits[0]
    table = data.table(split)
    for row in table[list(range(min(examples, len(table))))]:
        _print_example(data, row, split, console)


def _merged(data: PreferenceDataModule) -> Table:
    """What became of rows of equal prompts."""
    table = Table("split", "prompts", "merged rows", "tokens an epoch", "if none were merged", "saved")
    for split in data.splits:
        report = data.reports[split]
        counts = (report.prompts, report.merged, report.tokens, report.tokens_apart)
        saved = 1 - report.tokens / max(1, report.tokens_apart)
        table.add_row(split, *(f"{n:,}" for n in counts), f"{saved:.0%}")
    return table


def _lengths(data: PreferenceDataModule) -> Table:
    table = Table("tokens", "split", *(f"{p}%" if p < 100 else "max" for p in PERCENTILES))
    for split in data.splits:
        _, prefix, own_sum, own_max = np.asarray(data.table(split).sizes, dtype=np.int64).T
        values = {
            "shared prefix": prefix,
            "longest response with prefix": prefix + own_max,
            "shared row": prefix + own_sum,
        }
        for name, lengths in values.items():
            table.add_row(name, split, *(f"{np.percentile(lengths, p):,.0f}" for p in PERCENTILES))
    return table


def _batches(data: PreferenceDataModule) -> Table:
    """Cost of an epoch in both layouts, under the loader's bounds."""
    table = Table("split", "layout", "real tokens", "saved by sharing", "padding", "batches", "over budget")
    settings = settled(data.loader, None)
    bound = settings.max_tokens
    assert bound != "auto"  # it is settled
    for split in data.splits:
        sizes = np.asarray(data.table(split).sizes)
        responses, prefix, own_sum, _ = sizes.astype(np.int64).T
        apart = int((responses * prefix + own_sum).sum())
        for layout, real in (("shared", int((prefix + own_sum).sum())), ("separate", apart)):
            sampler = TokenBudgetBatchSampler(
                sizes,
                layout=layout,
                max_tokens=bound,
                batch_size=settings.batch_size,
                mega_batch=settings.mega_batch,
                shuffle=split == "train" and settings.shuffle,
                seed=settings.seed,
            )
            plan = sampler.plan(0)
            cells = sum(int(sampler.rows[batch].sum() * sampler.lengths[batch].max()) for batch in plan)
            table.add_row(
                split,
                layout,
                f"{real:,}",
                f"{1 - real / apart:.0%}",
                f"{1 - real / cells:.1%}",
                f"{len(plan):,}",
                f"{sampler.num_oversized:,}",
            )
    return table


def _print_example(data: PreferenceDataModule, row: TokenRow, split: str, console: Console) -> None:
    decode = data.tokenizer.tokenizer.decode
    ends = np.cumsum(row.lengths)
    console.rule(Text(f"{split}: {row.id}"), align="left")

    def show(title: str, start: int, stop: int) -> None:
        # As Text, nothing in it is taken for markup or for the name of an emoji.
        label = (f"{title} ({stop - start} tokens)", "bold cyan")
        console.print(Text.assemble(label, " ", str(decode(row.tokens[start:stop]))), highlight=False)

    show("shared prefix", 0, int(ends[0]))
    for i, (start, stop) in enumerate(zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)):
        show(f"response {i}", start, stop)
    for i, (chosen, rejected) in enumerate(row.comparisons[:8].tolist()):
        parts = [
            f"{entry.stored}={_shown(row.columns[entry.stored], i, len(row.comparisons))}"
            for entry in optional_columns("comparison")
            if entry.stored in row.columns
        ]
        console.print(
            f"comparison: {chosen} over {rejected}, share {row.preference[i]:g} {' '.join(parts)}",
            markup=False,
            emoji=False,
        )
    if len(row.comparisons) > 8:
        console.print(f"... and {len(row.comparisons) - 8} more comparisons")


def _shown(values: NDArray[np.float32] | list[str | None], place: int, number: int) -> str:
    """One of ``number`` values of a column; of counts, all of an item's."""
    if isinstance(values, list):
        return str(values[place])
    return ",".join(f"{value:g}" for value in values.reshape(number, -1)[place].tolist())
