"""What `customized_rm.py` makes of its runs: measures with intervals, and general accuracy at equal customised accuracy.

Intervals are 95 %, over prompts *and* seeds: both are drawn with replacement, independently.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from customized_rm_data import DOMAINS, Judged, TestSet
from customized_rm_runs import INTERPOLATION, PLAIN, Curve
from rich.console import Console
from rich.table import Table
from torch import Tensor

from pluralign.callbacks.pictures import TradeOffCurve, trade_off_figure
from pluralign.metrics import Estimate, bootstrap, crossed_estimates, percentile_interval

__all__ = ["draw", "matched", "show", "summarised", "verdict"]

SHARES = (0.5, 0.8)
"""Of what plain fine-tuning gains: at these customised accuracies general ones are compared."""
RESAMPLES = 1000

Runs = Mapping[str, Sequence[Curve]]
"""Curves of every seed, by strategy."""


class Measures:
    """Means of who is right, over seeds, with intervals."""

    def __init__(self, test: TestSet, kept: Tensor | None = None) -> None:
        """Choose comparisons.

        Args:
            test: Of which set.
            kept: Which of them, (P,) bool; None for all. Groups count equally whatever is kept of each.
        """
        self.kept = torch.ones(len(test.pairs), dtype=torch.bool) if kept is None else kept
        group = test.group[self.kept]
        self.weight = 1 / group.bincount().double()[group]
        self.unit = test.prompt[self.kept]

    def of(self, values: Sequence[Tensor]) -> dict[str, float]:
        """Estimate of values of every seed, (P,) each."""
        rows = torch.cat([one.double()[self.kept] for one in values]).unsqueeze(1)
        seed = torch.arange(len(values)).repeat_interleave(len(self.unit))
        number = len(values)
        found = crossed_estimates(rows, seed, self.unit.repeat(number), weight=self.weight.repeat(number))
        return found[0]._asdict()


def subsets(test: TestSet, domains: Sequence[str], names: Sequence[str]) -> dict[str, Measures]:
    """Which comparisons each measure is of."""
    numbers = [names.index(name) for name in domains]
    mine = torch.isin(test.group, torch.tensor(numbers))
    found = {"all": mine, "lengths_alike": mine & test.alike}
    if bool(test.against_normal.any()):
        found |= {
            "against/normal": mine & test.against_normal,
            "against/others": mine & ~test.against_normal,
        }
    found |= {name: mine & (test.group == names.index(name)) for name in domains}
    return {name: Measures(test, kept) for name, kept in found.items() if bool(kept.any())}


def summarised(
    runs: Runs, judged: Judged, domains: Sequence[str], chosen: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """Plain values of what each strategy reached in the end.

    Args:
        runs: Of every strategy.
        judged: Comparisons.
        domains: That were customised to.
        chosen: Place of the interpolated weights that validation chose, by seed and domain.
    """
    sets = {
        "customized": subsets(judged.customized, domains, DOMAINS),
        "general": subsets(judged.general, judged.general.names, judged.general.names),
    }
    ends = {title: [end_of(curve) for curve in curves] for title, curves in runs.items()}
    if INTERPOLATION in runs:
        ends[INTERPOLATION] = [
            at(curve, place, judged, domains)
            for curve, place in zip(runs[INTERPOLATION], chosen, strict=True)
        ]
    starts = {title: [start_of(curve) for curve in curves] for title, curves in runs.items()}
    rows = {"general model": row(sets, starts[PLAIN], domains)}
    for title, values in ends.items():
        rows[title] = row(sets, values, domains)
        forgotten = [
            then["general"] - now["general"] for then, now in zip(starts[title], values, strict=True)
        ]
        rows[title]["forgetting"] = sets["general"]["all"].of(forgotten)
        if title != PLAIN:
            for measure in ("customized", "general"):
                gaps = [one[measure] - other[measure] for one, other in zip(values, ends[PLAIN], strict=True)]
                rows[title][f"{measure} minus {PLAIN}"] = sets[measure]["all"].of(gaps)
    return rows


Right = dict[str, Tensor]
"""Share of the domains that are right: ``customized`` (P,), ``general`` (G,), ``by_domain`` (D, G), perhaps ``routed`` (G,)."""


def end_of(curve: Curve) -> Right:
    """What a curve ends with."""
    found = {
        "customized": curve.customized[-1].double(),
        "general": curve.general[-1].double().mean(0),
        "by_domain": curve.general[-1].double(),
    }
    return found if curve.routed is None else {**found, "routed": curve.routed[-1].double()}


def start_of(curve: Curve) -> Right:
    """What it begins with: the general model."""
    return end_of(Curve((0,), curve.customized[:1], curve.general[:1]))


def at(curve: Curve, places: Sequence[int], judged: Judged, domains: Sequence[str]) -> Right:
    """What it has at a place of its own for each domain."""
    customized = curve.customized[-1].double()
    for place, domain in zip(places, domains, strict=True):
        of_domain = judged.customized.group == DOMAINS.index(domain)
        customized[of_domain] = curve.customized[place][of_domain].double()
    general = torch.stack([curve.general[place, i] for i, place in enumerate(places)]).double()
    return {"customized": customized, "general": general.mean(0), "by_domain": general}


def row(
    sets: Mapping[str, Mapping[str, Measures]], values: Sequence[Right], domains: Sequence[str]
) -> dict[str, Any]:
    """Every measure of a strategy."""
    found: dict[str, Any] = {}
    for measure, parts in sets.items():
        for name, part in parts.items():
            title = measure if name == "all" else f"{measure}/{name}"
            found[title] = part.of([one[measure] for one in values])
    for i, domain in enumerate(domains):
        found[f"general/as/{domain}"] = sets["general"]["all"].of([one["by_domain"][i] for one in values])
    if "routed" in values[0]:
        found["routed"] = sets["general"]["all"].of([one["routed"] for one in values])
    return found


def baselines(
    judged: Judged, domains: Sequence[str], random: Sequence[tuple[Tensor, Tensor]]
) -> dict[str, Any]:
    """Measures of preferring the longer response, and of random linear heads."""
    longer = {"customized": judged.customized.longer, "general": judged.general.longer}
    sets = {
        "customized": subsets(judged.customized, domains, DOMAINS),
        "general": subsets(judged.general, judged.general.names, judged.general.names),
    }
    heads = [dict(zip(longer, pair, strict=True)) for pair in random]
    return {
        title: {
            measure if name == "all" else f"{measure}/{name}": part.of([one[measure] for one in values])
            for measure, parts in sets.items()
            for name, part in parts.items()
        }
        for title, values in (("longer wins", [longer]), ("random head", heads))
    }


# Equal customised accuracy -----------------------------------------------------------------------------------


class Drawn:
    """Means of every place of every curve, under draws of prompts and seeds that all of them share."""

    def __init__(self, test: TestSet, kept: Tensor, seeds: Tensor, *, seed: int) -> None:
        """Draw prompts.

        Args:
            test: Comparisons.
            kept: Those that count, (P,) bool.
            seeds: How often each seed is drawn, (B, S).
            seed: Of the draws.
        """
        self.kept, self.seeds = kept, seeds
        _, self.unit = test.prompt[kept].unique(return_inverse=True)
        group = test.group[kept]
        self.weight = 1 / group.bincount().double()[group]
        self.times = counts(int(self.unit.max()) + 1, seed)

    def means(self, values: Sequence[Tensor]) -> Tensor:
        """Means of values of every seed, (T, P) each, under every draw: (B, T)."""
        weights = self._sums(torch.ones(1, int(self.kept.sum()), dtype=torch.float64))
        sums = torch.stack([self._sums(one[:, self.kept].double()) for one in values], 1)  # (B, S, T)
        total = (self.seeds.unsqueeze(-1) * sums).sum(1)
        return total / (self.seeds.sum(1, keepdim=True) * weights)

    def plain(self, values: Sequence[Tensor]) -> list[float]:
        """The same without drawing: of every place."""
        found: list[float] = self.means(values)[0].tolist()
        return found

    def _sums(self, values: Tensor) -> Tensor:
        by_unit = values.new_zeros(self.times.shape[1], len(values))
        by_unit.index_add_(0, self.unit, (values * self.weight).T)
        return self.times @ by_unit


def counts(number: int, seed: int) -> Tensor:
    """How often each of so many is there: once in the first row, as drawn with replacement in the others, (1 + B, n)."""

    def times(drawn: Tensor) -> Tensor:
        once = torch.ones((), dtype=torch.float64)
        return once.new_zeros(drawn.shape).scatter_add_(1, drawn, once.expand(drawn.shape))

    drawn = bootstrap(times, number, num_resamples=RESAMPLES, seed=seed)
    return torch.cat([torch.ones(1, number, dtype=torch.float64), drawn])


def matched(
    runs: Runs, judged: Judged, domains: Sequence[str], shares: Sequence[float] = SHARES
) -> dict[str, dict[str, Any]]:
    """General accuracy of each strategy where its curve first reaches some customised accuracy.

    Between measured places both are taken as linear. The mean curve over domains and seeds is read; every draw of prompts
    and seeds reads its own, target included, so that the intervals hold what the match itself is uncertain by.

    Args:
        runs: Of every strategy.
        judged: Comparisons.
        domains: That were customised to.
        shares: Of what plain fine-tuning gains.

    Returns:
        By share and strategy: ``general``, ``minus none``, ``forgetting``, and ``reached``: the share of draws that get there;
        those that do not count nowhere. None in place of estimates if the curve itself does not.
    """
    seeds = counts(len(runs[PLAIN]), 2)
    mine = torch.isin(judged.customized.group, torch.tensor([DOMAINS.index(name) for name in domains]))
    custom = Drawn(judged.customized, mine, seeds, seed=0)
    general = Drawn(judged.general, torch.ones(len(judged.general.pairs), dtype=torch.bool), seeds, seed=1)
    curves = {
        title: (
            custom.means([curve.customized for curve in found]),
            general.means([curve.general.double().mean(1) for curve in found]),
        )
        for title, found in runs.items()
    }
    plain = curves[PLAIN][0]
    results: dict[str, dict[str, Any]] = {}
    for share in shares:
        target = plain[:, 0] + share * (plain[:, -1] - plain[:, 0])
        reached = {title: crossing(*curve, target) for title, curve in curves.items()}
        results[f"{share:g}"] = {
            "customized": estimate(target),
            **{
                title: {
                    "general": estimate(value),
                    "forgetting": estimate(curves[title][1][:, 0] - value),
                    f"minus {PLAIN}": estimate(value - reached[PLAIN]),
                    "reached": float((~value.isnan()).double().mean()),
                }
                for title, value in reached.items()
            },
        }
    return results


def crossing(customized: Tensor, general: Tensor, target: Tensor) -> Tensor:
    """General accuracy where a curve first reaches a customised one, (B,); NaN where it does not.

    Args:
        customized: (B, T).
        general: (B, T).
        target: (B,).
    """
    there = customized >= target.unsqueeze(1)
    place = there.double().argmax(1).clamp_min(1).unsqueeze(1)
    before, after = (customized.gather(1, place + shift).squeeze(1) for shift in (-1, 0))
    share = ((target - before) / (after - before)).clamp(0, 1).nan_to_num(1.0)
    low, high = (general.gather(1, place + shift).squeeze(1) for shift in (-1, 0))
    return torch.where(there.any(1), low + share * (high - low), torch.nan)


def estimate(drawn: Tensor) -> dict[str, float] | None:
    """The value, which stands first, with the interval of the draws behind it; None without a value."""
    if bool(drawn[0].isnan()):
        return None
    low, high = percentile_interval(drawn[1:]).tolist()
    return Estimate(float(drawn[0]), low, high)._asdict()


def verdict(found: Mapping[str, Mapping[str, Any]], share: str) -> str:
    """In a sentence: who keeps more general ability than plain fine-tuning at equal customised accuracy."""
    gaps = {
        title: (one[f"minus {PLAIN}"], one["reached"])
        for title, one in found[share].items()
        if title not in ("customized", PLAIN)
    }
    absent = [title for title, (gap, _) in gaps.items() if gap is None]
    there = {title: gap for title, (gap, _) in gaps.items() if gap is not None}
    better = [title for title, gap in there.items() if gap["low"] > 0]
    worse = [title for title, gap in there.items() if gap["high"] < 0]
    level = [title for title in there if title not in (*better, *worse)]

    def told(titles: Sequence[str]) -> str:
        return ", ".join(
            "{} ({value:+.3f} [{low:+.3f}, {high:+.3f}])".format(title, **there[title]) for title in titles
        )

    parts = [
        f"surely better than {PLAIN}: {told(better)}" if better else f"none is surely better than {PLAIN}",
        f"undecided: {told(level)}" if level else "",
        f"surely worse: {told(worse)}" if worse else "",
        f"do not get there: {', '.join(absent)}" if absent else "",
    ]
    return f"general accuracy where {float(share):.0%} of plain fine-tuning's gain is reached: " + "; ".join(
        part for part in parts if part
    )


# Showing -------------------------------------------------------------------------------------------------


def show(summary: Mapping[str, Any], title: str, console: Console) -> None:
    """Print what each strategy reached, beside what takes no training, and what it keeps at equal customised accuracy."""
    domains = [name for name in DOMAINS if f"customized/{name}" in summary["strategies"][PLAIN]]
    table = Table("strategy", *domains, "mean", "against normal", "others", "alike", "general", "alike",
                  "forgetting", "routed", title=f"{title}: customised (left) and general accuracy")  # fmt: skip
    names = [f"customized/{name}" for name in domains]
    names += ["customized", "customized/against/normal", "customized/against/others"]
    names += ["customized/lengths_alike", "general", "general/lengths_alike"]
    for name, values in {**summary["baselines"], **summary["strategies"]}.items():
        cells = [f"{values[key]['value']:.3f}" if key in values else "" for key in names]
        lost, routed = values.get("forgetting"), values.get("routed")
        told = "" if lost is None else "{value:+.3f} [{low:+.3f}, {high:+.3f}]".format(**lost)
        table.add_row(name, *cells, told, "" if routed is None else f"{routed['value']:.3f}")
    console.print(table)
    ceilings = ", ".join(f"{name} {value:.3f}" for name, value in summary["ceiling"].items())
    console.print(f"identical answers are left out; at a half each they would leave at most: {ceilings}")
    table = Table("strategy", *(f"at {float(share):.0%} of the gain, minus {PLAIN}" for share in summary["matched"]),
                  title=f"{title}: general accuracy at equal customised accuracy")  # fmt: skip
    for name in summary["strategies"]:
        if name in next(iter(summary["matched"].values())):
            table.add_row(name, *(_matched_cell(found[name]) for found in summary["matched"].values()))
    console.print(table)
    for share in summary["matched"]:
        console.print(summary["verdict"][share])


def _matched_cell(found: Mapping[str, Any]) -> str:
    if found["general"] is None:
        return "not reached"
    gap = "{value:+.3f} [{low:+.3f}, {high:+.3f}]".format(**found[f"minus {PLAIN}"])
    often = "" if found["reached"] > 0.99 else f" ({found['reached']:.0%} of draws)"
    return f"{found['general']['value']:.3f}, {gap}{often}"


def draw(runs: Runs, summary: Mapping[str, Any], judged: Judged, path: str, title: str) -> None:
    """Picture of every strategy's way between general and customised accuracy, means over domains and seeds."""
    values = summary["strategies"]
    everything = torch.ones(len(judged.general.pairs), dtype=torch.bool)
    domains = [name for name in DOMAINS if f"customized/{name}" in values[PLAIN]]
    mine = torch.isin(judged.customized.group, torch.tensor([DOMAINS.index(name) for name in domains]))
    curves = []
    for name, found in runs.items():
        once = torch.ones(1, len(found), dtype=torch.float64)
        ways = []
        for test, kept, parts in (
            (judged.general, everything, [curve.general.double().mean(1) for curve in found]),
            (judged.customized, mine, [curve.customized for curve in found]),
        ):
            ways.append(Drawn(test, kept, once, seed=0).plain(parts))
        # Interpolation ends where plain fine-tuning does; its shares are told as steps on the way there.
        end = values[PLAIN if name == INTERPOLATION else name]
        ends = [Estimate(*end[key].values()) for key in ("general", "customized")]
        places = found[0].places
        if name == INTERPOLATION:
            places = tuple(share * runs[PLAIN][0].places[-1] for share in places)
        steps = tuple(int(place) for place in places)
        curves.append(TradeOffCurve(name, steps, *map(tuple, ways), *ends, started=True))
    longer = summary["baselines"]["longer wins"]
    lines = {"longer wins": (longer["general"]["value"], longer["customized"]["value"])}
    trade_off_figure(curves, title=title, baselines=lines).savefig(path, dpi=150)
