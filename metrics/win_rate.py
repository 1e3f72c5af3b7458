"""Who wins against whom: verdicts on criteria become outcomes of items, with intervals and a test over prompts."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .estimate import Estimate, bootstrap_sums, percentile_interval
from .sign_flip import sign_flip_test

__all__ = [
    "WinRate",
    "WinRates",
    "average_win_rates",
    "item_outcomes",
    "outcome_rate",
    "reward_verdicts",
    "win_rates",
]


class WinRate(NamedTuple):
    """How often one side wins.

    Attributes:
        rate: Mean outcome, ties a half, in [0, 1], with its 95 % interval over prompts; NaN if nothing was judged.
        wins: Outcomes above a half.
        ties: Outcomes of a half.
        losses: Outcomes below a half.
        prompts: Different prompts of these.
        p_value: Two-sided, of the rate being a half, in (0, 1]; NaN if nothing was judged.
    """

    rate: Estimate
    wins: int
    ties: int
    losses: int
    prompts: int
    p_value: float

    @property
    def number(self) -> int:
        """Outcomes."""
        return self.wins + self.ties + self.losses


class WinRates(NamedTuple):
    """Win rates of the first of two sides.

    Attributes:
        overall: Of items: all criteria of an item together.
        by_criterion: Of each criterion alone, by name.
        position_bias: How much more often the answer that is shown first wins than the other, in [-1, 1]: the mean
            verdict for it over both orders. 0 for a judge whom the order does not sway; NaN where one order was asked.
        agreement: Share of verdicts that are the same in both orders, in [0, 1]; NaN where one order was asked.
        not_judged: Items to which no criterion applies; they are in no rate.
    """

    overall: WinRate
    by_criterion: Mapping[str, WinRate]
    position_bias: Estimate
    agreement: float
    not_judged: int


def reward_verdicts(first: Tensor, second: Tensor, *, tie_width: float = 0.0) -> Tensor:
    """Which of two rewards is larger.

    Args:
        first: Rewards of the first side, any shape; NaN where there is none.
        second: Of the second, likewise.
        tie_width: Rewards that differ by at most this much tie, >= 0.

    Returns:
        +1 where the first is larger, -1 where the second is, 0 for a tie, NaN where either reward is NaN; float64.

    Raises:
        ValueError: If shapes differ or the width is negative or not finite.
    """
    if first.shape != second.shape:
        raise ValueError(
            f"first and second must have one shape; got {tuple(first.shape)} and {tuple(second.shape)}"
        )
    if not 0 <= tie_width < float("inf"):
        raise ValueError(f"tie_width must be finite and >= 0; got {tie_width!r}")
    # Of infinite rewards the difference is NaN, of which is larger is not.
    larger = (first > second).double() - (first < second).double()
    difference = first.double() - second.double()
    verdicts = torch.where(difference.abs() <= tie_width, 0.0, larger)
    return verdicts.masked_fill(first.isnan() | second.isnan(), float("nan"))


def item_outcomes(verdicts: Tensor) -> Tensor:
    r"""What an item's verdicts come to: 1 if the first side wins, 0 if it loses, a half for a tie.

    With the verdicts of order o on the criteria that apply to an item, :math:`v_{oc} \in [-1, 1]`:

    .. math:: \text{outcome} = \frac1O \sum_o \tfrac12 \bigl(1 + \operatorname{sign}(\textstyle\sum_c
        \operatorname{sign} v_{oc})\bigr)

    How clearly a criterion is won does not count: one of three that is won by far outweighs no two that are lost. Both
    orders of a judge who prefers what is shown first, whatever it is, come to a tie.

    Args:
        verdicts: For the first side in every order asked, (O, N, C), O of 1 or 2; NaN where a criterion does not apply.

    Returns:
        (N,) float64; NaN where no criterion applies.

    Raises:
        ValueError: If the shape is not such a one.

    Source:
        Our reading: the paper (Zhou et al., *Orchestrating LLMs with Different Personalizations*, 2024) aggregates a
        judge's verdicts on the dimensions asked for into one win or loss; how is not public.
    """
    _check_verdicts(verdicts)
    decided = verdicts.double().nan_to_num(0.0).sign().sum(2).sign()
    applies = ~verdicts.isnan().all(2)
    return ((1 + decided) / 2).masked_fill(~applies, float("nan")).mean(0)


def outcome_rate(outcomes: Tensor, prompt: Tensor, *, num_resamples: int = 2000, seed: int = 0) -> WinRate:
    """Mean outcome with an interval and a test over prompts: items of one prompt are not independent.

    Args:
        outcomes: (N,) in [0, 1]; NaN where nothing was judged, which is left out.
        prompt: Of each item, (N,) int64, any numbers.
        num_resamples: Resamples of the bootstrap, >= 1.
        seed: Seed of bootstrap and test; the global generator stays as it is.

    Returns:
        Rate, counts and p-value.

    Raises:
        ValueError: If shapes differ.
    """
    if outcomes.ndim != 1 or outcomes.shape != prompt.shape:
        raise ValueError(
            f"outcomes and prompt must be (N,); got {tuple(outcomes.shape)} and {tuple(prompt.shape)}"
        )
    judged = ~outcomes.isnan()
    values = outcomes[judged].double()
    if not len(values):
        nothing = float("nan")
        return WinRate(Estimate(nothing, nothing, nothing), 0, 0, 0, 0, nothing)
    sums = _sums_by_prompt(values.unsqueeze(1), prompt[judged])
    drawn = bootstrap_sums(sums, num_resamples=num_resamples, seed=seed)
    ends = percentile_interval(drawn[:, 1] / drawn[:, 0])
    return WinRate(
        rate=Estimate(float(values.mean()), *ends.tolist()),
        wins=int((values > 0.5).sum()),
        ties=int((values == 0.5).sum()),
        losses=int((values < 0.5).sum()),
        prompts=len(sums),
        p_value=sign_flip_test(sums[:, 1] - sums[:, 0] / 2, seed=seed),
    )


def win_rates(
    verdicts: Tensor, prompt: Tensor, criteria: Sequence[str], *, num_resamples: int = 2000, seed: int = 0
) -> WinRates:
    """Win rates of the first of two sides: of items, and of each criterion alone.

    Args:
        verdicts: For the first side, (O, N, C) in [-1, 1]: with it shown first, and, where O is 2, with it shown second.
            NaN where a criterion does not apply.
        prompt: Of each item, (N,) int64, any numbers.
        criteria: C names.
        num_resamples: Resamples of the bootstrap over prompts, >= 1.
        seed: Seed.

    Returns:
        Rates, position bias and agreement of the orders.

    Raises:
        ValueError: If shapes do not fit.
    """
    _check_verdicts(verdicts)
    if verdicts.shape[1:] != (len(prompt), len(criteria)):
        raise ValueError(
            f"verdicts must be (orders, {len(prompt)} items, {len(criteria)} criteria); got {tuple(verdicts.shape)}"
        )
    signs = torch.where(verdicts.isnan(), verdicts, verdicts.sign()).double()  # the sign of NaN is 0
    outcomes = item_outcomes(verdicts)
    of_criteria = ((1 + signs) / 2).mean(0)
    nothing = float("nan")
    bias, agreement = Estimate(nothing, nothing, nothing), nothing
    asked = ~signs.isnan().any(0)
    if len(verdicts) == 2 and bool(asked.any()):
        shown_first, shown_second = signs
        item = asked.nonzero()[:, 0]
        sums = _sums_by_prompt(((shown_first - shown_second) / 2)[asked].unsqueeze(1), prompt[item])
        drawn = bootstrap_sums(sums, num_resamples=num_resamples, seed=seed)
        total = sums.sum(0)
        bias = Estimate(float(total[1] / total[0]), *percentile_interval(drawn[:, 1] / drawn[:, 0]).tolist())
        agreement = float((shown_first == shown_second)[asked].double().mean())
    return WinRates(
        overall=outcome_rate(outcomes, prompt, num_resamples=num_resamples, seed=seed),
        by_criterion={
            name: outcome_rate(of_criteria[:, place], prompt, num_resamples=num_resamples, seed=seed)
            for place, name in enumerate(criteria)
        },
        position_bias=bias,
        agreement=agreement,
        not_judged=int(outcomes.isnan().sum()),
    )


def average_win_rates(
    outcomes: Tensor, prompt: Tensor, *, num_resamples: int = 2000, seed: int = 0
) -> list[Estimate]:
    """Mean win rate of each side against all others, opponents counting alike; intervals are over prompts, drawn once for all.

    Args:
        outcomes: Of side s against side t on each item, (S, S, N) in [0, 1]; NaN where they were not compared.
        prompt: Of each item, (N,) int64, any numbers.
        num_resamples: Resamples, >= 1.
        seed: Seed.

    Returns:
        An estimate for each side, over the opponents that it has any outcome against; NaN if it has none.

    Raises:
        ValueError: If shapes do not fit.
    """
    sides = len(outcomes)
    if outcomes.shape != (sides, sides, len(prompt)):
        raise ValueError(f"outcomes must be (S, S, {len(prompt)}); got {tuple(outcomes.shape)}")
    pairs = outcomes.double().flatten(0, 1).T.clone()
    pairs[:, :: sides + 1] = float("nan")  # nobody plays against himself
    compared = ~pairs.isnan()
    columns = torch.cat([compared.double(), pairs.nan_to_num(0.0)], 1)
    sums = _sums_by_prompt(columns, prompt)[:, 1:]

    def means(totals: Tensor) -> Tensor:
        numbers, wins = totals.view(len(totals), 2, sides, sides).unbind(1)
        return (wins / numbers).nanmean(2)

    values = means(sums.sum(0, keepdim=True))[0]
    ends = (
        percentile_interval(means(bootstrap_sums(sums, num_resamples=num_resamples, seed=seed)))
        if len(sums)
        else values.expand(2, sides)
    )
    return [Estimate(*row) for row in torch.stack([values, *ends], 1).tolist()]


def _sums_by_prompt(columns: Tensor, prompt: Tensor) -> Tensor:
    """How many items each prompt has, and the sums of their columns, (prompts, 1 + F) float64."""
    names, of_prompt = prompt.unique(return_inverse=True)
    columns = torch.cat([torch.ones(len(columns), 1, dtype=torch.float64), columns], 1)
    return columns.new_zeros(len(names), columns.shape[1]).index_add_(0, of_prompt, columns)


def _check_verdicts(verdicts: Tensor) -> None:
    if verdicts.ndim != 3 or len(verdicts) not in (1, 2):
        raise ValueError(f"verdicts must be (1 or 2 orders, N, C); got {tuple(verdicts.shape)}")
    if bool((verdicts.abs() > 1).any()):
        raise ValueError(f"verdicts must be in [-1, 1]; got {float(verdicts.abs().nan_to_num(0.0).max()):g}")
