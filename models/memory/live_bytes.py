"""LiveBytes: how many bytes of tensors a piece of work holds at once, on any device and on none."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["LiveBytes"]


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operations make while it is entered, from their birth to their end.

    What was there before counts as nothing; views share a storage, which counts once. The backward pass counts where it runs
    in the thread that called it, as on the CPU. Tensors without data count what they would take. What a kernel needs inside
    of one operation is not seen.

    Attributes:
        now: Bytes that are alive.
        peak: The most that were alive at once since it was made, or since :meth:`reset_peak`.
    """

    def __init__(self) -> None:
        """Begin at nothing."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: dict[int, int] = {}

    def reset_peak(self) -> None:
        """Forget how many there were before."""
        self.peak = self.now

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        """Run an operation and count what it makes."""
        named = kwargs or {}
        result = func(*args, **named)
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        new = [leaf for leaf in made if leaf.untyped_storage()._cdata not in self._known]
        if not new:
            return result
        given = {
            leaf.untyped_storage()._cdata for leaf in tree_leaves((args, named)) if isinstance(leaf, Tensor)
        }
        for leaf in new:
            storage = leaf.untyped_storage()
            key = storage._cdata
            if key not in given and key not in self._known:
                self._known[key] = storage.nbytes()
                self.now += storage.nbytes()
                weakref.finalize(storage, self._end, key)
        self.peak = max(self.peak, self.now)
        return result

    def _end(self, key: int) -> None:
        self.now -= self._known.pop(key)
