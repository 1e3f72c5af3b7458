"""How well a score of uncertainty predicts errors: AUROC, and risk by coverage; exact on ties, with intervals."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .estimate import Estimate, bootstrap, percentile_interval

__all__ = ["ErrorPrediction", "error_predictions"]

MOST_POINTS = 100
"""Points of a curve of risk by coverage."""
SOME = 250_000
"""Numbers of a resample's items that are summed at a time, so that they stay near the processor."""


@dataclass(frozen=True)
class ErrorPrediction:
    """How well one score of uncertainty predicts errors.

    Attributes:
        number: Items.
        auroc: Probability that a wrong item is less certain than a right one, equal scores half; 0.5 is chance. None where
            all are right or all wrong.
        area: Area under the curve of risk by coverage, in [0, 1]: the mean over k of the share of errors among the k most certain
            items. Without any order it is the share of errors itself.
        excess: That area less the least that any score could reach with as many errors, >= 0.
        coverage: Shares of the items, ascending, the last one is 1.
        risk: Share of errors among the most certain ones, at each coverage.
    """

    number: int
    auroc: Estimate | None
    area: Estimate
    excess: Estimate
    coverage: tuple[float, ...]
    risk: tuple[float, ...]

    @property
    def error(self) -> float:
        """Share of errors of all items, the risk at full coverage."""
        return self.risk[-1]

    def content(self) -> dict[str, object]:
        """Plain values."""
        return {
            "number": self.number,
            "error": self.error,
            "auroc": self.auroc and self.auroc._asdict(),
            "aurc": self.area._asdict(),
            "excess_aurc": self.excess._asdict(),
            "coverage": list(self.coverage),
            "risk": list(self.risk),
        }


