"""Experts as PEFT runs them: a pass for each, or one pass over rows of several. References for the stacked layers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, cast

import torch
from torch import Tensor, nn

from .adapter_files import Factors, LayerFactors
from .cached_rows import CachedRows, rows_by_expert
from .experts import BASE, ExpertRun

if TYPE_CHECKING:
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer
    from transformers import PreTrainedModel

__all__ = ["PeftExperts"]

NO_ADAPTER = "__base__"
"""What PEFT calls the base among the adapters of rows."""


class PeftExperts:
    """Adapters over one network in PEFT's wrapper, known by their numbers."""

    def __init__(self, model: "PreTrainedModel", decoding: Literal["mixed", "sequential"]) -> None:
        """Keep the network, without adapters yet.

        Args:
            model: The causal network.
            decoding: How rows are run.
        """
        self.network, self.decoding = model, decoding
        self.wrapper: PeftModel | None = None
        self.count = 0

    def add(self, factors: LayerFactors) -> None:
        """Add one adapter of given factors.

        Args:
            factors: By layer.
        """
        from peft import LoraConfig, get_peft_model
        from transformers.pytorch_utils import Conv1D

        name = _adapter_name(self.count)
        ranks = {layer: len(down) for layer, (down, _) in factors.items()}
        # Names that end alike are told apart by what stands before: a pattern of whole names is exact.
        patterns = {layer.replace(".", r"\."): rank for layer, rank in ranks.items()}
        config = LoraConfig(
            r=max(ranks.values()),
            lora_alpha=max(ranks.values()),
            rank_pattern=patterns,
            alpha_pattern=dict(patterns),  # alpha = rank: the scaling is in the factors
            target_modules="|".join(patterns),
            fan_in_fan_out=any(isinstance(part, Conv1D) for part in self.network.modules()),
            inference_mode=True,
        )
        if self.wrapper is None:
            self.wrapper = cast("PeftModel", get_peft_model(self.network, config, adapter_name=name))
        else:
            self.wrapper.add_adapter(name, config)
        self.count += 1
        with torch.no_grad():
            for layer, pair in factors.items():
                part = cast("LoraLayer", self.network.get_submodule(layer))
                for weight, value in zip(_weights(part, name), pair, strict=True):
                    weight.copy_(value)
        self.wrapper.requires_grad_(False)
        self.wrapper.eval()

    def factors(self, number: int) -> dict[str, Factors]:
        """Factors of an adapter by layer, float32.

        Args:
            number: Which.
        """
        from peft.tuners.lora import LoraLayer

        name = _adapter_name(number)
        return {
            layer: Factors(*(weight.float() for weight in _weights(part, name)))
            for layer, part in self.network.named_modules()
            if isinstance(part, LoraLayer) and name in part.lora_A
        }

    def start(self, input_ids: Tensor, attention_mask: Tensor, expert: Sequence[int]) -> ExpertRun:
        """As pools have it."""
        assert self.wrapper is not None  # experts were added
        wrapper = self.wrapper

        def begin(number: int, ids: Tensor, mask: Tensor) -> ExpertRun:
            return CachedRows(self.network, _OneAdapter(wrapper, number), ids, mask)

        if self.decoding == "sequential":
            return rows_by_expert(input_ids, attention_mask, expert, begin)
        return CachedRows(self.network, _AdapterOfEachRow(wrapper, expert), input_ids, attention_mask)


def _weights(layer: "LoraLayer", name: str) -> tuple[Tensor, Tensor]:
    """Both factors of an adapter in a layer that PEFT wraps."""
    return cast(nn.Linear, layer.lora_A[name]).weight, cast(nn.Linear, layer.lora_B[name]).weight


def _adapter_name(number: int) -> str:
    """What an expert's adapter is called: PEFT allows no dots in names, and dimensions have them."""
    return NO_ADAPTER if number == BASE else f"expert_{number}"


class _AdapterOfEachRow:
    """A batch in which each row has an adapter of its own."""

    def __init__(self, wrapper: "PeftModel", expert: Sequence[int]) -> None:
        self.wrapper, self.names = wrapper, [_adapter_name(number) for number in expert]

    def __call__(self, **inputs: object) -> Tensor:
        # The wrapper itself must be called: the network beneath it would swallow the names.
        logits: Tensor = self.wrapper(**inputs, adapter_names=self.names).logits
        return logits

    def keep(self, rows: Tensor) -> None:
        self.names = [self.names[row] for row in rows.tolist()]


class _OneAdapter:
    """A batch of one adapter."""

    def __init__(self, wrapper: "PeftModel", number: int) -> None:
        self.wrapper, self.number = wrapper, number

    def __call__(self, **inputs: object) -> Tensor:
        if self.number == BASE:
            ids = inputs["input_ids"]
            assert isinstance(ids, Tensor)
            # PEFT's disable_adapter would have the adapter trained again that is active afterwards.
            return _AdapterOfEachRow(self.wrapper, [BASE] * len(ids))(**inputs)
        self.wrapper.set_adapter(_adapter_name(self.number), inference_mode=True)
        logits: Tensor = self.wrapper(**inputs).logits
        return logits

    def keep(self, rows: Tensor) -> None:
        """Nothing: all rows are alike."""
