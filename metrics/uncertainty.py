"""How well a score of uncertainty predicts errors: AUROC, and risk by coverage; exact on ties, with intervals."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .estimate import CHUNK, Estimate, bootstrap, percentile_interval

__all__ = ["ErrorPrediction", "error_predictions"]

MOST_POINTS = 100
"""Points of a curve of risk by coverage."""


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
    orders = {name: _Order(score, wrong) for name, score in scores.items() if not bool(score.isnan().all())}
    if not orders:
        return {}
    of_record = torch.arange(len(wrong)) if record is None else record.unique(return_inverse=True)[1]

    def statistics(weight: Tensor) -> Tensor:
        harmonic = _harmonic_numbers(int(weight.sum(1).max()))
        return torch.stack([order.statistics(weight, harmonic) for order in orders.values()], 1)

    def drawn_statistics(drawn: Tensor) -> Tensor:
        times = torch.zeros(drawn.shape, dtype=torch.float64)
        times.scatter_add_(1, drawn, torch.ones((), dtype=torch.float64).expand(drawn.shape))
        return torch.cat(
            [statistics(some[:, of_record]) for some in times.split(max(1, CHUNK // len(wrong)))]
        )

    number = int(of_record.max()) + 1
    drawn = bootstrap(drawn_statistics, number, num_resamples=num_resamples, seed=seed)
    ends = percentile_interval(drawn)
    values = statistics(torch.ones(1, len(wrong), dtype=torch.float64))
    estimates: list[list[list[float]]] = torch.cat([values, ends]).permute(1, 2, 0).tolist()
    found = {}
    for (name, order), rows in zip(orders.items(), estimates, strict=True):
        auroc, area, excess = (Estimate(*row) for row in rows)
        known = auroc if auroc.value == auroc.value else None
        found[name] = ErrorPrediction(order.number, known, area, excess, *order.curve())
    return found


class _Order:
    """Items in the order of a score, the most certain first, and levels of equal scores."""

    def __init__(self, score: Tensor, wrong: Tensor) -> None:
        rows = (~score.isnan()).nonzero().squeeze(1)
        sorted_scores, order = score[rows].double().sort(stable=True)
        self.rows = rows[order]
        self.wrong = wrong[self.rows].double()
        last = torch.ones(len(self.rows), dtype=torch.bool)
        last[:-1] = sorted_scores[1:] != sorted_scores[:-1]
        self.ends = last.nonzero().squeeze(1)
        self.number = len(self.rows)

    def statistics(self, weight: Tensor, harmonic: Tensor) -> Tensor:
        """AUROC, area and excess, (n, 3), of n samples that have every item so many times, (n, P)."""
        weight = weight[:, self.rows]
        size_to, errors_to = (column.cumsum(1)[:, self.ends] for column in (weight, weight * self.wrong))
        size, errors = (
            torch.diff(column, dim=1, prepend=column.new_zeros(len(column), 1))
            for column in (size_to, errors_to)
        )
        right_to, right = size_to - errors_to, size - errors
        total, all_errors = size_to[:, -1], errors_to[:, -1]
        all_right = total - all_errors
        auroc = (errors * (right_to - right / 2)).sum(1) / (all_errors * all_right)
        # Sum over j of (E + a j) / (W + j) for the level's items, with E errors and W items before it, a errors an item.
        before, mean = size_to - size, errors / size.clamp_min(1)
        steps = harmonic[size_to.long()] - harmonic[before.long()]
        area = (errors + (errors_to - errors - mean * before) * steps).sum(1)
        least = all_errors - all_right * (harmonic[total.long()] - harmonic[all_right.long()])
        return torch.stack([auroc, area / total, (area - least).clamp_min(0) / total], 1)

    def curve(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Coverages and risks, at most ``MOST_POINTS``."""
        ends = self.ends + 1
        sizes = torch.diff(ends, prepend=ends.new_zeros(1))
        sums = self.wrong.cumsum(0)[self.ends]
        means = torch.diff(sums, prepend=sums.new_zeros(1)) / sizes
        errors = means.repeat_interleave(sizes).cumsum(0)
        number = min(MOST_POINTS, self.number)
        places = torch.arange(1, number + 1) * self.number // number
        risk = errors[places - 1] / places
        return tuple((places.double() / self.number).tolist()), tuple(risk.clamp(0, 1).tolist())


def _harmonic_numbers(number: int) -> Tensor:
    """Sums of 1 / k for k up to 0, 1, ..., ``number``: (``number`` + 1,)."""
    inverse = 1 / torch.arange(1, number + 1, dtype=torch.float64)
    return torch.cat([inverse.new_zeros(1), inverse.cumsum(0)])
