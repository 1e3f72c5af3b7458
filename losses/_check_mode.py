"""When the values of arguments are read, and the base of losses as modules, which read those of their first call."""

import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

CheckMode = Literal["auto", "always", "never"]

_CHECK_MODES = ("auto", "always", "never")
_check_mode: CheckMode = "auto"


class _Blocks(threading.local):
    """What a thread is in: other threads go on checking as they do."""

    inside: Literal["first call", "later call"] | None = None


_blocks = _Blocks()


def reads_values(tensor: Tensor) -> bool:
    """Whether the values of a tensor may be read now."""
    # First of all: a graph must not be made anew where the setting is another one.
    if torch.compiler.is_compiling() or _check_mode == "never":
        return False
    if _check_mode == "always":
        return True
    return tensor.device.type == "cpu" and _blocks.inside != "later call"


class argument_checks:
    """Say when the *values* of arguments are checked; shapes, types and plain numbers always are.

    Reading a value makes the host wait for the device, so the default reads CPU tensors only:

    - ``"auto"``: check eager CPU tensors; skip other devices. Functions check every call; modules and the steps
      of reward modules the first of many (:class:`ArgumentChecksOnce`).
    - ``"always"``: check every eager tensor of every call, also on an accelerator (one wait per check): for debugging.
    - ``"never"``: check no values.

    Under ``torch.compile`` no value is ever checked, nor where values cannot be read (``torch.func.vmap``,
    meta and fake tensors). The setting holds for the process from the moment of the call; used in a
    ``with`` statement, the former setting comes back at the end.

    Args:
        mode: One of the three settings.

    Raises:
        ValueError: If ``mode`` is none of them.

    Example:
        >>> import torch
        >>> from pluralign.losses import argument_checks, bradley_terry_loss
        >>> with argument_checks("never"):
        ...     bradley_terry_loss(torch.tensor([float("nan")]), torch.tensor([0.0]))
        tensor(nan)

    .. versionadded:: 0.1
    """

    def __init__(self, mode: CheckMode) -> None:
        """Switch to ``mode`` at once."""
        global _check_mode
        if mode not in _CHECK_MODES:
            raise ValueError(f"mode must be one of {', '.join(map(repr, _CHECK_MODES))}; got {mode!r}")
        self._former: CheckMode = _check_mode
        _check_mode = mode

    def __enter__(self) -> Self:
        """Keep the setting until the block ends."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Bring the former setting back."""
        global _check_mode
        _check_mode = self._former


class ArgumentChecksOnce:
    """Check argument values in the first of many like calls, and no longer in those that follow.

    What a training loop gets wrong (logits for probabilities, a share beyond one) is wrong in its first batch, and
    reading every value of every batch can take longer than the loss. Blocks nest: inside a first call everything is
    checked, inside a later one nothing is; other threads are not concerned. Where :class:`argument_checks` says
    ``"always"`` or ``"never"``, that holds.

    Example:
        >>> import torch
        >>> from pluralign.losses import ArgumentChecksOnce, bradley_terry_loss
        >>> checks = ArgumentChecksOnce()
        >>> for reward in (0.0, float("nan")):
        ...     with checks.of("training"):
        ...         bradley_terry_loss(torch.tensor([reward]), torch.tensor([0.0]))
        tensor(0.6931)
        tensor(nan)

    .. versionadded:: 0.1
    """

    def __init__(self) -> None:
        """Begin with nothing checked."""
        self._checked: set[Hashable] = set()

    def reset(self) -> None:
        """Check the next call of every kind: what comes now is something else."""
        self._checked.clear()

    @contextmanager
    def of(self, kind: Hashable) -> Iterator[None]:
        """Run a block with checks if it is the first of its kind, otherwise without; one that raises does not count.

        Args:
            kind: What calls that are alike have in common, such as the name of a stage.
        """
        if torch.compiler.is_compiling() or _check_mode != "auto" or _blocks.inside is not None:
            yield
            return
        checked = kind in self._checked
        _blocks.inside = "later call" if checked else "first call"
        try:
            yield
        finally:
            _blocks.inside = None
        if not checked:
            self._checked.add(kind)


class LossModule(nn.Module):
    """Base of losses as modules: argument values are checked in the first call in training and in evaluation."""

    def __init__(self) -> None:
        """Begin with no call checked."""
        super().__init__()
        self._argument_checks = ArgumentChecksOnce()

    def __call__(self, *args: object, **kwargs: object) -> Any:  # noqa: ANN401  as torch has it
        """Call ``forward``, with its hooks."""
        if torch.compiler.is_compiling():  # which checks nothing
            return super().__call__(*args, **kwargs)
        with self._argument_checks.of(self.training):
            return super().__call__(*args, **kwargs)
