"""Adapters of domains: what they are called, where they start, and which processes can train them together."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import lightning as L
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor

__all__ = ["adapter_name", "adapter_of", "check_strategy", "with_adapters"]


def adapter_name(place: int) -> str:
    """What the adapter of the domain at a place among those of the module is called."""
    return f"domain_{place}"


def adapter_of(key: str) -> int | None:
    """Place of the domain whose adapter a weight is part of; None for any other weight.

    Args:
        key: Its name in a module's state.
    """
    places = re.findall(r"(?<=\.domain_)\d+(?=\.|$)", key) if key.startswith("backbone.model.") else []
    return int(places[0]) if places else None


def with_adapters(
    state: dict[str, Tensor],
    settings: Mapping[str, Any],
    domains: Sequence[str] | None,
    present: Iterable[str],
    origin: str | None,
) -> tuple[dict[str, Tensor], set[str]]:
    """Weights to start from, with the adapters of the domains that the other run had, where these are now.

    Args:
        state: Weights of the other run, by name.
        settings: Its hyperparameters.
        domains: Those of this run, the other's among them; None if it has no adapters.
        present: Names of this run's weights.
        origin: What the other run's checkpoint is called in messages.

    Returns:
        The weights, and names of those that a run without a domain cannot have: its adapter's.

    Raises:
        ValueError: If adapters would be lost.
    """
    before = list(settings.get("domains", ())) if settings.get("per_domain") == "adapter" else []
    if domains is None:
        if before:
            raise ValueError(
                f"init_from={origin!r} has adapters for {', '.join(before)}, and this run would lose them: set "
                f"per_domain=adapter, adapter={settings['adapter']!r}"
            )
        return state, set()
    moved = {}
    for key, value in state.items():
        place = adapter_of(key)
        if place is not None and place < len(before):
            now = adapter_name([*domains].index(before[place]))
            key = ".".join(now if part == adapter_name(place) else part for part in key.split("."))
        moved[key] = value
    places = {key: adapter_of(key) for key in present}
    return moved, {key for key, i in places.items() if i is not None and domains[i] not in before}


def check_strategy(trainer: L.Trainer, per_domain: str) -> None:
    """Make sure that processes whose batches are of different domains can exchange gradients.

    Args:
        trainer: Which is about to run.
        per_domain: What each domain has of its own.

    Raises:
        ValueError: If they would wait for each other, or average what only some of them have.
    """
    strategy = trainer.strategy
    if trainer.world_size == 1 or per_domain == "nothing":
        return
    if isinstance(strategy, DDPStrategy):
        finds_unused = bool(strategy._ddp_kwargs.get("find_unused_parameters"))
    elif isinstance(strategy, ModelParallelStrategy):
        finds_unused = False  # ranks divide the gradients that they have, which must be the same ones
    else:
        finds_unused = per_domain != "adapter"
    if not finds_unused:
        raise ValueError(
            f"per_domain={per_domain!r} trains what the domains of a batch have of their own, and the batches of "
            f"{trainer.world_size} processes have different ones: set trainer.strategy=ddp_find_unused_parameters_true (now "
            f"{type(strategy).__name__})"
        )
