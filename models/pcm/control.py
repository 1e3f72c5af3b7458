"""The control network: it reads prompt, stated preference and the text so far, and says how experts are weighed."""

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from ..backbone import Backbone
from .cached_rows import cache_argument

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["ControlHead", "ControlRun", "LeftRows", "beside", "with_poles"]


class LeftRows(NamedTuple):
    """Rows of tokens, padded on the left."""

    ids: Tensor
    """(N, L) int64."""
    mask: Tensor
    """(N, L) int64: 1 on tokens."""

    def take(self, index: Tensor) -> "LeftRows":
        """Some of the rows."""
        return LeftRows(self.ids.index_select(0, index), self.mask.index_select(0, index))


def beside(parts: list[LeftRows]) -> LeftRows:
    """Rows of several kinds below each other, padded to the longest."""
    width = max(part.ids.shape[1] for part in parts)
    pads = [(width - part.ids.shape[1], 0) for part in parts]
    ids = torch.cat([nn.functional.pad(part.ids, pad) for part, pad in zip(parts, pads, strict=True)])
    mask = torch.cat([nn.functional.pad(part.mask, pad) for part, pad in zip(parts, pads, strict=True)])
    unused = int((mask.sum(0) == 0).sum())  # what was as wide for the sake of other rows
    return LeftRows(ids[:, unused:], mask[:, unused:])


def with_poles(plain: LeftRows, asked: Tensor, first: int) -> LeftRows:
    """Rows that begin with a token for each dimension that is asked for.

    Args:
        plain: The rows.
        asked: (N, n) bool.
        first: Id of the token of dimension 0.
    """
    poles = first + torch.arange(asked.shape[1], device=asked.device).expand(asked.shape)
    ids, mask = torch.cat([poles, plain.ids], 1), torch.cat([asked.to(plain.mask), plain.mask], 1)
    order = torch.argsort(mask, dim=1, stable=True)  # padding moves to the left, tokens keep their order
    return beside([LeftRows(ids.gather(1, order), mask.gather(1, order))])


class ControlHead(nn.Module):
    """Logits of the experts' weights from a network's states, float32; zero at first, so that all weigh alike."""

    def __init__(self, hidden_size: int, num_experts: int) -> None:
        """Build it.

        Args:
            hidden_size: H.
            num_experts: n.
        """
        super().__init__()
        self.linear = nn.Linear(hidden_size, num_experts)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, states: Tensor) -> Tensor:
        """Logits, (..., n), of states, (..., H)."""
        with torch.autocast(states.device.type, enabled=False):
            logits: Tensor = self.linear(states.float())
        return logits


@contextmanager
def _own_attention(network: "PreTrainedModel") -> Iterator[None]:
    """The library's attention while a network reads with a cache: that of a backbone's rows knows none."""
    config, before = network.config, network.config._attn_implementation
    if before not in ("eager", "sdpa"):
        config._attn_implementation = "sdpa"
    try:
        yield
    finally:
        config._attn_implementation = before


class ControlRun:
    """S rows that the control network reads on, with a cache of its own.

    Attributes:
        states: (S', H): state of each row's last token.
    """

    def __init__(self, backbone: Backbone, rows: LeftRows) -> None:
        """Read the prompts.

        Args:
            backbone: The network, in evaluation mode.
            rows: Its prompts.
        """
        from transformers import DynamicCache

        network: PreTrainedModel = getattr(backbone.model, "get_base_model", lambda: backbone.model)()  # type: ignore[assignment]  # within PEFT's wrapper
        self.network, self.cache = network, DynamicCache(config=network.config)
        parameters = signature(network.forward).parameters
        self.cache_name = cache_argument(network)  # renamed in transformers 5.24
        self.takes_positions = "position_ids" in parameters
        self.mask = rows.mask
        positions = (rows.mask.cumsum(1) - 1).clamp(min=0)
        self.position = positions[:, -1:]
        self.states = self._read(rows.ids, positions)
        if self.cache.get_seq_length() != rows.ids.shape[1]:
            raise RuntimeError(
                f"{type(network).__name__} does not fill its cache, and cannot go on from a text"
            )

    @torch.no_grad()
    def _read(self, ids: Tensor, positions: Tensor) -> Tensor:
        inputs: dict[str, object] = {
            "input_ids": ids,
            "attention_mask": self.mask,
            self.cache_name: self.cache,
        }
        if self.takes_positions:
            inputs["position_ids"] = positions
        with _own_attention(self.network):
            states: Tensor = self.network(**inputs, use_cache=True).last_hidden_state
        return states[:, -1]

    def advance(self, tokens: Tensor) -> None:
        """Read the next token of each row, (S',) int64."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], 1)
        self.position = self.position + 1
        self.states = self._read(tokens[:, None], self.position)

    def keep(self, rows: Tensor) -> None:
        """Go on with some rows alone."""
        self.cache.batch_select_indices(rows)
        self.mask, self.position, self.states = self.mask[rows], self.position[rows], self.states[rows]
