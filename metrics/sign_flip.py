"""The sign-flip test: whether independent values are symmetric around zero, from all patterns of their signs."""

import math

import torch
from torch import Tensor

__all__ = ["sign_flip_test"]

UNIT = 4
"""Outcomes and their halves, means over two orders and their sums are multiples of a quarter: of such values all is counted."""
MOST_WORK = 10**9
"""Additions up to which all patterns are counted; about a second."""
MOST_PATTERNS = 14
"""Values of other sizes up to which every pattern is counted."""
NUM_FLIPS = 20_000
"""Patterns that are drawn where neither can be."""
CHUNK = 4_000_000
"""Signs at a time."""
NEGLIGIBLE = 1e-40
"""Probabilities below which a term of a binomial distribution is left out."""


def sign_flip_test(values: Tensor, *, seed: int = 0) -> float:
    r"""Two-sided p-value of values being symmetric around zero, by turning the sign of each at random.

    The share of the :math:`2^n` patterns of signs whose sum is at least as far from zero as the observed one. Where values are
    multiples of a quarter, as wins, losses and ties of prompts are, it is exact however many there are: the :math:`m_a` values of
    size :math:`a` come to :math:`a (2 B_a - m_a)` with :math:`B_a` binomial, and the distribution of the sum over sizes is their
    convolution. With values of one size it is the sign test, which on discordant comparisons is the exact test of McNemar. Of
    other values up to fourteen are counted; of more, 20,000 patterns are drawn, and the observed one counts among them.

    Args:
        values: Independent values, (n,), such as a prompt's outcomes, each less a half, added up; finite.
        seed: Seed of the drawn patterns.

    Returns:
        In (0, 1]; 1 where all are zero, NaN without values.

    Raises:
        ValueError: If a value is not finite.

    Source:
        R. A. Fisher, *The design of experiments*, 1935, section 21. Departures: none.
    """
    if not len(values):
        return float("nan")
    values = values.double()
    if not bool(values.isfinite().all()):
        raise ValueError("values must be finite; leave out what has none")
    values = values[values != 0]
    if not len(values):
        return 1.0
    units = values * UNIT
    if bool((units == units.round()).all()) and float(units.abs().sum()) < MOST_WORK:
        counted = _counted(units.long())
        if counted is not None:
            return counted
    return _patterns(values, seed)


def _counted(units: Tensor) -> float | None:
    """Of whole numbers, from the distribution of their sum; None where that would take too long."""
    from scipy.stats import binom

    sizes, numbers = units.abs().unique(return_counts=True)
    common = math.gcd(*sizes.tolist())
    order = numbers.argsort(descending=True)
    parts = [(size // common, number) for size, number in zip(sizes.tolist(), numbers.tolist(), strict=True)]
    parts = [parts[place] for place in order.tolist()]
    total = sum(size * number for size, number in parts)
    terms = []
    for size, number in parts:
        chances = torch.from_numpy(binom.pmf(range(number + 1), number, 0.5))
        kept = (chances > NEGLIGIBLE).nonzero()[:, 0]
        terms.append((size, int(kept[0]), chances[kept]))
    if total * sum(len(chances) for _, _, chances in terms[1:]) > MOST_WORK:
        return None
    distribution = torch.zeros(total + 1, dtype=torch.float64)  # of the sum over values whose sign is plus
    size, first, chances = terms[0]
    distribution[size * first : size * (first + len(chances)) : size] = chances
    for size, first, chances in terms[1:]:
        added = torch.zeros_like(distribution)
        for place, chance in enumerate(chances.tolist(), first):
            shift = size * place
            added[shift:] += chance * distribution[: total + 1 - shift]
        distribution = added
    observed = abs(int(units.sum())) // common
    return min(1.0, 2 * float(distribution[(total + observed) // 2 :].sum())) if observed else 1.0


def _patterns(values: Tensor, seed: int) -> float:
    """Of any values, from patterns of signs: all of few, drawn ones of many."""
    number = len(values)
    # Sums of the same values in another order differ in the last digits.
    least = float(values.sum().abs()) * (1 - 1e-9)
    if number <= MOST_PATTERNS:
        patterns = torch.arange(2**number).unsqueeze(1) >> torch.arange(number) & 1
        return float(((patterns.double() * 2 - 1) @ values).abs().ge(least).double().mean())
    generator = torch.Generator().manual_seed(seed)
    as_far, step = 1, max(1, CHUNK // number)
    for start in range(0, NUM_FLIPS, step):
        size = min(step, NUM_FLIPS - start)
        signs = torch.randint(2, (size, number), generator=generator).double() * 2 - 1
        as_far += int((signs @ values).abs().ge(least).sum())
    return as_far / (NUM_FLIPS + 1)
