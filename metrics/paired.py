"""Paired comparison of methods that ran several times: intervals over what was judged and over the runs, both at once."""

import torch
from torch import Tensor

from .estimate import Estimate, percentile_interval

__all__ = ["crossed_estimates"]


def crossed_estimates(
    values: Tensor,
    run: Tensor,
    unit: Tensor,
    *,
    weight: Tensor | None = None,
    num_resamples: int = 2000,
    seed: int = 0,
) -> list[Estimate]:
    r"""Means with bootstrap intervals over units *and* runs: what other prompts and other seeds would have given.

    An interval over seeds alone says how much a result depends on the start and on the split; it says nothing of the
    prompts that no seed had. Here both are drawn with replacement and independently, :math:`a_r` times run r and
    :math:`b_u` times unit u, and a row counts as often as both were drawn:

    .. math:: \frac{\sum_i a_{r_i} b_{u_i} w_i v_i}{\sum_i a_{r_i} b_{u_i} w_i}

    Every column sees the same draws, so that a column of differences of two methods is a paired comparison. Runs need
    not share units: each may have judged others. With few runs the interval is a little too short, as of any bootstrap.

    Args:
        values: What was measured, one row per item and run, (M, F), finite.
        run: Run of each row, (M,) int64; any numbers.
        unit: What is drawn, (M,) int64; any numbers. Items that depend on one another, such as those of one prompt,
            share one.
        weight: Weight of each row, (M,), >= 0; None for 1 each.
        num_resamples: Resamples, >= 1.
        seed: Seed of the draws; the global generator stays as it is.

    Returns:
        An estimate for each of the F columns; without rows or weight all NaN.

    Raises:
        ValueError: If shapes do not fit.

    Source:
        A. B. Owen, *The pigeonhole bootstrap*, Annals of Applied Statistics 1(2), 2007, section 3. Departures: rows
        have weights, and cells of run and unit may be empty.
    """
    if values.ndim != 2 or any(one.shape != values.shape[:1] for one in (run, unit)):
        raise ValueError(
            f"values must be (M, F), run and unit (M,); got {tuple(values.shape)}, {tuple(run.shape)} and "
            f"{tuple(unit.shape)}"
        )
    values = values.double()
    weight = values.new_ones(len(values)) if weight is None else weight.double()
    runs, of_run = run.unique(return_inverse=True)
    units, of_unit = unit.unique(return_inverse=True)
    columns = torch.cat([weight.unsqueeze(1), weight.unsqueeze(1) * values], 1)
    sums = columns.new_zeros(len(units) * len(runs), columns.shape[1])
    sums = sums.index_add_(0, of_unit * len(runs) + of_run, columns)
    generator = torch.Generator().manual_seed(seed)
    times_runs, times_units = (_times(len(names), num_resamples, generator) for names in (runs, units))
    by_run = times_units @ sums.view(len(units), len(runs) * columns.shape[1])
    by_run = by_run.view(num_resamples, len(runs), columns.shape[1])
    drawn = (by_run * times_runs.unsqueeze(-1)).sum(1)
    total = columns.sum(0)
    ends = percentile_interval(drawn[:, 1:] / drawn[:, :1])
    return [Estimate(*row) for row in torch.stack([total[1:] / total[0], *ends], 1).tolist()]


def _times(number: int, num_resamples: int, generator: torch.Generator) -> Tensor:
    """How often each of so many was drawn, (``num_resamples``, ``number``) float64."""
    if not number:
        return torch.zeros(num_resamples, 0, dtype=torch.float64)
    drawn = torch.randint(number, (num_resamples, number), generator=generator)
    times = torch.zeros(num_resamples, number, dtype=torch.float64)
    return times.scatter_add_(1, drawn, torch.ones((), dtype=torch.float64).expand(drawn.shape))
