"""Models against each other on the same comparisons, and who is the best or not told apart from the best."""

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations

from torch import Tensor

from pluralign.metrics import holm_correction, paired_accuracy

from .cells import Resampling, rightness
from .data import EvaluationData
from .scoring import Scores
from .types import Measured, PairedDifference, Standing

__all__ = ["LEVEL", "common_comparisons", "corrected", "paired_differences", "standings"]

LEVEL = 0.05
"""P-value below which two models are told apart."""


def common_comparisons(data: EvaluationData, scores: Mapping[str, Scores]) -> Tensor:
    """Decided comparisons that every model could read, (P,) bool."""
    common = data.share != 0.5
    for one in scores.values():
        common &= ~one.odds.isnan()
    return common


def paired_differences(
    data: EvaluationData, scores: Mapping[str, Scores], how: Resampling
) -> list[PairedDifference]:
    """Every two models, on the comparisons that all could read; not corrected yet.

    Args:
        data: What was judged.
        scores: What each model says, by name.
        how: Resamples and seed.
    """
    common = common_comparisons(data, scores)
    right = {name: rightness(data, one)[common] for name, one in scores.items()}
    found = []
    for first, second in combinations(scores, 2):
        pair = paired_accuracy(
            right[first], right[second], data.prompt[common], num_resamples=how.num_resamples, seed=how.seed
        )
        reason = None
        if not pair.comparisons:
            reason = "no decided comparison could be read by all models"
        found.append(
            PairedDifference(
                data=data.name,
                first=first,
                second=second,
                difference=Measured.of(*pair.difference, reason=reason),
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
    """Of each model, by accuracy on the comparisons that all could read.

    Args:
        data: What was judged.
        scores: What each model says, by name.
        pairs: Corrected ones, of these data among others.
    """
    common = common_comparisons(data, scores)
    accuracy = {name: float(rightness(data, one)[common].mean()) for name, one in scores.items()}
    if any(math.isnan(value) for value in accuracy.values()):
        return dict.fromkeys(scores, "unknown")
    if len(scores) == 1:
        return dict.fromkeys(scores, "alone")
    highest = max(accuracy.values())
    best = next(name for name, value in accuracy.items() if value == highest)
    found: dict[str, Standing] = {}
    for name, value in accuracy.items():
        pair = next(
            (one for one in pairs if one.data == data.name and {one.first, one.second} == {name, best}), None
        )
        apart = pair is not None and pair.p_corrected is not None and pair.p_corrected < LEVEL
        found[name] = "best" if value == highest else "behind" if apart else "not told apart"
    return found
