"""ModelExperts: experts that are whole causal language models of one vocabulary."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

from torch import Tensor, nn

from .cached_rows import CachedRows, rows_by_expert
from .experts import ExpertPool, ExpertRun

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["ModelExperts"]


class ModelExperts(ExpertPool):
    """Experts that are networks of their own, run one after the other, each over its rows with a cache of its own."""

    def __init__(self, models: Mapping[str, "PreTrainedModel"]) -> None:
        """Freeze them.

        Args:
            models: Causal networks by name of the expert.

        Raises:
            ValueError: If there are none, or their vocabularies have different sizes.
        """
        super().__init__()
        sizes = {name: int(model.config.get_text_config().vocab_size) for name, model in models.items()}
        if not sizes:
            raise ValueError("experts.models must name at least one model, got none")
        if len(set(sizes.values())) > 1:
            told = ", ".join(f"{name}: {size}" for name, size in sizes.items())
            raise ValueError(
                f"experts must have one vocabulary, for their probabilities are mixed token by token; got sizes {told}: choose "
                "experts.models of one family, with the same tokenizer"
            )
        self.names = tuple(models)
        self.vocab_size = next(iter(sizes.values()))
        self.networks = nn.ModuleList([model.requires_grad_(False) for model in models.values()])
        object.__setattr__(self, "host", self.networks[0])  # once among the submodules
        self.eval()

    def start(self, input_ids: Tensor, attention_mask: Tensor, expert: Sequence[int]) -> ExpertRun:
        """As pools have it."""

        def begin(number: int, ids: Tensor, mask: Tensor) -> ExpertRun:
            model = cast("PreTrainedModel", self.networks[number])
            return CachedRows(model, _WholeModel(model), ids, mask)

        return rows_by_expert(input_ids, attention_mask, expert, begin)


class _WholeModel:
    """A network that treats all rows alike."""

    def __init__(self, model: "PreTrainedModel") -> None:
        self.model = model

    def __call__(self, **inputs: object) -> Tensor:
        logits: Tensor = self.model(**inputs).logits
        return logits

    def keep(self, rows: Tensor) -> None:
        """Nothing."""
