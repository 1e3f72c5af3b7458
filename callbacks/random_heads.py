"""Random linear heads over the states that a module's head reads: what its network knows before anyone taught the head."""

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

__all__ = ["RandomHeads"]


class RandomHeads:
    """Rewards that nobody trained, from the same pass as the module's own.

    The heads are drawn once, equal on every rank and in every validation, so that they differ by the states alone.
    """

    def __init__(self, number: int, seed: int) -> None:
        """Draw nothing yet: the size of a state is not known.

        Args:
            number: Of heads, S >= 0.
            seed: Seed of their weights, >= 0.
        """
        self.number, self.seed = number, seed
        self._hook: RemovableHandle | None = None
        self._states: Tensor | None = None
        self._weights: Tensor | None = None

    def watch(self, head: object) -> None:
        """Keep the states that a head reads; of what is no module there are none."""
        if isinstance(head, nn.Module) and self.number:
            self._hook = head.register_forward_pre_hook(self._see)

    def _see(self, head: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        self._states = arguments[0].detach()

    def end(self) -> None:
        """Look no longer."""
        if self._hook is not None:
            self._hook.remove()
        self._hook = self._states = None

    def right(self, pairs: Tensor, num_responses: int) -> Tensor:
        """Whether each head prefers the first of a pair, by the states of the last pass.

        Args:
            pairs: Responses, (P, 2) int64, below R.
            num_responses: R.

        Returns:
            (P, S) int8: 1 or 0, also 0 where both are equal; -1 where there are no states (R, H).
        """
        states, self._states = self._states, None
        if states is None or states.ndim != 2 or len(states) != num_responses:
            return torch.full((len(pairs), self.number), -1, dtype=torch.int8, device=pairs.device)
        if self._weights is None or len(self._weights) != states.shape[1]:
            generator = torch.Generator().manual_seed(self.seed)
            self._weights = torch.randn(states.shape[1], self.number, generator=generator)
        self._weights = self._weights.to(states.device)
        with torch.autocast(states.device.type, enabled=False):
            rewards = states.float() @ self._weights
        return (rewards[pairs[:, 0]] > rewards[pairs[:, 1]]).to(torch.int8)
