r"""Experts in one pass: in each adapted layer, one low-rank product for the rows of all experts.

The factors of the experts that a run has rows for stand one below the other, D (R, in) and U (R, out) with R the sum of their
ranks; a mask (M, R) leaves each row the part of its own expert, or nothing of it:

.. math:: y_m = W x_m + U^\top (\mu_m \odot D x_m)

Two small products for all experts are cheaper than two for each, although a row's parts of the other experts are computed and
dropped, and than factors of its own for each row, which would be read once for each row instead of once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from .adapter_files import Factors, LayerFactors
from .cached_rows import CachedRows
from .experts import BASE, ExpertRun

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["StackedExperts", "StackedLinear"]

FEW_ROWS = 4
"""Rows up to which a product with weights costs on the CPU what it costs for fewer; batches are filled up to a multiple."""


class Added(NamedTuple):
    """What one layer adds to the rows of a run."""

    down: Tensor
    """(R, in)."""
    up: Tensor
    """(R, out)."""
    mask: Tensor
    """(M, 1, R)."""


@dataclass(frozen=True)
class Selection:
    """What the layers add to the rows of one run.

    Attributes:
        down: (R, in) of each layer; None where no expert of the run adapts it.
        up: (R, out) of each layer.
        columns: Of each layer, whose each of the R columns is.
        expert: (M,) int64: whose each row is.
        masks: (M, 1, R) of each kind of columns: 1 where row and column are one expert's.
    """

    down: list[Tensor | None]
    up: list[Tensor | None]
    columns: list[tuple[int, ...]]
    expert: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    masks: dict[tuple[int, ...], Tensor] = field(default_factory=dict)

    def factors(self) -> list[Tensor]:
        """All that are there."""
        return [part for part in (*self.down, *self.up) if part is not None]

    def of_layer(self, place: int) -> "Added | None":
        """What one layer adds; None for nothing."""
        down, up = self.down[place], self.up[place]
        return None if down is None or up is None else Added(down, up, self.masks[self.columns[place]])

    def of_rows(self, expert: Tensor) -> "Selection":
        """The same factors for rows of these experts, (M,) int64."""
        masks = {}
        for columns in set(self.columns) - {()}:
            whose = torch.tensor(columns, device=expert.device)
            masks[columns] = (whose == expert[:, None]).to(self.factors()[0].dtype)[:, None]
        return replace(self, expert=expert, masks=masks)


@dataclass
class Active:
    """Which run the layers serve."""

    selection: Selection | None = None


class StackedLinear(nn.Module):
    """A linear layer, and what the experts of the active run add to it."""

    def __init__(self, base_layer: nn.Module, name: str, place: int, active: Active) -> None:
        """Stand before a layer.

        Args:
            base_layer: Linear, or GPT-2's ``Conv1D``.
            name: Of the layer.
            place: Among the layers of a selection.
            active: Shared by all layers of a network.
        """
        super().__init__()
        self.base_layer = base_layer
        self.name, self.place, self.active = name, place, active

    def __getattr__(self, name: str) -> Tensor | nn.Module:
        """Attributes of the layer beneath, such as its weight."""
        try:
            value: Tensor | nn.Module = super().__getattr__(name)
        except AttributeError:
            value = getattr(super().__getattr__("base_layer"), name)
        return value

    def forward(self, inputs: Tensor) -> Tensor:
        """(M, L, in) to (M, L, out).

        Raises:
            ValueError: If inputs are not those of the run's rows.
        """
        selection = self.active.selection
        added = None if selection is None else selection.of_layer(self.place)
        if added is not None and (inputs.ndim != 3 or len(inputs) != len(added.mask)):
            raise ValueError(
                f"{self.name} reads {tuple(inputs.shape)} where {len(added.mask)} rows are run: which row is whose cannot be told; "
                "set experts.decoding=sequential"
            )
        result: Tensor = self._turned(inputs) if self._is_quick_turned(inputs) else self.base_layer(inputs)
        if added is None:
            return result
        hidden = nn.functional.linear(inputs, added.down) * added.mask
        return torch.addmm(result.flatten(0, 1), hidden.flatten(0, 1), added.up).view_as(result)

    def _is_quick_turned(self, inputs: Tensor) -> bool:
        """Whether W x with rows as columns is quicker than x W: on the CPU, for a few rows and a layer that widens."""
        layer = self.base_layer
        return (
            inputs.ndim == 3
            and inputs.shape[1] == 1 < len(inputs) <= FEW_ROWS
            and inputs.device.type == "cpu"
            and inputs.dtype == torch.float32
            and type(layer) is nn.Linear
            and layer.out_features >= layer.in_features
        )

    def _turned(self, inputs: Tensor) -> Tensor:
        """What the layer gives, with rows as columns. These must be a view of rows: of columns in memory it is slower than x W."""
        layer = self.base_layer
        assert isinstance(layer, nn.Linear)  # the caller looked
        columns = inputs[:, 0].contiguous().T
        if layer.bias is None:
            result = torch.mm(layer.weight, columns)
        else:
            result = torch.addmm(layer.bias[:, None], layer.weight, columns)
        return result.T.contiguous()[:, None]


class FactorTable(nn.Module):
    """Factors of experts by layer; they move with the module that holds them, and are not part of its state."""

    def __init__(self) -> None:
        """Begin without any."""
        super().__init__()
        self.ranks: list[dict[str, int]] = []

    def add(self, factors: LayerFactors, like: Tensor) -> None:
        """Add an expert.

        Args:
            factors: By layer.
            like: In whose dtype and on whose device they are kept.
        """
        for name, pair in factors.items():
            for kind, value in zip(("down", "up"), pair, strict=True):
                self.register_buffer(
                    _buffer(len(self.ranks), kind, name), value.detach().to(like), persistent=False
                )
        self.ranks.append({name: len(down) for name, (down, _) in factors.items()})

    def of(self, number: int, name: str) -> Factors:
        """Factors of an expert in a layer."""
        return Factors(*(self.get_buffer(_buffer(number, kind, name)) for kind in ("down", "up")))

    def select(self, experts: Sequence[int], names: Sequence[str]) -> Selection:
        """Factors of some experts, stacked, without rows yet.

        Args:
            experts: Numbers, each once.
            names: Of the layers.
        """
        chosen = Selection([], [], [])
        for name in names:
            those = [number for number in experts if name in self.ranks[number]]
            chosen.columns.append(tuple(number for number in those for _ in range(self.ranks[number][name])))
            pairs = [self.of(number, name) for number in those]
            chosen.down.append(torch.cat([pair.down for pair in pairs]) if pairs else None)
            chosen.up.append(torch.cat([pair.up.T for pair in pairs]) if pairs else None)
        return chosen


def _buffer(number: int, kind: str, name: str) -> str:
    return f"{kind}_{number}_{name.replace('.', '/')}"


class StackedExperts:
    """Adapters over one network whose layers add them by row; known by their numbers."""

    def __init__(self, model: "PreTrainedModel", table: FactorTable) -> None:
        """Keep the network, without adapters yet.

        Args:
            model: The causal network.
            table: For the factors.
        """
        self.network, self.table, self.active = model, table, Active()
        self.layers: dict[str, StackedLinear] = {}
        self._last: tuple[tuple[int, ...], Selection] | None = None
        head = model.get_output_embeddings()
        for name in [name for name, part in model.named_modules() if part is head]:
            self._wrap(name)  # the largest product of a step, adapted or not

    def _wrap(self, name: str) -> None:
        layer = StackedLinear(self.network.get_submodule(name), name, len(self.layers), self.active)
        parent, _, attribute = name.rpartition(".")
        setattr(self.network.get_submodule(parent), attribute, layer.eval())
        self.layers[name] = layer

    def add(self, factors: LayerFactors) -> None:
        """Add one adapter of given factors.

        Args:
            factors: By layer.
        """
        for name in factors:
            if name not in self.layers:
                self._wrap(name)
        self.table.add(factors, next(self.network.parameters()).new_empty((), dtype=self.network.dtype))
        self._last = None

    def factors(self, number: int) -> dict[str, Factors]:
        """Factors of an adapter by layer, float32, as far as the network's dtype holds them.

        Args:
            number: Which.
        """
        pairs = {name: self.table.of(number, name) for name in self.table.ranks[number]}
        return {name: Factors(down.float(), up.float()) for name, (down, up) in pairs.items()}

    def selection(self, expert: Sequence[int]) -> Selection:
        """What the layers add to rows of these experts; stacked anew where the experts are others than the last time."""
        experts = tuple(sorted(set(expert) - {BASE}))
        device = next(self.network.parameters()).device
        last = self._last
        if last is None or last[0] != experts or any(part.device != device for part in last[1].factors()):
            last = self._last = experts, self.table.select(experts, list(self.layers))
        return last[1].of_rows(torch.tensor(expert, device=device))

    def start(self, input_ids: Tensor, attention_mask: Tensor, expert: Sequence[int]) -> ExpertRun:
        """As pools have it."""
        multiple = FEW_ROWS if input_ids.device.type == "cpu" else 1
        network = _StackedRows(self, expert)
        return CachedRows(self.network, network, input_ids, attention_mask, multiple=multiple)


class _StackedRows:
    """A batch in which each row has an expert of its own."""

    def __init__(self, experts: StackedExperts, expert: Sequence[int]) -> None:
        self.experts, self.expert = experts, list(expert)
        self.selection = experts.selection(expert)

    def __call__(self, **inputs: object) -> Tensor:
        active = self.experts.active
        active.selection = self.selection
        try:
            logits: Tensor = self.experts.network(**inputs).logits
        finally:
            active.selection = None
        return logits

    def keep(self, rows: Tensor) -> None:
        before, self.expert = set(self.expert), [self.expert[row] for row in rows.tolist()]
        if set(self.expert) == before:
            self.selection = self.selection.of_rows(self.selection.expert[rows])
        else:  # experts without a row are not run
            self.selection = self.experts.selection(self.expert)
