"""Models against each other on the same comparisons, and who is the best or not told apart from the best."""

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations

from torch import Tensor

from pluralign.metrics import holm_correction, paired_accuracy

from .cells import Resampling, rightness
from .data import EvaluationData
from .scoring import NOT_FINITE, NOT_FINITE_COMPARED, Scores
from .types import Measured, PairedDifference, Standing

__all__ = ["LEVEL", "common_comparisons", "corrected", "paired_differences", "standings", "without_rank"]

LEVEL = 0.05
"""P-value below which two models are told apart."""


def without_rank(data: EvaluationData, scores: Mapping[str, Scores]) -> dict[str, str]:
    """Models that are not ranked, and why: of a broken one it is not known what it would have said.

    Such a model is in no pair and no test, and narrows nothing for the others.

    Args:
        data: What was judged.
        scores: What each model says, by name.
    """
    found = {}
    decided = data.share != 0.5
    for name, one in scores.items():
        broken, torn = one.counts[NOT_FINITE], one.counts[NOT_FINITE_COMPARED]
        if broken or torn:
            of = f"{broken:,} responses" if broken else f"{torn:,} comparisons"
            found[name] = f"its rewards of {of} are not finite"
        elif bool(decided.any()) and bool(one.odds[decided].isnan().all()):
            found[name] = "it could read no decided comparison"
    return found


def common_comparisons(data: EvaluationData, scores: Mapping[str, Scores]) -> Tensor:
    """Decided comparisons that every ranked model could read, (P,) bool."""
    common = data.share != 0.5
    left_out = without_rank(data, scores)
    for name, one in scores.items():
        if name not in left_out:
            common &= ~one.odds.isnan()
    return common


def paired_differences(
    data: EvaluationData, scores: Mapping[str, Scores], how: Resampling
) -> list[PairedDifference]:
    """Every two models, on the comparisons that all ranked ones could read; not corrected yet.

    Args:
        data: What was judged.
        scores: What each model says, by name.
        how: Seed.
    """
    common, left_out = common_comparisons(data, scores), without_rank(data, scores)
    right = {name: rightness(data, one)[common] for name, one in scores.items() if name not in left_out}
    found = []
    for first, second in combinations(scores, 2):
        if reasons := [f"{name}: {left_out[name]}" for name in (first, second) if name in left_out]:
            nothing = Measured.none("; ".join(reasons))
            found.append(PairedDifference(data.name, first, second, nothing, None, None, 0, 0, 0, 0))
            continue
        pair = paired_accuracy(right[first], right[second], data.prompt[common], seed=how.seed)
        reason = None
        if not pair.comparisons:
            reason = "no decided comparison could be read by all models"
        found.append(
            PairedDifference(
                data=data.name,
                first=first,
                second=second,
                difference=Measured.of(*pair.difference, reason=reason, number=pair.prompts),
                p_value=None if math.isnan(pair.p_value) else pair.p_value,
                p_corrected=None,
                comparisons=pair.comparisons,
                prompts=pair.prompts,
                only_first=pair.only_first,
                only_second=pair.only_second,
            )
        )
    return found


def corrected(pairs: list[PairedDifference]) -> list[PairedDifference]:
    """The same with p-values that hold for all of them at once."""
    values = holm_correction([math.nan if one.p_value is None else one.p_value for one in pairs])
    return [
        replace(one, p_corrected=None if math.isnan(value) else value)
        for one, value in zip(pairs, values, strict=True)
    ]


def standings(
    data: EvaluationData, scores: Mapping[str, Scores], pairs: list[PairedDifference]
) -> dict[str, Standing]:
    """Of each model, by accuracy on the comparisons that all ranked ones could read.

    Models of equal, highest accuracy are all the best; who is behind is told apart from each of them.

    Args:
        data: What was judged.
        scores: What each model says, by name.
        pairs: Corrected ones, of these data among others.
    """
    common, left_out = common_comparisons(data, scores), without_rank(data, scores)
    accuracy = {
        name: float(rightness(data, one)[common].mean())
        for name, one in scores.items()
        if name not in left_out
    }
    found: dict[str, Standing] = dict.fromkeys(scores, "unknown")
    if not accuracy or any(math.isnan(value) for value in accuracy.values()):
        return found
    if len(accuracy) == 1:
        alone: dict[str, Standing] = dict.fromkeys(accuracy, "alone")
        return found | alone
    highest = max(accuracy.values())
    best = {name for name, value in accuracy.items() if value == highest}
    apart = {
        frozenset((one.first, one.second))
        for one in pairs
        if one.data == data.name and one.p_corrected is not None and one.p_corrected < LEVEL
    }
    for name in accuracy:
        behind = all(frozenset((name, other)) in apart for other in best)
        found[name] = "best" if name in best else "behind" if behind else "not told apart"
    return found
