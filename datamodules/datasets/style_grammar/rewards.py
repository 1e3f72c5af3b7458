"""Rewards of the small language, by its rules."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from ...prompt_batch import Prompt
from .grammar import DIMENSIONS, judge

__all__ = ["GrammarReward"]


class GrammarReward:
    """How much of a style responses show, by the rules of :class:`StyleGrammarDataModule`: a reward function."""

    def __init__(self, dimension: str) -> None:
        """Name the style.

        Args:
            dimension: Such as ``tone.friendly``.

        Raises:
            ValueError: If there is no such dimension.
        """
        if dimension not in DIMENSIONS:
            raise ValueError(f"dimension must be one of {', '.join(DIMENSIONS)}; got {dimension!r}")
        self.dimension = dimension

    def __call__(
        self, prompts: Sequence[Prompt], responses: Sequence[str], columns: Mapping[str, Sequence[object]]
    ) -> Tensor:
        """Rate responses.

        Args:
            prompts: S prompts.
            responses: S responses.
            columns: What else is known of them; not looked at.

        Returns:
            (S,) float32 in [0, 1]; 0 for what is not well-formed.
        """
        texts = [prompt if isinstance(prompt, str) else prompt[-1]["content"] for prompt in prompts]
        return judge(texts, responses, [self.dimension])[:, 0]
