"""Domains that a reward model is customised to: their names, where the data's indices point, where their heads start."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pluralign.datamodules.batch import PreferenceBatch

__all__ = ["GENERAL", "DomainColumns", "domain_names", "with_heads"]

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

        Raises:
            ValueError: If there is no name for one.
        """
        names = tuple(names) or tuple(self._own)
        if unnamed := [index for index in indices if index >= len(names)]:
            raise ValueError(
                f"domain_id points at domain number {unnamed[0]}, and there are {len(names)}: where no data module names "
                "them, let indices be those of the setting domains, and -1 for any other"
            )
        return sorted({self._own.get(names[index], 0) if index >= 0 else 0 for index in indices})

    def lacking(self, names: Sequence[str]) -> list[str]:
        """Those of the data's domains that have no reward of their own and are not the general one, in their order."""
        return [name for name in names if name not in self._own and name != GENERAL]


def with_heads(
    state: dict[str, Tensor], settings: Mapping[str, Any], domains: Sequence[str], origin: str | None
) -> dict[str, Tensor]:
    """Weights to start from, with a head for each domain: what it had in the other run, or a copy of the general one.

    Args:
        state: Weights of the other run, by name; without ``head.weight`` where the general head is not taken over.
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
