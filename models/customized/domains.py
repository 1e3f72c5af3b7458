"""Domains that a reward model is customised to: their names, where the data's indices point, what trains them."""

import re
from collections.abc import Sequence

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from pluralign.datamodules.batch import PreferenceBatch

__all__ = [
    "GENERAL",
    "DomainColumns",
    "adapter_name",
    "adapter_of",
    "check_strategy",
    "domain_names",
]

GENERAL = "general"
"""Name of the reward that is no domain's own."""


def domain_names(domains: Sequence[str]) -> tuple[str, ...]:
    """Names of domains, as a setting gives them.

    Raises:
        TypeError: If it is one name and no list.
        ValueError: If one is named twice, empty, or that of the general reward.
    """
    if isinstance(domains, str):
        raise TypeError(f"domains must be a list of names, got {domains!r}")
    for name in domains:
        if not name or name == GENERAL or list(domains).count(name) > 1:
            raise ValueError(f"domains must be different names, and none of them {GENERAL!r}; got {name!r}")
    return tuple(domains)


class DomainColumns:
    """Where the reward of each of the data's domains is, among the general one (column 0) and those of the module."""

    def __init__(self, domains: Sequence[str]) -> None:
        """Name the module's domains.

        Args:
            domains: In the order of columns 1, 2, ...
        """
        self._own = {name: i + 1 for i, name in enumerate(domains)}
        self._table: tuple[tuple[str, ...], Tensor] | None = None

    def of(self, index: Tensor, names: Sequence[str]) -> Tensor:
        """Column of each index of a domain, int64, of its shape; a domain without a reward of its own has the general one.

        Args:
            index: Into ``names``; -1 for none.
            names: The data's domains; empty for bare loaders, whose indices are those of the module's own domains.
        """
        names = tuple(names) or tuple(self._own)
        if self._table is None or self._table[0] != names or self._table[1].device != index.device:
            table = [0, *(self._own.get(name, 0) for name in names)]
            self._table = names, torch.tensor(table, device=index.device)
        return self._table[1][index + 1]

    def asked(self, batch: PreferenceBatch, names: Sequence[str]) -> list[int]:
        """Columns that a batch's comparisons ask for, ascending, at least one; all where it does not say so to the host.

        Args:
            batch: A batch.
            names: As in ``of``.
        """
        if "comparisons" not in batch or "domain_id" not in batch:
            return [0]
        if "domains_present" not in batch:
            return [0, *self._own.values()]
        return self.present(batch["domains_present"], names) or [0]

    def present(self, indices: Sequence[int], names: Sequence[str]) -> list[int]:
        """Columns of some domains, ascending, each once; plain numbers, which make no device wait.

        Args:
            indices: As in ``of``.
            names: As in ``of``.
        """
        names = tuple(names) or tuple(self._own)
        return sorted({self._own.get(names[index], 0) if index >= 0 else 0 for index in indices})


# Adapters ------------------------------------------------------------------------------------------------


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
    else:
        finds_unused = per_domain != "adapter"
    if not finds_unused:
        raise ValueError(
            f"per_domain={per_domain!r} trains what the domains of a batch have of their own, and the batches of "
            f"{trainer.world_size} processes have different ones: set trainer.strategy=ddp_find_unused_parameters_true (now "
            f"{type(strategy).__name__})"
        )
