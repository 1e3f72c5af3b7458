"""What a method's head is made of, before anything is known of the network beneath it."""

from typing import NamedTuple

from torch import Tensor

__all__ = ["HeadParts", "Plain", "Wish", "linear_parts"]

Plain = str | int | float | bool | list[int] | list[float]
"""What a setting of a head may be."""


class Wish(NamedTuple):
    """Whose reward is asked for, and in which form."""

    output: str
    user: str | None
    users: tuple[str, ...] | None
    domain: str | None
    member: str | None


class HeadParts(NamedTuple):
    """A head: how the modelling file makes and fills it, and what its logits are."""

    kind: str
    settings: dict[str, Plain]
    weights: dict[str, Tensor]
    outputs: tuple[str, ...]
    meaning: str


def linear_parts(
    weight: Tensor, outputs: tuple[str, ...], meaning: str, bias: Tensor | None = None
) -> HeadParts:
    """A linear layer.

    Args:
        weight: (outputs, H).
        outputs: Names of its numbers.
        meaning: What they are.
        bias: (outputs,); None for none.
    """
    weights = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    return HeadParts("linear", {"numbers": len(weight), "bias": bias is not None}, weights, outputs, meaning)
