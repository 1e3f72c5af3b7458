"""Tables of a page from what `ensemble_vote_rm.py` recorded.

    python benchmarks/ensemble_vote_rm_markdown.py [--results FILE] [--page FILE]

Writes them between the page's two marks, in place of what stands there; a test compares.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- recorded by ensemble_vote_rm.py -->", "<!-- end of what is recorded -->"
PARTS = {"synthetic": "synthetic crowd", "arguments": "UKPConvArg1", "dialogues": "HH-RLHF, helpful-base"}
REPORT = (0.327, 0.347, 0.446, 0.561, 0.653, 0.68, 0.682, 0.682, 0.674, 0.659)
REPORT_FLIPPED = (0.667, 0.649)
"""Validation accuracy of one reward model for each tenth, read off a figure of the report (its section 2.2), and once flipped."""

Lines = list[str]


def told(value: Mapping[str, float] | None, sign: str = "") -> str:
    """An estimate in a cell."""
    if value is None:
        return ""
    return " ".join((f"{value['value']:{sign}.3f}", f"[{value['low']:{sign}.3f}, {value['high']:{sign}.3f}]"))


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Lines:
    """A table and the empty line after it."""
    lines = [heads, ["---"] * len(heads), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines] + [""]


def planted(found: Mapping[str, Any], title: str) -> Lines:
    """Who found the flips, and what treatments made of them."""
    voters = [
        [
            name,
            told(row["recall"]),
            told(row.get("recall minus head, bootstrap"), "+"),
            f"{row['correlation']:.3f}",
        ]
        for name, row in found["voters"].items()
    ]
    learned = [
        [name, told(row["accuracy"]), told(row.get("minus none"), "+"), f"{row['validation']:.3f}"]
        for name, row in found["learned"].items()
    ]
    heads = ("recall of the flips in the bottom 15 %", "minus head, bootstrap", "correlation of members")
    return [
        *table((f"{title}: voters", *heads), voters),
        *table((f"{title}: training labels", "accuracy", "minus none", "validation"), learned),
    ]


def tenths(found: Mapping[str, Mapping[str, Any]]) -> Lines:
    """Accuracy of what is learned from each tenth of the strengths, beside the report's."""
    rows = []
    for number, report in enumerate(REPORT):
        cells = [f"{number * 10} to {number * 10 + 10} %"]
        for each in found.values():
            cells.append(told(each[f"decile {number}"]["accuracy"]))
            flipped = each.get(f"decile {number} flipped")
            cells.append(told(flipped["accuracy"] if flipped else None))
        flipped_report = f"{REPORT_FLIPPED[number]:.3f}" if number < len(REPORT_FLIPPED) else ""
        rows.append([*cells, f"{report:.3f}", flipped_report])
    heads = [part for title in found for part in (title, f"{title}, flipped")]
    return table(("tenth by strength, the weakest first", *heads, "report", "report, flipped"), rows)


def workers(found: Mapping[str, Any]) -> Lines:
    """Whether weak pairs are those that workers disagreed on."""
    rows = [
        [f"AUROC of {name}", told(value), ", ".join(f"{each:.3f}" for each in found["seeds"][name])]
        for name, value in found["auroc"].items()
    ]
    name = "rank correlation with the share"
    rows.append([name, "", ", ".join(f"{each:.3f}" for each in found["seeds"][name])])
    return table(("workers who disagree", "first seed", "every seed"), rows)


def shift(found: Mapping[str, Any]) -> Lines:
    """Ways of training under shift."""
    heads = [part for title in found["test"] for part in (title, "minus plain")]
    rows = []
    for name in next(iter(found["test"].values())):
        cells = []
        for each in found["test"].values():
            cells += [told(each[name]["accuracy"]), told(each[name].get("minus plain"), "+")]
        validation, rise = found["validation"].get(name), found["least_rise"].get(name)
        last = ["" if validation is None else f"{validation:.3f}", "" if rise is None else f"{rise:.1e}"]
        rows.append([name, *cells, *last])
    return table(("training on early systems", *heads, "validation, later systems", "least rise of J"), rows)


def tables(results: Mapping[str, Any]) -> Lines:
    """All of them."""
    lines: Lines = []
    for name, title in PARTS.items():
        if name == "synthetic":
            lines += planted(results[name], title)
        else:
            for part in ("features", "network"):
                lines += planted(results[name][part], f"{title}, {part}")
    real = {title: results[name]["tenths"] for name, title in PARTS.items() if name != "synthetic"}
    return [*lines, *tenths(real), *workers(results["arguments"]["workers"]), *shift(results["shift"])]


def page_with(page: str, results: Mapping[str, Any]) -> str:
    """A page with these tables between its marks."""
    before, rest = page.split(BEGIN)
    return before + "\n".join([BEGIN, "", *tables(results)]) + END + rest.split(END)[1]


def main() -> int:
    """Write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--results", type=Path, default=ROOT / "benchmarks" / "results" / "ensemble_vote_rm.json"
    )
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "methods" / "ensemble_vote.md")
    options = parser.parse_args()
    results = json.loads(options.results.read_text(encoding="utf-8"))
    page = options.page.read_text(encoding="utf-8")
    options.page.write_text(page_with(page, results), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
