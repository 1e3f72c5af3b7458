"""Comparisons in which a model is on the other side than people, and how sure it is: what to read first."""

import math
from collections.abc import Mapping

import torch

from pluralign.metrics import log_loss

from .data import EvaluationData, shown_prompt
from .scoring import Scores
from .types import Disagreement

__all__ = ["worst_disagreements"]


def worst_disagreements(
    model: str, data: EvaluationData, scores: Mapping[str, Scores], number: int
) -> list[Disagreement]:
    """The surest ones, at most one for each prompt's pair of responses, worst first.

    Worst is the largest log loss: of rewards without a scale this is the largest gap on the wrong side, the more of the crowd
    is on the other.

    Args:
        model: Name of the model.
        data: What was judged.
        scores: What each model says, by name.
        number: How many at most, >= 0.
    """
    odds, share = scores[model].odds, data.share
    against = (odds * (share - 0.5) < 0) & ~odds.isnan()
    loss = log_loss(odds, share).masked_fill(~against, -torch.inf)
    found: list[Disagreement] = []
    seen: set[frozenset[int]] = set()
    for place in loss.argsort(descending=True, stable=True)[: int(against.sum())].tolist():
        comparison = data.comparisons[place]
        pair = frozenset((comparison.first, comparison.second))
        if pair in seen:
            continue
        if len(found) == number:
            break
        seen.add(pair)
        found.append(_disagreement(model, data, scores, place))
    return found


def _disagreement(model: str, data: EvaluationData, scores: Mapping[str, Scores], place: int) -> Disagreement:
    comparison = data.comparisons[place]
    turned = comparison.share < 0.5
    sides = (comparison.first, comparison.second)
    preferred, other = sides[::-1] if turned else sides
    rewards = {}
    for name, one in scores.items():
        pair = float(one.first[place]), float(one.second[place])
        if not any(map(math.isnan, pair)):
            rewards[name] = pair[::-1] if turned else pair
    predicted = float(scores[model].odds[place].sigmoid())
    return Disagreement(
        model=model,
        data=data.name,
        record=data.records[comparison.record].id,
        prompt=shown_prompt(data.prompts[comparison.prompt]),
        preferred=data.responses[preferred].text,
        other=data.responses[other].text,
        share=1 - comparison.share if turned else comparison.share,
        votes=comparison.votes,
        predicted=1 - predicted if turned else predicted,
        rewards=rewards,
        user=comparison.user,
        domain=comparison.domain,
    )
