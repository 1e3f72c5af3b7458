"""Where a run starts: the weights of the run before it by its own names, and how far it has moved from them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from .domains import adapter_name, adapter_of

__all__ = ["StartWeights", "StartingRun"]

LANGUAGE_HEAD = "backbone.language_head."


class StartWeights:
    """Copies of trained weights as they were at the start; no part of a module's state.

    Attributes:
        digest: Number that tells these weights from others: the sum of their squares, in float64.
    """

    def __init__(self, weights: Iterable[nn.Parameter]) -> None:
        """Copy the weights.

        Args:
            weights: As they are at the start.

        Raises:
            ValueError: If they are sharded over ranks.
        """
        self._weights = list(weights)
        if any(isinstance(weight, DTensor) for weight in self._weights):
            raise ValueError(
                "l2_sp is not there for weights that are sharded over ranks: use trainer.strategy=ddp"
            )
        self._start = [weight.detach().clone() for weight in self._weights]
        self.digest = float(sum(float(weight.double().square().sum()) for weight in self._start))

    def __len__(self) -> int:
        """Number of tensors."""
        return len(self._weights)

    def squared_distance(self) -> Tensor:
        """Sum of squared differences between now and the start: a scalar with its graph, float32, on the weights' device."""
        device = self._weights[0].device
        if self._start[0].device != device:
            self._start = [
                start.to(weight.device) for start, weight in zip(self._start, self._weights, strict=True)
            ]
        pairs = zip(self._weights, self._start, strict=True)
        return torch.stack([(weight.float() - start.float()).square().sum() for weight, start in pairs]).sum()


class StartingRun(NamedTuple):
    """A run that starts from the weights of another one."""

    names: frozenset[str]
    """Its weights."""
    domains: Sequence[str]
    """Domains that have something of their own."""
    adapters: bool
    """Whether that is adapters."""
    has_files: bool
    """Whether its base has files, which hold a language-model head."""
    origin: str
    """What the other run's checkpoint is called in messages."""

    def weights(
        self, state: dict[str, Tensor], settings: Mapping[str, Any]
    ) -> tuple[dict[str, Tensor], set[str]]:
        """Weights to start from: heads of new domains are the general one, a language-model head may come from the base.

        Args:
            state: Weights of the other run.
            settings: Its hyperparameters.

        Returns:
            The weights, and names of those that may be missing there: adapters of new domains, which are without effect.

        Raises:
            ValueError: If domains of the other run would lose what they have of their own.
        """
        ours, theirs = (
            {name for name in names if name.startswith(LANGUAGE_HEAD)} for names in (self.names, state)
        )
        new = set()
        if ours - theirs and self.has_files:
            new = ours - theirs  # untouched in the other run, so that the base's own files have it
        elif theirs - ours:
            rank_zero_info(
                f"init_from={self.origin!r} has a language-model head, which a run with imitation=0 and perplexity=false "
                "leaves behind"
            )
            state = {name: value for name, value in state.items() if name not in theirs}
        if settings.get("per_domain") == "adapter" and not self.adapters:
            raise ValueError(
                f"init_from={self.origin!r} has adapters for {', '.join(settings['domains'])}, and this run would lose them: "
                f"set per_domain=adapter, adapter={settings['adapter']!r}"
            )
        state = _with_heads(state, settings, self.domains, self.origin)
        state, adapters = _with_adapters(state, settings, self.domains, self.names)
        return state, new | adapters


def _with_heads(
    state: dict[str, Tensor], settings: Mapping[str, Any], domains: Sequence[str], origin: str | None
) -> dict[str, Tensor]:
    """Weights to start from, with a head for each domain: what it had in the other run, or a copy of the general one.

    Args:
        state: Weights of the other run, by name.
        settings: Its hyperparameters.
        domains: Those of this run that have a head; empty where none has.
        origin: What the other run's checkpoint is called in messages.

    Raises:
        ValueError: If the other run has heads, and this one has no room for them.
    """
    own = settings.get("per_domain", "nothing") != "nothing"
    before = list(settings.get("domains", ())) if own else []
    if lost := [name for name in before if name not in domains]:
        raise ValueError(
            f"init_from={origin!r} has rewards of their own for the domains {before}, and this run would lose those of "
            f"{lost}: set per_domain and domains as they were there, and others after them"
        )
    heads = {name: value for name, value in state.items() if name.startswith("heads.")}
    found = {name: value for name, value in state.items() if name not in heads}
    for i, domain in enumerate(domains):
        start = (
            heads[f"heads.{before.index(domain)}.weight"] if domain in before else state.get("head.weight")
        )
        if start is not None:
            found[f"heads.{i}.weight"] = start.clone()
    return found


def _with_adapters(
    state: dict[str, Tensor], settings: Mapping[str, Any], domains: Sequence[str], present: Iterable[str]
) -> tuple[dict[str, Tensor], set[str]]:
    """Weights to start from, with the adapters of the domains that the other run had, where these are now.

    Args:
        state: Weights of the other run, by name.
        settings: Its hyperparameters.
        domains: Those of this run, the other's among them.
        present: Names of this run's weights.

    Returns:
        The weights, and names of those that a run without a domain cannot have: its adapter's.
    """
    before = list(settings.get("domains", ())) if settings.get("per_domain") == "adapter" else []
    moved = {}
    for key, value in state.items():
        place = adapter_of(key)
        if place is not None and place < len(before):
            now = adapter_name(list(domains).index(before[place]))
            key = ".".join(now if part == adapter_name(place) else part for part in key.split("."))
        moved[key] = value
    places = {key: adapter_of(key) for key in present}
    return moved, {key for key, i in places.items() if i is not None and domains[i] not in before}
