"""Hugging Face backbones that run prefix-shared rows: load, adapt, settle the layout, pool by index.

Which layout a backbone takes is decided once, when it is built (:mod:`.layouts`): rows of causal networks are packed where
this gives the states that plain rows give on a small input, and responses have separate rows elsewhere.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from pluralign.datamodules.batch import PreferenceBatch

from .adapters import AdapterSet
from .frequencies import FrequencyChanges
from .kinds import is_causal, small_batch
from .language_head import split_language_head
from .language_model import WithOwnAttention
from .layouts import flexible, run_packed, run_plain, settle_rows
from .loading import BackboneConfig, adapt_model, load_network, num_positions
from .lora import LoRAConfig
from .packing import PackedRows, packed_rows, register
from .rows import length_chunks, pool, row_order, separate_rows, take_rows, with_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Backbone", "BackboneOutput"]

T = TypeVar("T")

# Seen with bitsandbytes 0.50: the first evaluation repacks the weights, after which no gradient passes.
NO_4BIT_ADAPTERS = "backbone.quantization='4bit' trains no adapters on the CPU: use 8bit, or a GPU"
# PEFT 0.21 reads such a layer's weight and puts it back without its scales, so that the second pass fails.
NO_8BIT_DORA = "backbone.quantization='8bit' trains no weight_decomposed adapters on the CPU: set it to false, or use a GPU"


class BackboneOutput(NamedTuple):
    """What one pass over a batch gives, for heads on responses and on tokens alike; in the backbone's dtype."""

    pooled: Tensor
    """(R, H): one state per response."""
    tokens: Tensor
    """(N, L, H): state of every token of ``rows``; on padding it means nothing."""
    rows: PreferenceBatch
    """The batch in the rows that the network took."""


