"""AdapterExperts: experts that are LoRA adapters over one frozen network."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from pluralign.datamodules.checks import check_choices

from .adapter_files import Factors, LayerFactors, check_factors, read_adapter
from .experts import ExpertPool, ExpertRun, ExpertsConfig
from .peft_layers import PeftExperts
from .stacked import FactorTable, StackedExperts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["AdapterExperts"]


class AdapterExperts(ExpertPool):
    """Experts that are LoRA adapters over one network, with any ranks, scalings and layers of their own.

    The network is frozen, and its adapted layers are wrapped in place. Rows may be run by the base alone, too.

    Attributes:
        network: The causal network beneath the adapters.
        decoding: How rows of several experts are run.
    """

    has_base = True

    def __init__(
        self,
        model: "PreTrainedModel",
        adapters: Mapping[str, str],
        *,
        decoding: Literal["stacked", "mixed", "sequential"] = "stacked",
    ) -> None:
        """Read the adapters.

        Args:
            model: A causal network without adapters; it stays as it is, but for wrappers around layers.
            adapters: Folder by name of the expert.
            decoding: As :class:`ExpertsConfig` has it.

        Raises:
            ValueError: If a folder holds no LoRA adapter, or one of another base.
        """
        super().__init__()
        check_choices(ExpertsConfig, decoding=decoding)
        self.network, self.decoding = model.requires_grad_(False), decoding
        object.__setattr__(self, "host", model)  # once among the submodules
        self.vocab_size = model.config.get_text_config().vocab_size
        self.names = ()
        self.table = FactorTable()
        self._layers = (
            StackedExperts(model, self.table) if decoding == "stacked" else PeftExperts(model, decoding)
        )
        for name, folder in adapters.items():
            self._add(name, read_adapter(folder, model, name))
        self.eval()

    def _add(self, name: str, factors: LayerFactors) -> None:
        self._layers.add(factors)
        self.names = (*self.names, name)

    def add(self, names: Sequence[str], factors: Sequence[LayerFactors]) -> None:
        """Add experts of given factors, such as averages of others.

        Args:
            names: Of the experts.
            factors: Of each expert: by name of the layer in the causal network, A (r, in) and B (out, r), whose product B A is
                added to the layer's weight; any scaling is in B.

        Raises:
            ValueError: If a name is taken, or factors do not fit the network.
        """
        given = [*self.names, *names]
        if twice := sorted({name for name in given if given.count(name) > 1}):
            raise ValueError(f"experts need names of their own; got {', '.join(twice)} twice")
        for name, layers in zip(names, factors, strict=True):
            if not layers:
                raise ValueError(f"the expert {name} has factors of no layer")
            check_factors(layers, self.network, f"the expert {name}", "another network")
            self._add(name, layers)
        self.eval()

    def factors(self, name: str) -> dict[str, Factors]:
        """Low-rank factors of an expert, float32, by the name of the layer; the scaling is in the second.

        Args:
            name: Of the expert.

        Raises:
            ValueError: If there is none of that name.
        """
        if name not in self.names:
            raise ValueError(f"there is no expert {name!r}; allowed: {', '.join(self.names)}")
        return self._layers.factors(self.names.index(name))

    def start(self, input_ids: Tensor, attention_mask: Tensor, expert: Sequence[int]) -> ExpertRun:
        """As pools have it."""
        return self._layers.start(input_ids, attention_mask, expert)
