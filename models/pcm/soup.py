"""Soups: several experts' low-rank adapters made into one adapter, which then decodes at the cost of one.

Factors are given by layer, A (r, in) and B (out, r) with the scaling folded into B, so that a layer's update is B A.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

__all__ = ["factor_soup", "product_soup"]

Factors = Mapping[str, tuple[Tensor, Tensor]]
"""An expert's A and B by the name of the layer."""


def product_soup(
    experts: Sequence[Factors], weights: Sequence[float] | None = None
) -> dict[str, tuple[Tensor, Tensor]]:
    r"""The mean of experts' updates, exactly: their factors side by side, at the sum of their ranks.

    .. math:: \sum_i w_i B_i A_i = [w_1 B_1 \, \dots \, w_n B_n] \, [A_1; \dots; A_n]

    Args:
        experts: Factors of each of n >= 1 experts; a layer that one of them leaves alone gets nothing from it.
        weights: One for each, finite; None for 1/n each.

    Returns:
        Factors of every layer that some expert adapts, of its experts' ranks together.

    Raises:
        ValueError: If there is no expert, weights do not fit, or factors of a layer do not.

    Source:
        The exact form of the parameter soup of Jang et al., *Personalized Soups*, 2023, https://arxiv.org/abs/2310.11564.
        Departures: products are averaged where the original code averages factors (:func:`factor_soup`). PEFT's combination
        ``cat`` is the same for ``lora_alpha / r``; under rank-stabilised scaling it is larger by the root of the new rank.
    """
    shares = _shares(experts, weights)
    layers = {name for factors in experts for name in factors}
    soup = {}
    for name in sorted(layers):
        parts = [
            (factors[name], share) for factors, share in zip(experts, shares, strict=True) if name in factors
        ]
        _check_fit(name, [pair for pair, _ in parts])
        soup[name] = (
            torch.cat([a for (a, _), _ in parts]),
            torch.cat([b * share for (_, b), share in parts], 1),
        )
    return soup


def factor_soup(
    experts: Sequence[Factors], weights: Sequence[float] | None = None
) -> dict[str, tuple[Tensor, Tensor]]:
    r"""The product of experts' mean factors, as the original code has it: not the mean of their updates.

    .. math:: \Big(\sum_i w_i B_i\Big) \Big(\sum_i w_i A_i\Big) \ne \sum_i w_i B_i A_i

    Args:
        experts: Factors of each of n >= 1 experts, of the same layers and ranks.
        weights: One for each, finite; None for 1/n each.

    Returns:
        Factors of every layer, of the experts' rank.

    Raises:
        ValueError: If there is no expert, weights do not fit, or layers or ranks differ.

    Source:
        Jang et al., *Personalized Soups*, 2023, https://arxiv.org/abs/2310.11564, as in the official code. Departures: no
        expert's tensors are changed on the way; layers are those of all experts, where the code takes the last one's names.
    """
    shares = _shares(experts, weights)
    first = experts[0]
    soup = {}
    for name in sorted({name for factors in experts for name in factors}):
        lacking = [number for number, factors in enumerate(experts) if name not in factors]
        if lacking:
            raise ValueError(
                f"factors can be averaged where all experts adapt the same layers, and expert {lacking[0]} of {len(experts)} leaves "
                f"{name} alone: use the product soup, or adapters with the same target_modules"
            )
        pairs = [factors[name] for factors in experts]
        _check_fit(name, pairs)
        if ranks := {len(a) for a, _ in pairs} - {len(first[name][0])}:
            raise ValueError(
                f"factors can be averaged where all experts have one rank, and those of {name} have {len(first[name][0])} and "
                f"{', '.join(map(str, sorted(ranks)))}: use the product soup"
            )
        weighted = zip(pairs, shares, strict=True)
        a, b = zip(*((a * share, b * share) for (a, b), share in weighted), strict=True)
        soup[name] = torch.stack(a).sum(0), torch.stack(b).sum(0)
    return soup


def _shares(experts: Sequence[Factors], weights: Sequence[float] | None) -> list[float]:
    if not experts:
        raise ValueError("experts must hold the factors of at least one, got none")
    if weights is None:
        return [1 / len(experts)] * len(experts)
    shares = [float(weight) for weight in weights]
    if len(shares) != len(experts) or not torch.tensor(shares).isfinite().all():
        raise ValueError(f"weights must be finite, one for each of {len(experts)} experts; got {shares}")
    return shares


def _check_fit(name: str, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Make sure that factors of a layer are of one layer."""
    for a, b in pairs:
        if a.ndim != 2 or b.ndim != 2 or len(a) != b.shape[1]:
            raise ValueError(
                f"factors of {name} must be A (r, in) and B (out, r); got {tuple(a.shape)} and {tuple(b.shape)}"
            )
    sizes = [(a.shape[1], len(b)) for a, b in pairs]
    if len(set(sizes)) > 1:
        raise ValueError(
            f"factors of {name} are of different layers: inputs and outputs are {', '.join(map(str, sizes))}"
        )
