"""Rotary frequencies that depend on the longest row of a batch: rows are then run apart, so that a score stays a row's own.

transformers chooses the frequencies of ``longrope`` and ``dynamic`` from the largest position of what runs together. A row
would be read differently beside a long neighbour, and under ``dynamic`` also after one.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from pluralign.datamodules.batch import PreferenceBatch

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["FrequencyChanges"]


def _rotary_types(config: "PretrainedConfig") -> Iterator[tuple[str, int]]:
    """Each type of rotary positions that a network has, and the length in tokens at which it may change."""
    config = config.get_text_config()
    parameters: Mapping[str, Any] = getattr(config, "rope_parameters", None) or {}
    # One set of parameters, or one of each type of layer.
    each = [parameters] if "rope_type" in parameters else parameters.values()
    for values in each:
        if isinstance(values, Mapping):
            positions = config.max_position_embeddings
            yield values["rope_type"], values.get("original_max_position_embeddings") or positions


class FrequencyChanges(NamedTuple):
    """At which lengths a network's rotary frequencies change.

    A response is as long as its prompt and its own tokens.
    """

    switches: tuple[int, ...] = ()
    """Lengths, ascending, above which other frequencies hold (``longrope``)."""
    limit: int | None = None
    """Length above which they depend on the exact length (``dynamic``); None without such a type."""

    @classmethod
    def of(cls, config: "PretrainedConfig") -> Self:
        """Those of a network's configuration."""
        types = set(_rotary_types(config))
        limits = [config.get_text_config().max_position_embeddings for kind, _ in types if "dynamic" in kind]
        return cls(tuple(sorted({at for kind, at in types if kind == "longrope"})), min(limits, default=None))

    @property
    def vary(self) -> bool:
        """Whether frequencies depend on what runs together at all."""
        return bool(self.switches) or self.limit is not None

    def sides(self, batch: PreferenceBatch) -> tuple[list[list[int]], list[int]] | None:
        """Responses that may run together.

        A network without such frequencies reads nothing here; others read lengths from the device where ``row_lengths``
        do not tell, as they do themselves in every pass.

        Args:
            batch: Token batch in either layout.

        Returns:
            Numbers of the responses of each side of the switches, and all responses' lengths; None if there is one side.

        Raises:
            ValueError: If a response is longer than ``limit``.
        """
        bounds = [*self.switches, *([] if self.limit is None else [self.limit])]
        if not bounds or ("row_lengths" in batch and max(batch["row_lengths"], default=0) <= min(bounds)):
            return None
        ends = batch["position_ids"][batch["response_row"], batch["response_end"]]
        lengths: list[int] = (ends + 1).tolist()
        if self.limit is not None and max(lengths) > self.limit:
            raise ValueError(
                f"the backbone's rotary positions (rope_type dynamic) depend on the longest row of a batch beyond {self.limit} "
                f"tokens, and a response has {max(lengths)} with its prompt, so that scores would depend on its "
                f"neighbours: set data.text.max_length to at most {self.limit}"
            )
        sides = _grouped([bisect_left(self.switches, length) for length in lengths])
        return (sides, lengths) if len(sides) > 1 else None


def _grouped(labels: Sequence[int]) -> list[list[int]]:
    return [[i for i, label in enumerate(labels) if label == each] for each in sorted(set(labels))]
