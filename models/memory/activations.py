"""Bytes that a training step holds besides weights, gradients and state: the step runs on tensors without data.

Nothing is derived for each architecture: two shallow networks of the same layers run forward and backward under
:class:`LiveBytes`, on tensors that know their shapes alone, and what a layer adds is the difference between them. So
attention by pieces, adapters, recomputed layers and autocast count as they are.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from pluralign.datamodules.batch import PreferenceBatch

from ..backbone import Backbone, BackboneConfig, PackedRows, packed_rows, separate_rows
from .live_bytes import LiveBytes
from .networks import bare, depth_of, shallow

__all__ = ["Activations", "Rows", "count_activations"]

DEPTHS = (2, 3)
"""Layers of the two networks: the last layer may run for the responses' ends alone, so one would not do."""
PLACES = ("cells", "ends", "segments", "positions", "rows")
CHUNK = 128
"""Tokens whose logits a language-model head has at a time."""


@dataclass(frozen=True)
class Rows:
    """The rows of a batch, all alike: half of each is a prompt, the rest its responses, of equal lengths.

    Attributes:
        length: Tokens of a row; of separate rows, of a prompt with one response.
        responses: Of a prompt, >= 2.
    """

    length: int
    responses: int = 2

    def batch(self, number: int) -> PreferenceBatch:
        """So many rows, in the shared layout."""
        own = max(1, self.length // (2 * self.responses))
        prefix = max(1, self.length - own * self.responses)
        return _batch(number, prefix, [own] * self.responses)

    def apart(self, number: int) -> PreferenceBatch:
        """Rows of one response each, two for each of so many prompts."""
        batch = separate_rows(_batch(number, self.length - self.length // 2, [self.length // 2] * 2))
        batch["row_lengths"] = [self.length] * (2 * number)
        return batch


@dataclass(frozen=True)
class Activations:
    """Bytes of a step by its tokens: ``fixed + per_token * tokens``.

    Attributes:
        fixed: Whatever the batch: what a layer's gradients take before they are added up, and the like.
        per_token: Of each token of the batch.
        layout: Of the rows that the network takes: ``shared`` rows count a prompt once.
    """

    fixed: float
    per_token: float
    layout: str

    def of(self, tokens: int) -> int:
        """Bytes of a step over so many tokens."""
        return round(self.fixed + self.per_token * tokens)


def count_activations(
    config: BackboneConfig,
    rows: Rows,
    *,
    autocast: torch.dtype | None = None,
    vocabulary_head: bool = False,
) -> Activations:
    """Most bytes that one pass forward and backward holds, besides weights and gradients.

    Args:
        config: Which network, in which state.
        rows: What batches are made of.
        autocast: Dtype of mixed precision; None without.
        vocabulary_head: Whether a language-model head reads every token, a chunk at a time.
    """
    plain = bare(config)
    depth = depth_of(_configuration(plain))
    if config.lora is not None and config.lora.last_layers is not None:
        depth = min(depth, config.lora.last_layers)  # nothing is kept of layers beneath
    depths = DEPTHS if depth >= DEPTHS[-1] else (max(1, depth),)
    found = [_Trial(shallow(plain, each), autocast) for each in depths]
    tokens, peaks = [], []
    for number in (1, 2):
        measured = [trial.peak(rows, number) for trial in found]
        layer = measured[1][1] - measured[0][1] if len(measured) > 1 else 0
        tokens.append(measured[0][0])
        peaks.append(measured[0][1] + layer * (depth - depths[0]))
    slope = (peaks[1] - peaks[0]) / (tokens[1] - tokens[0])
    fixed = peaks[0] - slope * tokens[0]
    if vocabulary_head:
        head = getattr(_configuration(plain).get_text_config(), "vocab_size", 0)
        width = found[0].backbone.hidden_size
        fixed += 2 * CHUNK * head * 4 + (0 if config.frozen or config.lora else head * width * 4)
    return Activations(fixed, slope, found[0].backbone.layout)


def _configuration(config: BackboneConfig) -> Any:  # noqa: ANN401  transformers' own
    from ..backbone import network_config

    return network_config(config)


class _Trial:
    """A shallow network without data."""

    def __init__(self, config: BackboneConfig, autocast: torch.dtype | None) -> None:
        from torch._subclasses.fake_tensor import FakeTensorMode

        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.autocast = autocast
        with torch.device("meta"):
            self.backbone = Backbone(config)
            self.head = nn.Linear(self.backbone.hidden_size, 1, bias=False)
        with self.mode:
            self.backbone.to_empty(device="cpu")
            self.head.to_empty(device="cpu")
            for part in self.backbone.modules():
                if isinstance(part, nn.Embedding):  # its gradient, made last, would hide what layers hold
                    part.requires_grad_(False)
            for each in [*self.backbone.parameters(), *self.head.parameters()]:
                if each.requires_grad:  # of the step before: it is there until the next pass backward begins
                    each.grad = torch.zeros_like(each)

    def peak(self, rows: Rows, number: int) -> tuple[int, int]:
        """Tokens of so many rows, and the most bytes of a step over them."""
        shared = self.backbone.layout == "shared"
        batch = rows.batch(number) if shared else rows.apart(number)
        tokens = batch["input_ids"].numel()
        places = packed_rows(batch) if shared else None
        if places is not None:
            places = self._without_data(places)
            self._settle_plans(places)
        with self.mode:
            batch = cast(PreferenceBatch, {name: self._fake(value) for name, value in batch.items()})
            live = LiveBytes()
            with live:
                self._step(batch, places)
        return tokens, live.peak

    def _fake(self, value: object) -> object:
        return self.mode.from_tensor(value) if isinstance(value, Tensor) else value

    def _without_data(self, places: PackedRows) -> PackedRows:
        fakes: dict[str, Any] = {name: self._fake(getattr(places, name)) for name in PLACES}
        return replace(places, **fakes, together=False)

    def _settle_plans(self, places: PackedRows) -> None:
        """Have everything worked out that attention reads from tensors, which have no data to read later."""
        window = getattr(self.backbone.model.config, "sliding_window", None)
        for each in {None, window if isinstance(window, int) else None}:
            for plan in (places.plan, places.ends_plan):
                plan.groups(each, torch.device("cpu"))

    def _step(self, batch: PreferenceBatch, places: PackedRows | None) -> None:
        with self._mixed():
            states = self.backbone._pooled(batch, places)
            rewards = self.head(states.float()).squeeze(-1)
            loss = nn.functional.softplus(rewards[1::2] - rewards[0::2]).mean()
        del states, rewards
        loss.backward()

    def _mixed(self) -> AbstractContextManager[object]:
        if self.autocast is None:
            return nullcontext()
        return torch.autocast("cpu", dtype=self.autocast, cache_enabled=False)


def _batch(number: int, prefix: int, own: list[int]) -> PreferenceBatch:
    segments = torch.cat([torch.full((size,), i) for i, size in enumerate([prefix, *own])])
    positions = torch.cat([torch.arange(prefix), *(prefix + torch.arange(size) for size in own)])
    ends = torch.tensor(own).cumsum(0) + prefix - 1
    return PreferenceBatch(
        input_ids=torch.zeros(number, prefix + sum(own), dtype=torch.int64),
        position_ids=positions.repeat(number, 1),
        segment_ids=segments.repeat(number, 1),
        segment_lengths=[[prefix, *own]] * number,
        row_lengths=[prefix + sum(own)] * number,
        response_row=torch.arange(number).repeat_interleave(len(own)),
        response_end=ends.repeat(number),
    )
