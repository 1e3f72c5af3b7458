"""The last layer where states of the responses' ends are all that is asked for: the rest of it is not computed.

Its keys and values are those of all tokens; queries, what follows attention, and the feed-forward part run for the ends.
"""

from typing import cast

import torch
from torch import Tensor, nn

from .packing import KeysKnown, PackedRows

__all__ = ["LastLayer"]


class LastLayer:
    """Stands in for ``forward`` of a network's last layer, and runs it as it is unless ``packed`` asks for ends alone.

    The layer runs twice, whatever it is made of: over all tokens up to its attention, which takes keys and values and
    leaves, and over the ends alone, where attention gets those keys and values in place of the ends' own.
    """

    def __init__(self, layer: nn.Module) -> None:
        """Take the place of ``layer.forward``.

        Args:
            layer: The layer.
        """
        self.layer = layer
        layer.__dict__["forward"] = self

    def leave(self) -> None:
        """Give ``forward`` back."""
        del self.layer.__dict__["forward"]

    def __call__(self, hidden: Tensor, *others: object, **named: object) -> object:
        """The layer's output for all tokens, or for the responses' ends alone.

        Args:
            hidden: (1, T, H).
            *others: What else the network hands to its layers.
            **named: Likewise; ``packed`` is :class:`PackedRows`.
        """
        packed = named.pop("packed", None)
        if not isinstance(packed, PackedRows):
            return self._run(hidden, *others, **named)
        if not packed.ends_only or torch.compiler.is_compiling():
            return self._run(hidden, *others, packed=packed, **named)
        # Its activations are the first that the backward pass needs: to compute them anew would save no memory.
        checkpointed = getattr(self.layer, "gradient_checkpointing", False)
        if checkpointed:
            self.layer.__dict__["gradient_checkpointing"] = False
        try:
            return self._run_ends(packed, hidden, *others, **named)
        finally:
            if checkpointed:
                self.layer.__dict__["gradient_checkpointing"] = True

    def _run_ends(self, packed: PackedRows, hidden: Tensor, *others: object, **named: object) -> object:
        if hidden.shape[:-1] != (
            1,
            len(packed.cells),
        ):  # on a GPU, places that are not there would end the process
            raise ValueError(f"the last layer takes states of shape {tuple(hidden.shape)}")
        found: list[Tensor] = []
        try:
            self._run(hidden, *others, packed=packed.after_keys(found), **named)
        except KeysKnown:
            pass
        tokens, ends = hidden.shape[1], packed.ends

        def at_ends(value: object) -> object:
            if isinstance(value, tuple):
                return tuple(at_ends(part) for part in value)
            per_token = isinstance(value, Tensor) and value.ndim > 1 and value.shape[1] == tokens
            return cast(Tensor, value).index_select(1, ends) if per_token else value

        return self._run(
            hidden.index_select(1, ends),
            *(at_ends(value) for value in others),
            packed=packed.at_ends(*found),
            **{name: at_ends(value) for name, value in named.items()},
        )

    def _run(self, *inputs: object, **named: object) -> object:
        return type(self.layer).forward(self.layer, *inputs, **named)