def error_predictions(
    scores: Mapping[str, Tensor],
    wrong: Tensor,
    *,
    record: Tensor | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, ErrorPrediction]:
    r"""Measure how well each of several scores predicts errors; intervals are 95 % percentile bootstrap intervals over records.

    With items ordered from the most certain one on, and :math:`e_i` 1 where the i-th is wrong:

    .. math::
        \text{risk}(k) = \tfrac1k \textstyle\sum_{i \le k} e_i, \qquad
        \text{AURC} = \tfrac1n \sum_{k=1}^{n} \text{risk}(k)

    Items of equal scores stand in no order: each value is the mean over all of their orders, in closed form (risk is linear
    in the errors before it, and the sum over k is one of harmonic numbers). The least area is that of the order with all
    right items first, summed exactly.

    Own code: torchmetrics has no risk-coverage curve, and its ``BinaryAUROC`` takes the sigmoid of scores outside of
    [0, 1], so that large ones become ties, has no weights, by which a bootstrap over records is one pass, and no NaN.

    Args:
        scores: Uncertainty of each item by name, (P,) each, the higher the less certain; NaN where it is not known: the item is
            left out for this score. Infinity is a value.
        wrong: Which items are wrong, (P,) bool.
        record: What is drawn by the bootstrap, (P,) int64, any numbers; None for each item by itself.
        num_resamples: Resamples, >= 1.
        seed: Seed of the draws; the global generator stays as it is.

    Returns:
        Of every score that is known for an item, by name.

    Source:
        Y. Geifman, G. Uziel, R. El-Yaniv, *Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers*, ICLR 2019,
        section 3 (AURC) and equation 2 (excess). Departures: the least area is summed over items in place of the
        integral, and equal scores are averaged over their orders.
    """
    of_record = torch.arange(len(wrong)) if record is None else record.unique(return_inverse=True)[1]
    orders = {
        name: _Order(score, wrong, of_record)
        for name, score in scores.items()
        if not bool(score.isnan().all())
    }
    if not orders:
        return {}

    def statistics(times: Tensor) -> Tensor:
        return torch.stack([order.statistics(times) for order in orders.values()], 1)

    def drawn_statistics(drawn: Tensor) -> Tensor:
        times = torch.zeros(drawn.shape, dtype=torch.float64)
        times.scatter_add_(1, drawn, torch.ones((), dtype=torch.float64).expand(drawn.shape))
        return torch.cat([statistics(some) for some in times.split(max(1, SOME // len(wrong)))])

    number = int(of_record.max()) + 1
    drawn = bootstrap(drawn_statistics, number, num_resamples=num_resamples, seed=seed)
    ends = percentile_interval(drawn)
    values = statistics(torch.ones(1, number, dtype=torch.float64))
    estimates: list[list[list[float]]] = torch.cat([values, ends]).permute(1, 2, 0).tolist()
    found = {}
    for (name, order), rows in zip(orders.items(), estimates, strict=True):
        auroc, area, excess = (Estimate(*row) for row in rows)
        known = auroc if auroc.value == auroc.value else None
        found[name] = ErrorPrediction(order.number, known, area, excess, *order.curve())
    return found


class _Order:
    """Items in the order of a score, the most certain first, and levels of equal scores."""

    def __init__(self, score: Tensor, wrong: Tensor, of_record: Tensor) -> None:
        rows = (~score.isnan()).nonzero().squeeze(1)
        sorted_scores, order = score[rows].double().sort(stable=True)
        self.number = len(rows)
        self.wrong = wrong[rows[order]].double()
        self.of_record = of_record[rows[order]]
        last = torch.ones(self.number, dtype=torch.bool)
        last[:-1] = sorted_scores[1:] != sorted_scores[:-1]
        self.ends = last.nonzero().squeeze(1)

    def statistics(self, times: Tensor) -> Tensor:
        """AUROC, area and excess, (n, 3), of n samples that have every record so many times, (n, records)."""
        weight = times[:, self.of_record]
        size_to, errors_to = weight.cumsum(1), (weight * self.wrong).cumsum(1)
        if len(self.ends) < self.number:
            size_to, errors_to = size_to[:, self.ends], errors_to[:, self.ends]
        size, errors = _steps(size_to), _steps(errors_to)
        total, all_errors = size_to[:, -1], errors_to[:, -1]
        all_right = total - all_errors
        right_before = size_to - size - (errors_to - errors)
        auroc = (errors * (right_before + (size - errors) / 2)).sum(1) / (all_errors * all_right)
        # Sum over j of (E + a j) / (W + j) for the level's items, with E errors and W items before it, a errors an item.
        harmonic = _harmonic_numbers(int(total.max()))
        mean = errors / size.clamp_min(1)
        steps = _steps(harmonic[size_to.long()])
        area = (errors + (errors_to - errors - mean * (size_to - size)) * steps).sum(1)
        least = all_errors - all_right * (harmonic[total.long()] - harmonic[all_right.long()])
        return torch.stack([auroc, area / total, (area - least).clamp_min(0) / total], 1)

    def curve(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Coverages and risks, at most ``MOST_POINTS``."""
        ends = self.ends + 1
        sizes = _steps(ends)
        means = _steps(self.wrong.cumsum(0)[self.ends]) / sizes
        errors = means.repeat_interleave(sizes).cumsum(0)
        number = min(MOST_POINTS, self.number)
        places = torch.arange(1, number + 1) * self.number // number
        risk = errors[places - 1] / places
        return tuple((places.double() / self.number).tolist()), tuple(risk.clamp(0, 1).tolist())


def _steps(sums: Tensor) -> Tensor:
    """What was added, from running sums, (..., P)."""
    return torch.diff(sums, prepend=sums.new_zeros(*sums.shape[:-1], 1))


def _harmonic_numbers(number: int) -> Tensor:
    """Sums of 1 / k for k up to 0, 1, ..., ``number``: (``number`` + 1,)."""
    inverse = 1 / torch.arange(1, number + 1, dtype=torch.float64)
    return torch.cat([inverse.new_zeros(1), inverse.cumsum(0)])
