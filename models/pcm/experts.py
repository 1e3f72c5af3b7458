"""Experts of a mixture: which they are, and what runs rows of tokens, each by an expert of its own.

An expert is a frozen language model, usually one for each dimension of style and called like it. A pool runs M rows at once: row r
is run by expert number ``expert[r]``; :data:`BASE` is the network beneath adapters, without any of them.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from pluralign.datamodules.checks import check_choices

from ..backbone import BackboneConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["BASE", "ExpertPool", "ExpertRun", "ExpertsConfig"]

BASE = -1
"""In place of an expert's number: the base of adapters without any of them."""


@dataclass(frozen=True)
class ExpertsConfig:
    """Which experts, and how they are run. Plain values only: it is part of every checkpoint.

    Attributes:
        base: The network beneath adapters; None for the module's own backbone.
        adapters: Folder of each expert's LoRA adapter, as PEFT writes it, by the expert's name.
        models: Name or folder of each expert that is a whole causal language model; all with one tokenizer.
        prompts: What an expert's prompt says of the preference: nothing (``none``), the sentence of the ``own`` dimension, or
            the sentences of ``all`` dimensions that are asked for. The choice matters: experts see in it what they were trained
            on, or they do not.
        decoding: How adapters are run. ``stacked``: all rows in one pass, with one low-rank product for all experts in each layer;
            ``mixed``: one pass through PEFT, which runs expert after expert in each layer; ``sequential``: a pass for each
            expert. They give equal numbers; the latter two are references.
    """

    base: BackboneConfig | None = None
    adapters: dict[str, str] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)
    prompts: Literal["none", "own", "all"] = "own"
    decoding: Literal["stacked", "mixed", "sequential"] = "stacked"

    def __post_init__(self) -> None:
        """Check what can be checked without loading.

        Raises:
            ValueError: Naming the argument, its value and what is allowed.
        """
        if isinstance(self.base, dict):  # from a checkpoint's plain hyperparameters
            object.__setattr__(self, "base", BackboneConfig(**self.base))
        check_choices(type(self), prefix="experts.", **vars(self))
        if self.adapters and self.models:
            raise ValueError(
                "experts are adapters over one base, or whole models: leave out experts.adapters "
                f"({', '.join(self.adapters)}) or experts.models ({', '.join(self.models)})"
            )
        if self.models and self.base is not None:
            raise ValueError(
                "experts.base is the network beneath adapters, and experts.models has none: leave it out"
            )
        if self.base is not None and self.base.lora is not None:
            raise ValueError("experts.base is frozen, beneath experts.adapters: leave out experts.base.lora")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the experts, in the order of their numbers."""
        return (*self.adapters, *self.models)


class ExpertRun(ABC):
    """M rows that are being read, each by its expert.

    Attributes:
        log_probs: (M, V) float32: log-probabilities of each row's next token, normalised.
        states: (M, H): what the language-model head read for them, in the network's dtype; None where experts have no one network.
    """

    log_probs: Tensor
    states: Tensor | None

    @abstractmethod
    def advance(self, tokens: Tensor) -> None:
        """Read on.

        Args:
            tokens: (M,) int64: the next token of each row.
        """

    @abstractmethod
    def keep(self, rows: Tensor) -> None:
        """Go on with some of the rows alone.

        Args:
            rows: (M',) int64, their places among the rows that are left.
        """


class ExpertPool(nn.Module, ABC):
    """Frozen experts of one vocabulary. It stays in evaluation mode, builds no graph and changes no parameter.

    Attributes:
        names: Of the n experts, in the order of their numbers.
        vocab_size: V.
        has_base: Whether rows may be run by :data:`BASE`.
        host: A network of this vocabulary, which transformers' ``generate`` is called on; None where there is none.
        digests: What tells each expert's files from others', by name; empty for experts that were not made from files.
    """

    names: tuple[str, ...]
    vocab_size: int
    has_base = False
    host: "PreTrainedModel | None" = None

    def __init__(self) -> None:
        """Begin without digests."""
        super().__init__()
        self.digests: dict[str, str] = {}

    def train(self, mode: bool = True) -> "ExpertPool":
        """Stay in evaluation mode: dropout of an expert would make its log-probabilities another's."""
        return super().train(False)

    @torch.no_grad()
    def begin(self, input_ids: Tensor, attention_mask: Tensor, expert: Tensor) -> ExpertRun:
        """Read M prompts, each by its expert. Experts without a row are not run.

        Args:
            input_ids: (M, L) int64, padded on the left.
            attention_mask: (M, L) int64: 1 on tokens, 0 on padding.
            expert: (M,) int64 in [0, n), or :data:`BASE`, in any order.

        Returns:
            What goes on from there; its log-probabilities are of the first token after each prompt.

        Raises:
            ValueError: If shapes do not fit, a row has no token or is not padded on the left, or there is no such expert.
        """
        if (
            input_ids.ndim != 2
            or input_ids.shape != attention_mask.shape
            or expert.shape != input_ids.shape[:1]
        ):
            raise ValueError(
                "input_ids and attention_mask must be (M, L) and expert (M,), got "
                f"{tuple(input_ids.shape)}, {tuple(attention_mask.shape)} and {tuple(expert.shape)}"
            )
        if not len(input_ids):
            raise ValueError("input_ids must hold at least one row, got none")
        real = attention_mask.bool()
        if not bool(real[:, -1].all()):
            raise ValueError(
                "prompts must be padded on the left and have at least one token: attention_mask ends in 0"
            )
        numbers: list[int] = expert.tolist()
        lowest = BASE if self.has_base else 0
        if wrong := sorted({number for number in numbers if not lowest <= number < len(self.names)}):
            base = f", {BASE} for the base" if self.has_base else " (there is no base beneath whole models)"
            raise ValueError(
                f"expert must be in [0, {len(self.names)}){base}; got {', '.join(map(str, wrong))}"
            )
        return self.start(input_ids, attention_mask, numbers)

    @abstractmethod
    def start(self, input_ids: Tensor, attention_mask: Tensor, expert: Sequence[int]) -> ExpertRun:
        """As :meth:`begin`, which has looked at the arguments."""
