"""Rollouts: what a policy wrote for a batch of items, and what is known of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self, cast

import torch
from torch import Tensor

from pluralign.datamodules.prompt_batch import PromptBatch

__all__ = ["Rollouts", "items_of"]


@dataclass
class Rollouts:
    """S sampled responses of T tokens at most to the N items of a batch, and what is known of each.

    Tensors stand on one device. Behind a response's end tokens are padding, and values 0.
    """

    prompts: PromptBatch
    """The N items."""
    item: Tensor
    """(S,) int64, ascending: which item a response answers, an index into ``prompts``."""
    tokens: Tensor
    """(S, T) int64, padded on the right; the end token is among them where the response has one."""
    lengths: Tensor
    """(S,) int64, in [1, T]: tokens of each response."""
    finished: Tensor
    """(S,) bool: whether it ended with an end token."""
    log_prob: Tensor
    """(S, T) float32: of each token under the policy that wrote it, in nats."""
    texts: list[str]
    """S responses as text."""
    reference_log_prob: Tensor | None = None
    """(S, T) float32: of each token under the policy that training started from; None where nobody asks for it."""
    token_values: dict[str, Tensor] = field(default_factory=dict)
    """(S, T, ...) each: what else is known of each token."""
    rewards: dict[str, Tensor] = field(default_factory=dict)
    """(S,) float32 each, by the name of the reward; NaN where it does not count."""
    reference_rewards: dict[str, Tensor] = field(default_factory=dict)
    """(N,) float32 each: of the reference's answer."""
    reward: Tensor | None = None
    """(S,) float32: what the rewards come to; None until somebody rated them."""

    def __post_init__(self) -> None:
        """Make sure that all are of one number of responses, tokens and items.

        Raises:
            ValueError: If a shape does not fit.
        """
        samples, length = self.tokens.shape
        wanted: list[tuple[str, Tensor | None, tuple[int, ...]]] = [
            *((name, getattr(self, name), (samples,)) for name in ("item", "lengths", "finished", "reward")),
            *((name, getattr(self, name), (samples, length)) for name in ("log_prob", "reference_log_prob")),
            *(
                (f"token_values[{name!r}]", value, (samples, length))
                for name, value in self.token_values.items()
            ),
            *((f"rewards[{name!r}]", value, (samples,)) for name, value in self.rewards.items()),
            *(
                (f"reference_rewards[{name!r}]", value, (self.num_items,))
                for name, value in self.reference_rewards.items()
            ),
        ]
        for name, value, shape in wanted:
            got = () if value is None else tuple(value.shape)
            free = name.startswith("token_values")
            if value is not None and (got[: len(shape)] if free else got) != shape:
                raise ValueError(
                    f"rollouts of {samples} responses of {length} tokens to {self.num_items} items: {name} must be "
                    f"{shape}, got {got}"
                )
        if len(self.texts) != samples:
            raise ValueError(f"rollouts of {samples} responses have {len(self.texts)} texts")

    def __len__(self) -> int:
        """Number of responses."""
        return len(self.texts)

    @property
    def num_items(self) -> int:
        """Number of items."""
        return len(self.prompts["id"])

    @property
    def mask(self) -> Tensor:
        """Which tokens are a response's own, (S, T) bool."""
        return torch.arange(self.tokens.shape[1], device=self.tokens.device) < self.lengths[:, None]

    def to(self, device: torch.device | str) -> Self:
        """The same on a device."""
        moved: dict[str, object] = {}
        for name in (entry.name for entry in fields(self)):
            value = getattr(self, name)
            if isinstance(value, Tensor):
                moved[name] = value.to(device, non_blocking=True)
            elif isinstance(value, dict):
                moved[name] = {
                    key: each.to(device, non_blocking=True) if isinstance(each, Tensor) else each
                    for key, each in value.items()
                }
        return replace(self, **cast(dict[str, Any], moved))

    def part(self, items: Sequence[int]) -> Self:
        """All responses to some items, for one step: of those items alone, and no longer than the longest of them.

        Args:
            items: Indices of items, ascending.

        Returns:
            Rollouts of ``len(items)`` items. Call it where the tensors are on the CPU: how many responses there are
            depends on their values, and a device would have to be waited for.
        """
        chosen = torch.as_tensor(items, dtype=torch.int64, device=self.item.device)
        place = torch.full((self.num_items,), -1, dtype=torch.int64, device=self.item.device)
        place[chosen] = torch.arange(len(chosen), device=self.item.device)
        samples = (place[self.item] >= 0).nonzero().squeeze(1)
        taken = self.samples(samples)
        return replace(
            taken,
            prompts=items_of(self.prompts, items),
            item=place[taken.item],
            reference_rewards={name: value[chosen] for name, value in self.reference_rewards.items()},
        )

    def samples(self, index: Tensor) -> Self:
        """Some of the responses, to the same items, no longer than the longest of them.

        Args:
            index: Indices of responses, (S',) int64, ascending by item.
        """
        longest = int(self.lengths[index].max()) if len(index) else 0
        reference = self.reference_log_prob
        return replace(
            self,
            item=self.item[index],
            tokens=self.tokens[index, :longest],
            lengths=self.lengths[index],
            finished=self.finished[index],
            log_prob=self.log_prob[index, :longest],
            texts=[self.texts[i] for i in index.tolist()],
            reference_log_prob=None if reference is None else reference[index, :longest],
            token_values={name: value[index, :longest] for name, value in self.token_values.items()},
            rewards={name: value[index] for name, value in self.rewards.items()},
            reward=None if self.reward is None else self.reward[index],
        )


def items_of(prompts: PromptBatch, index: Sequence[int]) -> PromptBatch:
    """Some items of a batch, in the order in which they are asked for."""
    taken: dict[str, object] = {}
    for name, value in prompts.items():
        if isinstance(value, Tensor):
            taken[name] = value[torch.tensor(index, device=value.device)]
        elif isinstance(value, dict):
            taken[name] = {column: [cells[i] for i in index] for column, cells in value.items()}
        else:
            taken[name] = [cast(list[object], value)[i] for i in index]
    return cast(PromptBatch, taken)
