"""Rows of tokens that a network reads on with a cache, and rows that several networks read, each its own."""

from collections.abc import Callable, Sequence
from inspect import signature
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from .experts import ExpertRun

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["CachedRows", "RowNetwork", "SeparateRows", "cache_argument", "rows_by_expert"]


class RowNetwork(Protocol):
    """A network that may treat each row of a batch in a way of its own."""

    def __call__(self, **inputs: object) -> Tensor:
        """Logits, (M, positions, V), of the inputs of transformers' causal language models."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Go on with rows, (M',) int64; one may be there several times."""
        ...


def cache_argument(model: "PreTrainedModel") -> str:
    """What a network's ``forward`` calls its cache: ``past_key_values`` before transformers 5.24, ``cache`` since."""
    names = signature(model.forward).parameters
    return "cache" if "cache" in names else "past_key_values"


class CachedRows(ExpertRun):
    """M rows in one cache, read by one network; rows are padded on the left, and positions are explicit.

    Some widths are quicker than others: rows can be filled up to a multiple with copies of the first one, which no one sees.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        network: RowNetwork,
        input_ids: Tensor,
        attention_mask: Tensor,
        *,
        multiple: int = 1,
    ) -> None:
        """Read prompts.

        Args:
            model: The network beneath all wrappers: its cache and its head.
            network: What is called.
            input_ids: (M, L) int64.
            attention_mask: (M, L) int64.
            multiple: Of rows, once the prompts are read.
        """
        from transformers import DynamicCache

        self.network, self.multiple, self.count = network, multiple, len(input_ids)
        self.head: nn.Module | None = model.get_output_embeddings()
        self.cache = DynamicCache(config=model.config)
        self.cache_name = cache_argument(model)
        self.last_alone = "logits_to_keep" in signature(model.forward).parameters
        self.mask = attention_mask
        positions = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
        self.position = positions[:, -1:]
        self._read(input_ids, positions)
        if self.cache.get_seq_length() != input_ids.shape[1]:
            raise RuntimeError(
                f"{type(model).__name__} does not fill the cache that it is given ({self.cache_name}=): another version of "
                "transformers may"
            )
        if self.count % multiple:
            self._take(torch.arange(self.count, device=input_ids.device))

    @torch.no_grad()
    def _read(self, tokens: Tensor, positions: Tensor) -> None:
        """Read (M, T) tokens; states and log-probabilities are of what follows the last one."""
        inputs: dict[str, object] = {"logits_to_keep": 1} if self.last_alone else {}
        inputs[self.cache_name] = self.cache
        seen: list[Tensor] = []

        def look(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            seen.append(arguments[0][:, -1])

        hook = None if self.head is None else self.head.register_forward_pre_hook(look)
        try:
            logits = self.network(
                input_ids=tokens,
                attention_mask=self.mask,
                position_ids=positions,
                use_cache=True,
                **inputs,
            )
        finally:
            if hook is not None:
                hook.remove()
        self.states = seen[-1][: self.count] if seen else None
        self.log_probs = logits[: self.count, -1].float().log_softmax(dim=-1)

    def advance(self, tokens: Tensor) -> None:
        """Read on; see the base class."""
        if missing := len(self.mask) - self.count:
            tokens = torch.cat([tokens, tokens[:1].expand(missing)])
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        self.position = self.position + 1
        self._read(tokens[:, None], self.position)

    def keep(self, rows: Tensor) -> None:
        """Go on with some rows; see the base class."""
        self.count = len(rows)
        self.log_probs = self.log_probs[rows]
        self.states = None if self.states is None else self.states[rows]
        if self.count:
            self._take(rows)

    def _take(self, rows: Tensor) -> None:
        """Go on with rows, and copies of the first of them up to the multiple."""
        rows = torch.cat([rows, rows[:1].expand(-len(rows) % self.multiple)])
        self.cache.batch_select_indices(rows)
        self.mask, self.position = self.mask[rows], self.position[rows]
        self.network.keep(rows)


class SeparateRows(ExpertRun):
    """M rows in several runs, one after the other."""

    def __init__(
        self, runs: Sequence[ExpertRun], places: Sequence[Sequence[int]], device: torch.device
    ) -> None:
        """Put them together.

        Args:
            runs: Each of some of the rows.
            places: Which rows these are; each row is in one run.
            device: Of the rows.
        """
        self.runs, self.places, self.device = list(runs), [list(rows) for rows in places], device
        self._gather()

    def _gather(self) -> None:
        """Log-probabilities and states in the order of the rows."""
        self.index = [torch.tensor(rows, device=self.device) for rows in self.places]
        self._order = torch.cat(self.index).argsort()
        self._put()

    def _put(self) -> None:
        self.log_probs = torch.cat([run.log_probs for run in self.runs])[self._order]
        states = [run.states for run in self.runs if run.states is not None]
        alike = len(states) == len(self.runs) and len({part.shape[1:] for part in states}) == 1
        self.states = torch.cat(states)[self._order] if alike else None

    def advance(self, tokens: Tensor) -> None:
        """Read on; see the base class."""
        for run, index in zip(self.runs, self.index, strict=True):
            run.advance(tokens[index])
        self._put()

    def keep(self, rows: Tensor) -> None:
        """Go on with some rows; see the base class."""
        now = {row: place for place, row in enumerate(rows.tolist())}
        if not now:
            self.log_probs = self.log_probs[:0]
            self.states = None if self.states is None else self.states[:0]
            self.runs, self.places, self.index = [], [], []
            return
        runs: list[ExpertRun] = []
        places: list[list[int]] = []
        for run, before in zip(self.runs, self.places, strict=True):
            left = [i for i, row in enumerate(before) if row in now]
            if left:
                left.sort(key=lambda i: now[before[i]])
                if left != list(range(len(before))):
                    run.keep(torch.tensor(left, device=self.device))
                runs.append(run)
                places.append([now[before[i]] for i in left])
        self.runs, self.places = runs, places
        self._gather()


def rows_by_expert(
    input_ids: Tensor,
    attention_mask: Tensor,
    expert: Sequence[int],
    begin: Callable[[int, Tensor, Tensor], ExpertRun],
) -> SeparateRows:
    """A run of its own for each expert that has rows.

    Args:
        input_ids: (M, L) int64.
        attention_mask: (M, L) int64.
        expert: M numbers.
        begin: From an expert's number, and ids and mask of its rows, to their run.
    """
    places = [[row for row, number in enumerate(expert) if number == own] for own in sorted(set(expert))]
    runs = []
    for rows in places:
        index = torch.tensor(rows, device=input_ids.device)
        runs.append(begin(expert[rows[0]], input_ids[index], attention_mask[index]))
    return SeparateRows(runs, places, input_ids.device)
