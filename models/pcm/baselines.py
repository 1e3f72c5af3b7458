"""What a mixture does in place of learned weights that depend on the text: baselines, each by one switch."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

__all__ = ["Baseline", "Merging", "merging_of"]

Baseline = Literal[
    "none",
    "prompting",
    "uniform",
    "static",
    "fixed",
    "product_soup",
    "factor_soup",
    "geometric",
    "forward_kl",
    "guided",
]
NEEDS_WEIGHTS = ("fixed", "guided")


class Merging(NamedTuple):
    """How a response's next-token distribution is made."""

    weights: Literal["control", "static", "uniform", "fixed", "base"]
    """What weighs the experts; ``base``: the base alone speaks."""
    mixing: Literal["linear", "geometric", "forward_kl"]
    soup: Literal["product", "factor"] | None = None
    """One adapter in place of those that take part: the mean of their updates, or of their factors."""
    given: Mapping[str, float] = {}
    """Weights by expert."""
    base_too: bool = False
    """Whether the base is one of those that are mixed, with weight 1."""


def merging_of(
    baseline: Baseline,
    mixing: Literal["linear", "geometric", "forward_kl"],
    expert_weights: Mapping[str, float] | None,
) -> Merging:
    """What a baseline does.

    Args:
        baseline: Which one; ``none`` is no baseline.
        mixing: How distributions are mixed where the baseline leaves it open.
        expert_weights: Weights by expert.

    Raises:
        ValueError: If weights are missing, without effect, negative, or all zero.
    """
    given = dict(expert_weights or {})
    if bool(given) != (baseline in NEEDS_WEIGHTS):
        problem = (
            f"baseline={baseline!r} needs expert_weights"
            if not given
            else f"baseline={baseline!r} takes no expert_weights"
        )
        raise ValueError(
            f"{problem}: they are weights of {' and '.join(NEEDS_WEIGHTS)}, by expert; got {given or None}"
        )
    if given and (min(given.values()) < 0 or not max(given.values()) > 0):
        raise ValueError(f"expert_weights must be >= 0 and one of them above 0, got {given}")
    return {
        "none": Merging("control", mixing),
        "prompting": Merging("base", "linear"),
        "uniform": Merging("uniform", mixing),
        "static": Merging("static", mixing),
        "fixed": Merging("fixed", mixing, given=given),
        "product_soup": Merging("uniform", "linear", soup="product"),
        "factor_soup": Merging("uniform", "linear", soup="factor"),
        "geometric": Merging("uniform", "geometric"),
        "forward_kl": Merging("uniform", "forward_kl"),
        "guided": Merging("fixed", "geometric", given=given, base_too=True),
    }[baseline]