class Backbone(nn.Module):
    """A network that turns a token batch into one state per response.

    Attributes:
        model: The Hugging Face (or PEFT) model.
        layout: ``shared`` or ``separate``, as decided when built; shared rows run packed.
        last_layer: What runs the last layer for the responses' ends alone, where nothing else is asked for; None if it cannot.
        pooling: ``last``, ``mean`` or ``cls``.
        hidden_size: H.
        left_out: Weights of a classification head that the network's files hold, and that were not loaded.
        adapters: Those that :meth:`add_adapters` put on it; None without any.
        language_head: The network's own language-model head, trained where its whole body is; None unless asked for.
    """

    def __init__(
        self, config: BackboneConfig, *, language_head: bool = False, body: "PreTrainedModel | None" = None
    ) -> None:
        """Load or initialise the network, adapt it and settle the layout.

        Args:
            config: What to build.
            language_head: Whether to keep the network's language-model head, from the same files.
            body: The network, where it was loaded before, with a head that is kept elsewhere; None to load it.

        Raises:
            ValueError: If weights are missing for part of the network, ``layout="shared"`` is wrong for it, or it has no
                language-model head that is a linear layer where one is asked for.
        """
        super().__init__()
        self.config = config
        self.left_out: tuple[str, ...] = ()
        if body is None:
            body, self.left_out = load_network(config, language_head=language_head)
        model, head = body, None
        self._whole: tuple[PreTrainedModel, ...] = ()  # no part of this one: its own parts are
        if language_head:
            self._whole = (model,)
            WithOwnAttention(model)
            model, head = split_language_head(model)
        if config.lora is not None:
            self._check_quantized(config.lora, model.device)
        self.hidden_size: int = model.config.get_text_config().hidden_size
        self.vocab_size: int | None = getattr(model.config, "vocab_size", None)
        self.max_positions = num_positions(model)
        self.frequencies = FrequencyChanges.of(model.config)
        self.causal = is_causal(model)
        self.layout, self.last_layer = settle_rows(model, config, self.causal)
        self.pooling = config.pooling if config.pooling != "auto" else ("last" if self.causal else "mean")
        self.model: nn.Module = adapt_model(model, config)
        self.adapters: AdapterSet | None = None
        self.language_head = head
        if config.frozen or config.lora is not None:
            self.freeze_language_head()  # part of the base, as the layers below adapters are
        self.train()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a pickled state, in a process that may not know packed attention yet."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if self.layout == "shared":
            register()

    def _check_quantized(self, shape: LoRAConfig, device: torch.device) -> None:
        """Make sure that adapters can be trained over weights of few bits where they are."""
        if device.type == "cpu" and self.config.quantization == "4bit":
            raise ValueError(NO_4BIT_ADAPTERS)
        if device.type == "cpu" and self.config.quantization == "8bit" and shape.weight_decomposed:
            raise ValueError(NO_8BIT_DORA)

    def freeze_language_head(self) -> None:
        """Train no language-model head; where it shares its weight with the embeddings, it goes on as they do."""
        shared = {id(parameter) for parameter in self.model.parameters()}
        for parameter in () if self.language_head is None else self.language_head.parameters():
            if id(parameter) not in shared:
                parameter.requires_grad_(False)

    @property
    def frozen(self) -> bool:
        """Whether nothing of the backbone is trained."""
        return self.config.frozen and self.adapters is None

    def train(self, mode: bool = True) -> "Backbone":
        """Set the mode; a frozen backbone stays in evaluation mode, so its states do not change."""
        mode = mode and not self.frozen
        for whole in self._whole:
            whole.training = mode
        return super().train(mode)

    def language_model(self) -> "PreTrainedModel":
        """The causal language model that ``model``, with its adapters, and ``language_head`` are parts of; to decode with.

        Raises:
            ValueError: If the backbone was built without a language-model head.
        """
        if not self._whole:
            raise ValueError("a language model is there where the backbone is built with language_head=True")
        return self._whole[0]

    def add_adapters(self, names: Sequence[str], shape: LoRAConfig) -> None:
        """Put adapters of one shape on the network, which is frozen with what it has; each is without effect at first.

        ``forward`` and ``read`` give what the network gives without them; :meth:`pooled_with` and :meth:`read_with`
        what it gives with each. Where ``shape.last_layers`` leaves layers beneath all adapters, these run once.

        Args:
            names: Names of their own, without dots; at least one.
            shape: Of each of them.

        Raises:
            ValueError: If there are adapters already, or the names or the shape do not fit the network.
        """
        if self.adapters is not None:
            raise ValueError(f"the backbone has adapters already: {', '.join(self.adapters.names)}")
        device = next(self.model.parameters()).device
        self._check_quantized(shape, device)
        adapters = AdapterSet(self.model, names, shape)
        self.adapters, self.model = adapters, adapters.model
        if self.language_head is not None:
            self.language_head.requires_grad_(False)  # part of what lies beneath
        if self.config.gradient_checkpointing:
            adapters.recompute_as_run()
        if any(parameter.is_meta for parameter in self.model.parameters()):
            adapters.trunk = 0  # cannot be tried
        rows = self.arrange(small_batch(device, self.vocab_size))
        self.eval()
        if reason := adapters.settle_trunk(lambda: self._states(rows)[1]):
            rank_zero_info(f"backbone: each adapter makes a pass of its own through all layers ({reason})")
        self.train()

    def arrange(self, batch: PreferenceBatch) -> PreferenceBatch:
        """The batch in rows this network can take; unchanged if it already is."""
        apart = batch["input_ids"].shape[0] == batch["response_row"].shape[0]
        return batch if self.layout == "shared" or apart else separate_rows(batch)

    def encode(self, batch: PreferenceBatch, packed: PackedRows | None = None) -> Tensor:
        """States of every token of an arranged batch, (N, L, H), in the backbone's dtype; zero on padding if rows are packed.

        Args:
            batch: In the network's rows.
            packed: Their places, where they are known from another pass over the same rows.
        """
        with torch.no_grad() if self.frozen else nullcontext():
            if self.layout == "separate":
                return run_plain(self.model, self._inputs(batch))
            ids, packed = batch["input_ids"], self._packed(batch) if packed is None else packed
            packed.ends_only = False
            hidden = run_packed(self.model, batch, packed)
            states = hidden.new_zeros((ids.numel(), hidden.shape[1])).index_copy(0, packed.cells, hidden)
            return states.view(*ids.shape, -1)

    def _packed(self, batch: PreferenceBatch) -> PackedRows:
        flex = flexible(self.config, batch["input_ids"].device)
        return packed_rows(batch, flex=flex, plain=self.config.attention == "eager")

    def _inputs(self, batch: PreferenceBatch) -> dict[str, Any]:
        """What a network takes of rows that hold one response each."""
        ids, segments = batch["input_ids"], batch["segment_ids"]
        inputs: dict[str, Any] = {"input_ids": ids}
        # Causal rows need no mask: padding is on the right, where no real token looks.
        if self.causal:
            inputs["use_cache"] = False
        else:
            inputs["attention_mask"] = (segments >= 0).to(ids.dtype)
        if self.frequencies.vary:  # left to itself, a network would count the padding's positions, too
            inputs["position_ids"] = batch["position_ids"]
        return inputs

    def _pooled(self, rows: PreferenceBatch, packed: PackedRows | None = None) -> Tensor:
        """States of the responses of arranged rows, (R, H), and of nothing else where that can be."""
        if self.layout == "separate" or self.pooling != "last":
            return self._states(rows, packed)[0]
        with torch.no_grad() if self.frozen else nullcontext():
            packed = self._packed(rows) if packed is None else packed
            packed.ends_only = self.last_layer is not None and len(packed.ends) > 0
            hidden = run_packed(self.model, rows, packed)
            # A last layer that is compiled gives all tokens.
            return hidden if packed.ends_only and len(hidden) == len(packed.ends) else hidden[packed.ends]

    def forward(self, batch: PreferenceBatch) -> Tensor:
        """One state per response.

        Args:
            batch: Token batch, in either layout; of a batch with stored features these are returned.

        Returns:
            (R, H), in the backbone's dtype.

        Raises:
            ValueError: If the batch holds stored features although the backbone is trained, or rotary frequencies depend
                on the longest row and cannot be told apart.
        """
        if "features" in batch:
            if not self.frozen:
                raise ValueError(
                    "the batch holds stored features, but this backbone is trained: set backbone.frozen=true, or "
                    "loader.features=null"
                )
            return batch["features"]
        rows, chunks = self._passes(batch)
        if len(chunks) == 1:
            return self._pooled(rows)
        pooled = torch.cat([self._pooled(take_rows(rows, chunk)) for chunk in chunks])
        return pooled[row_order(chunks, pooled.device)]

    def read(self, batch: PreferenceBatch) -> BackboneOutput:
        """States of responses and of all tokens, from one pass.

        Args:
            batch: Token batch, in either layout.

        Returns:
            Both, and the rows that they are of; rows that ran in several passes are padded with zeros again.

        Raises:
            ValueError: If the batch holds stored features, or rotary frequencies depend on the longest row and cannot be
                told apart.
        """
        rows, chunks = self._passes(with_tokens(batch))
        if len(chunks) == 1:
            return BackboneOutput(*self._states(rows), rows)
        return _joined([self._states(take_rows(rows, chunk)) for chunk in chunks], rows, chunks)

    def pooled_with(self, batch: PreferenceBatch, adapters: Sequence[str | None]) -> Tensor:
        """One state per response under each of several adapters.

        Args:
            batch: Token batch, in either layout.
            adapters: Names, each costing a pass through the layers above the trunk; None for the network without any.

        Returns:
            (K, R, H), in the backbone's dtype.

        Raises:
            ValueError: As :meth:`read` does, or if there is no such adapter.
        """
        rows, chunks = self._passes(with_tokens(batch))
        each = self._each_with(rows, chunks, adapters, self._pooled)
        order = row_order(chunks, each[0][0].device) if len(chunks) > 1 else slice(None)
        return torch.stack([torch.cat(parts)[order] for parts in each])

    def read_with(self, batch: PreferenceBatch, adapters: Sequence[str | None]) -> list[BackboneOutput]:
        """What :meth:`read` gives under each of several adapters, at the cost of :meth:`pooled_with`.

        Args:
            batch: Token batch, in either layout.
            adapters: Names; None for the network without any of them.

        Raises:
            ValueError: As :meth:`read` does, or if there is no such adapter.
        """
        rows, chunks = self._passes(with_tokens(batch))
        each = self._each_with(rows, chunks, adapters, self._states)
        if len(chunks) == 1:
            return [BackboneOutput(*parts[0], rows) for parts in each]
        return [_joined(parts, rows, chunks) for parts in each]

    def _each_with(
        self,
        rows: PreferenceBatch,
        chunks: list[list[int]],
        adapters: Sequence[str | None],
        run: Callable[[PreferenceBatch, PackedRows | None], T],
    ) -> list[list[T]]:
        """For each adapter, what ``run`` gives for each chunk."""
        if self.adapters is None or not adapters:
            allowed = "none, for add_adapters was not called" if self.adapters is None else "at least one"
            raise ValueError(f"adapters {list(adapters)} were asked for; allowed: {allowed}")
        parts = [rows] if len(chunks) == 1 else [take_rows(rows, chunk) for chunk in chunks]
        places = [None if self.layout == "separate" else self._packed(part) for part in parts]
        by_chunk = [
            self.adapters.passes(adapters, partial(run, part, packed))
            for part, packed in zip(parts, places, strict=True)
        ]
        return [list(states) for states in zip(*by_chunk, strict=True)]

    def _states(self, rows: PreferenceBatch, packed: PackedRows | None = None) -> tuple[Tensor, Tensor]:
        """States of the responses and of all tokens of arranged rows, from one pass."""
        tokens = self.encode(rows, packed)
        return pool(tokens, rows, self.pooling), tokens

    def _passes(self, batch: PreferenceBatch) -> tuple[PreferenceBatch, list[list[int]]]:
        """The batch in the network's rows, and the groups of rows that are run apart; one group is all of them."""
        if (divided := self.frequencies.sides(batch)) is None:
            rows = self.arrange(batch)
            return rows, self._chunks(rows)
        sides, lengths = divided
        if not self.config.length_chunks:
            raise ValueError(
                f"the backbone's rotary frequencies change beyond {self.frequencies.switches[0]} tokens (rope_type longrope), "
                "so that shorter and longer rows run apart, which backbone.length_chunks=false forbids: set "
                f"data.text.max_length to at most {self.frequencies.switches[0]}, or backbone.length_chunks=true"
            )
        rows = batch if len(batch["input_ids"]) == len(lengths) else separate_rows(batch)
        rows = rows.copy()
        rows["row_lengths"] = lengths
        parts = [(side, length_chunks([lengths[row] for row in side])) for side in sides]
        return rows, [[side[i] for i in chunk] for side, chunks in parts for chunk in chunks]

    def _chunks(self, batch: PreferenceBatch) -> list[list[int]]:
        """Groups of separate rows that are run apart, so that a prompt's short responses carry no long padding."""
        if self.layout != "separate" or not self.config.length_chunks or "row_lengths" not in batch:
            return [[]]
        return length_chunks(batch["row_lengths"])


def _joined(
    parts: Sequence[tuple[Tensor, Tensor]], rows: PreferenceBatch, chunks: list[list[int]]
) -> BackboneOutput:
    """States of chunks as those of all rows, padded with zeros again."""
    width = rows["input_ids"].shape[1]
    tokens = [nn.functional.pad(states, (0, 0, 0, width - states.shape[1])) for _, states in parts]
    order = row_order(chunks, tokens[0].device)
    return BackboneOutput(torch.cat([pooled for pooled, _ in parts])[order], torch.cat(tokens)[order], rows)
