"""The weights that training started from, kept beside those that are trained."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["StartWeights"]


class StartWeights(nn.Module):
    """A copy of what a network trains: of adapters theirs, of a network that is trained whole all of it, in its dtype.

    Buffers, so that they move with the module and checkpoints can hold them; no parameters, so that no optimiser has them.
    """

    def __init__(self, network: nn.Module) -> None:
        """Copy the weights of now.

        Args:
            network: Whose trained parameters are copied.
        """
        super().__init__()
        trained = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}
        self.names = tuple(trained)
        for number, weight in enumerate(trained.values()):
            self.register_buffer(str(number), weight.detach().clone())

    @torch.no_grad()
    def take(self, network: nn.Module) -> None:
        """Copy the weights of now once more."""
        weights = dict(network.named_parameters())
        for name, kept in zip(self.names, self.buffers(), strict=True):
            kept.copy_(weights[name])

    @contextmanager
    def acting(self, network: nn.Module) -> Iterator[None]:
        """The network with these weights in place of its own, without gradients; its own are back afterwards.

        Args:
            network: That was copied from; its weights are not sharded over processes.
        """
        weights = dict(network.named_parameters())
        trained = [weights[name] for name in self.names]
        own = [weight.data for weight in trained]
        try:
            torch.clear_autocast_cache()  # it would go on with its copies of the other weights
            for weight, kept in zip(trained, self.buffers(), strict=True):
                weight.data = kept
            with torch.no_grad():
                yield
        finally:
            for weight, value in zip(trained, own, strict=True):
                weight.data = value
            torch.clear_autocast_cache()

    @torch.no_grad()
    def digest(self) -> str:
        """What tells these weights from others."""
        digest = hashlib.sha256()
        for name, kept in zip(self.names, self.buffers(), strict=True):
            values = kept.double()
            digest.update(f"{name} {float(values.sum())!r} {float(values.square().sum())!r}".encode())
        return digest.hexdigest()[:16]
