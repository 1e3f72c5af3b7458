"""What `ensemble_vote_rm.py` makes of its runs: estimates over comparisons and seeds at once, and tables of them.

Intervals are 95 %, over prompts (of planted flips: over pairs) *and* seeds: both are drawn with replacement, independently.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from ensemble_vote_rm_data import Pair
from ensemble_vote_rm_markdown import REPORT, REPORT_FLIPPED, told
from ensemble_vote_rm_runs import NONE, TREATMENTS
from ensemble_vote_rm_studies import IN_SAMPLE, Found, Planted, Tenths
from rich.console import Console
from rich.table import Table
from torch import Tensor

from pluralign.metrics import crossed_estimates, error_predictions

__all__ = [
    "agreement",
    "crossed",
    "differences",
    "planted_summary",
    "show_planted",
    "show_tenths",
    "tenths_summary",
]

Estimated = dict[str, float]


def crossed(values: Sequence[Tensor], unit: Sequence[Tensor]) -> Estimated:
    """Mean of values of several seeds, with its interval over units and seeds.

    Args:
        values: Of each seed, (P,).
        unit: What is drawn, of each seed, (P,).
    """
    run = torch.cat([torch.full((len(each),), seed) for seed, each in enumerate(values)])
    rows = torch.cat([each.double() for each in values]).unsqueeze(1)
    return crossed_estimates(rows, run, torch.cat(list(unit)))[0]._asdict()


def differences(
    runs: Sequence[Mapping[str, Tensor]], unit: Sequence[Tensor], to: str
) -> dict[str, dict[str, Estimated]]:
    """Accuracy of everything that was run, and what it is more than one of them on the same comparisons.

    Args:
        runs: Who is right, by name, of each seed.
        unit: As :func:`crossed` has it.
        to: Which run others are compared with.
    """
    found = {}
    for name in runs[0]:
        found[name] = {"accuracy": crossed([run[name] for run in runs], unit)}
        if name != to:
            found[name][f"minus {to}"] = crossed([run[name] - run[to] for run in runs], unit)
    return found


# Planted flips -------------------------------------------------------------------------------------------


def planted_summary(runs: Sequence[Planted]) -> dict[str, Any]:
    """Who found the planted flips, and what treatments made of them."""
    voters: dict[str, list[Found]] = {name: [run.found[name] for run in runs] for name in runs[0].found}
    base = voters[f"head, {IN_SAMPLE}"]
    found = {}
    for name, each in voters.items():
        units = [one.pairs for one in each]
        found[name] = {
            "recall": crossed([one.flips for one in each], units),
            "correlation": sum(one.correlation for one in each) / len(each),
        }
        if each is not base:
            gaps = [one.flips - other.flips for one, other in zip(each, base, strict=True)]
            found[name][f"recall minus head, {IN_SAMPLE}"] = crossed(gaps, units)
    learned: dict[str, Any] = differences([run.test for run in runs], [run.prompt for run in runs], NONE)
    for name, row in learned.items():
        row["validation"] = sum(run.validation[name] for run in runs) / len(runs)
    chosen = max(
        (name for name in learned if name in TREATMENTS), key=lambda name: learned[name]["validation"]
    )
    return {
        "voters": found,
        "learned": learned,
        "best_on_validation": chosen,
        "test_pairs": len(runs[0].prompt),
    }


def show_planted(summary: Mapping[str, Any], title: str, console: Console) -> None:
    """Print who found the flips and what treatments made of them."""
    gap = f"recall minus head, {IN_SAMPLE}"
    table = Table(
        "voters", "recall in the bottom 15 %", gap, "correlation of members", title=f"{title}: planted flips"
    )
    for name, row in summary["voters"].items():
        table.add_row(name, told(row["recall"]), told(row.get(gap), "+"), f"{row['correlation']:.3f}")
    console.print(table)
    table = Table(
        "training labels", "accuracy", f"minus {NONE}", "validation", title=f"{title}: clean test labels"
    )
    for name, row in summary["learned"].items():
        cells = (told(row["accuracy"]), told(row.get(f"minus {NONE}"), "+"), f"{row['validation']:.3f}")
        table.add_row(name, *cells)
    console.print(table)
    console.print(f"best on validation: {summary['best_on_validation']}")


# Pairs as they are ---------------------------------------------------------------------------------------


def tenths_summary(runs: Sequence[Tenths]) -> dict[str, Any]:
    """What each tenth of the strengths teaches."""
    return differences([run.test for run in runs], [run.prompt for run in runs], NONE)


def show_tenths(summary: Mapping[str, Mapping[str, Any]], title: str, console: Console) -> None:
    """Print them beside the report's."""
    table = Table(
        "tenth by strength", "accuracy", "flipped", "report", "report, flipped",
        title=f"{title}: learned from one tenth alone, the weakest first; from all {summary[NONE]['accuracy']['value']:.3f}",
    )  # fmt: skip
    for number, report in enumerate(REPORT):
        flipped = summary.get(f"decile {number} flipped")
        table.add_row(
            f"{number * 10}-{number * 10 + 10}",
            told(summary[f"decile {number}"]["accuracy"]),
            told(flipped["accuracy"] if flipped else None),
            f"{report:.3f}",
            f"{REPORT_FLIPPED[number]:.3f}" if number < len(REPORT_FLIPPED) else "",
        )
    console.print(table)


def agreement(pairs: Sequence[Pair], runs: Sequence[Tenths]) -> dict[str, Any]:
    """Whether weak pairs are those about which annotators disagree; intervals of the first seed, over prompts.

    Args:
        pairs: The training pairs.
        runs: Of every seed.

    Returns:
        AUROC of a low strength, and of a low size of the strength, for "not unanimous", with the values of all seeds; and the
        rank correlation of the strength with the share of annotators on the side of the label.
    """
    share = torch.tensor([pair.share for pair in pairs], dtype=torch.float64)
    prompts = {pair.prompt: number for number, pair in enumerate(pairs)}
    prompt = torch.tensor([prompts[pair.prompt] for pair in pairs])
    by_seed: dict[str, list[float]] = {}
    first: dict[str, Any] = {}
    for run in runs:
        there = ~run.strength.isnan()
        strength = run.strength[there]
        found = error_predictions(
            {"low strength": -strength, "low size of strength": -strength.abs()},
            share[there] < 1,
            record=prompt[there],
        )
        ranks = torch.stack([_ranks(strength), _ranks(share[there])])
        by_seed.setdefault("rank correlation with the share", []).append(float(torch.corrcoef(ranks)[0, 1]))
        for name, each in found.items():
            assert each.auroc is not None  # some pairs are unanimous, some are not
            first.setdefault(name, each.auroc._asdict())
            by_seed.setdefault(name, []).append(each.auroc.value)
    return {
        "not_unanimous": float((share < 1).double().mean()),
        "pairs": len(pairs),
        "auroc": first,
        "seeds": by_seed,
    }


def _ranks(values: Tensor) -> Tensor:
    """Mean rank of equal values."""
    _, place, counts = values.unique(return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    return (ends - (counts - 1) / 2)[place]
