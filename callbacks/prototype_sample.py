"""What PrototypeMap asks of a module, and what it keeps of many batches."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self, cast

import lightning as L
import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from pluralign.datamodules.batch import PreferenceBatch
from pluralign.metrics import Extremes, Sample, within_prompts

__all__ = ["Collection", "Points", "prototypes_of"]

NEEDED = ("built_network", "effective_prototypes", "num_prototypes", "users", "weights_of")


class Points(Protocol):
    """Where a batch lies, as the network of PAL says."""

    @property
    def items(self) -> Tensor:
        """Places of the responses, (R, D)."""
        ...

    @property
    def prototypes(self) -> Tensor:
        """Places of the prototypes; of every prompt's, if ``prompt`` is there."""
        ...

    @property
    def prompt(self) -> Tensor | None:
        """Prompt of each response, (R,); None where prototypes do not depend on it."""
        ...

    def _replace(self, **fields: Tensor) -> Self: ...


class Network(Protocol):
    """What is needed of the network of PAL."""

    score: str
    prompt_projectors: torch.nn.Module | None

    def ideal(self, points: Points, weights: Tensor, responses: Tensor) -> Tensor: ...
    def register_forward_hook(self, hook: Callable[[Any, Any, Any], None]) -> RemovableHandle: ...


class PrototypeModule(Protocol):
    """What is needed of PAL."""

    num_prototypes: int

    @property
    def users(self) -> list[str]: ...
    def built_network(self) -> Network: ...
    def weights_of(self, users: Sequence[str]) -> Tensor: ...
    def effective_prototypes(self) -> Tensor: ...


def prototypes_of(module: L.LightningModule) -> PrototypeModule:
    """The module, known to have prototypes.

    Raises:
        ValueError: If it has none.
    """
    # Not hasattr: weights_of and others need the network, which may not be there yet.
    if missing := [
        name for name in NEEDED if getattr(type(module), name, None) is None and name not in vars(module)
    ]:
        raise ValueError(
            f"PrototypeMap needs a module of users and prototypes, such as PAL; {type(module).__name__} has no "
            f"{', no '.join(missing)}"
        )
    return cast(PrototypeModule, module)


class Collection:
    """What is kept of the batches of one validation or test.

    Attributes:
        sample: Places of the items that are drawn.
        top: Responses of largest reward.
        bottom: Responses of smallest reward.
        place: What the network said of the prototypes, without items; None before the first batch.
        prompt: Record whose prototypes those are; None if they do not depend on it.
        within: Whether rewards are less their prompts' means.
        num_responses: Responses so far.
    """

    def __init__(
        self,
        num_examples: int,
        *,
        within: bool | None,
        prompt_id: str | None,
        max_items: int,
        seed: int,
    ) -> None:
        """Begin; arguments as :class:`PrototypeMap` has them."""
        self.sample = Sample(max_items, seed)
        self.top, self.bottom = Extremes(num_examples, largest=True), Extremes(num_examples, largest=False)
        self.place: Points | None = None
        self.prompt: str | None = None
        self.within = bool(within)
        self.num_responses = 0
        self._settings = within, prompt_id, max_items, seed
        self._records: list[tuple[list[str], Tensor, Tensor]] = []

    def add(self, points: Points, rewards: Tensor, batch: PreferenceBatch) -> None:
        """Look at a batch: its places, and its rewards by prototype, (R, K)."""
        prompt, start = batch["response_prompt"], self.num_responses
        self.num_responses += len(rewards)
        self._records.append((list(batch["id"]), prompt, batch["response_index"]))
        if self._settings[0] is None:
            self.within = points.prompt is not None
        if self.within:
            rewards = within_prompts(rewards, prompt, len(batch["id"]))
        numbers = torch.arange(start, self.num_responses, device=rewards.device)
        self.top.add(rewards, numbers)
        self.bottom.add(rewards, numbers)
        if points.prompt is not None:
            self._take_prompt(points, batch, start)
            return
        if self.place is None:
            self.place = points._replace(items=points.items[:0])
        self.sample.add(points.items, range(start, self.num_responses))

    def _take_prompt(self, points: Points, batch: PreferenceBatch, start: int) -> None:
        """Keep the batch's places if the wanted prompt is in it, or no prompt is kept yet."""
        _, wanted, max_items, seed = self._settings
        names = batch["id"]
        if wanted in names and self.prompt != wanted:
            self.prompt = wanted
        elif self.prompt is None:
            self.prompt = names[0]
        else:
            return
        number = names.index(self.prompt)
        self.place = points._replace(
            items=points.items[:0],
            prototypes=points.prototypes[number : number + 1],
            prompt=torch.zeros(1, dtype=torch.int64, device=points.items.device),
        )
        responses = (batch["response_prompt"] == number).nonzero().squeeze(1)
        self.sample = Sample(max_items, seed)
        self.sample.add(points.items[responses], [start + i for i in responses.tolist()])

    def names(self) -> list[tuple[str, int]]:
        """Record and place in it of every response, in the order they came."""
        return [
            (ids[prompt], index)
            for ids, prompts, indices in self._records
            for prompt, index in zip(prompts.tolist(), indices.tolist(), strict=True)
        ]
