"""What weights experts have where they are mixed token by token: on the whole, by dimension asked for, and in a few texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["ExpertWeights", "TracedResponse", "WeightShare", "expert_weights_table", "response_weights"]


class TracedResponse(NamedTuple):
    """A response, token by token.

    Attributes:
        prompt: As text.
        preference: Dimensions that the item asks for.
        pieces: Text of each of its T tokens.
        weights: Weight of each of n experts on each token, T times n, in [0, 1].
        finished: Whether it came to its end.
    """

    prompt: str
    preference: tuple[str, ...]
    pieces: tuple[str, ...]
    weights: tuple[tuple[float, ...], ...]
    finished: bool

    @property
    def leading(self) -> list[int]:
        """Expert of the largest weight on each token; of equal ones the first."""
        return [row.index(max(row)) for row in self.weights]


class WeightShare(NamedTuple):
    """Weights over some tokens.

    Attributes:
        tokens: How many.
        mean: Mean weight of each expert, n in [0, 1]; NaN without tokens.
        leads: Share of tokens on which it has the largest weight, likewise.
    """

    tokens: int
    mean: tuple[float, ...]
    leads: tuple[float, ...]


@dataclass(frozen=True)
class ExpertWeights:
    """Weights of experts over many responses.

    Attributes:
        experts: Names of the n experts.
        responses: How many responses.
        overall: Over all of their tokens.
        by_dimension: Over tokens of items that ask for a dimension, by its name; only those that some item asks for.
        effective: How many experts take part in a token, as the exponential of the mean entropy, in [1, n]; NaN without tokens.
        traced: A few responses.
    """

    experts: tuple[str, ...]
    responses: int
    overall: WeightShare
    by_dimension: Mapping[str, WeightShare]
    effective: float
    traced: tuple[TracedResponse, ...]


def response_weights(weights: Tensor, lengths: Tensor) -> Tensor:
    """What a table needs of each response, on its device.

    Args:
        weights: (S, T, n) in [0, 1]; anything behind a response's end.
        lengths: Tokens of each response, (S,) int64.

    Returns:
        (S, 2 + 2n) float64: tokens, sum of the entropies (nats), and for each expert the sum of its weights and the number
        of tokens on which it has the largest, of equal ones the first.
    """
    mask = torch.arange(weights.shape[1], device=weights.device) < lengths.unsqueeze(1)
    weights = weights.double().masked_fill(~mask.unsqueeze(2), 0.0)
    leads = torch.nn.functional.one_hot(weights.argmax(2), weights.shape[2]).double()
    leads = leads * mask.unsqueeze(2)
    entropy = torch.special.entr(weights).sum((1, 2))
    return torch.cat([torch.stack([lengths.double(), entropy], 1), weights.sum(1), leads.sum(1)], 1)


def expert_weights_table(
    rows: Tensor,
    wanted: Tensor,
    experts: Sequence[str],
    dimensions: Sequence[str],
    traced: Sequence[TracedResponse] = (),
) -> ExpertWeights:
    """Weights on the whole and by dimension.

    Args:
        rows: Of each response, (S, 2 + 2n), as :func:`response_weights` gives them.
        wanted: Which dimensions its item asks for, (S, D) bool.
        experts: n names.
        dimensions: D names.
        traced: Responses to show.

    Raises:
        ValueError: If shapes do not fit.
    """
    number = len(experts)
    if rows.shape != (len(wanted), 2 + 2 * number) or wanted.shape[1] != len(dimensions):
        raise ValueError(
            f"rows must be (S, {2 + 2 * number}) and wanted (S, {len(dimensions)}); got {tuple(rows.shape)} and "
            f"{tuple(wanted.shape)}"
        )
    total = rows.sum(0)
    shares = {
        name: _share(rows[wanted[:, place]].sum(0), number)
        for place, name in enumerate(dimensions)
        if bool(wanted[:, place].any())
    }
    return ExpertWeights(
        experts=tuple(experts),
        responses=len(rows),
        overall=_share(total, number),
        by_dimension=shares,
        effective=float((total[1] / total[0]).exp()),
        traced=tuple(traced),
    )


def _share(total: Tensor, number: int) -> WeightShare:
    tokens, _, *values = total.tolist()
    shares = [value / tokens if tokens else float("nan") for value in values]
    return WeightShare(int(tokens), tuple(shares[:number]), tuple(shares[number:]))
