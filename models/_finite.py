"""FiniteWatch: which batch first had a reward or a loss that is no finite number, found without a wait in every step."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor

from pluralign.datamodules.batch import RewardOutput

__all__ = ["BatchName", "Finding", "FiniteWatch", "finding_now", "message", "reads_freely"]

What = Literal["rewards", "loss", "weights"]

NEVER = 2**62
"""In place of the number of a batch that did not come."""

SHOWN = 8
"""Records that a message names."""


class BatchName(NamedTuple):
    """What a message says of a batch."""

    where: str
    """Such as ``step 12 (epoch 0, batch 12)``."""
    records: Sequence[str]
    """Ids of its records; empty if it has none."""

    def __str__(self) -> str:
        """Where it came and what was in it."""
        if not self.records:
            return f"{self.where}, whose batch names no records"
        names = ", ".join(map(repr, self.records[:SHOWN]))
        rest = len(self.records) - SHOWN
        return f"{self.where}, records {names}{f' and {rest} more' if rest > 0 else ''}"


def _values(output: RewardOutput) -> list[Tensor]:
    """What must be finite of a module's output: rewards, and probabilities of labels."""
    values = [output[name] for name in ("reward", "chosen", "rejected") if name in output]
    return [*values, output["labels"].probs] if "labels" in output else values


def _all_finite(values: Iterable[Tensor], device: torch.device) -> Tensor:
    flags = [value.detach().isfinite().all() for value in values]
    return torch.stack(flags).all() if flags else torch.ones((), dtype=torch.bool, device=device)


def _weight_flags(module: nn.Module) -> tuple[list[str], Tensor | None]:
    """Names of what is trained, and whether each is finite, (n,) bool; of sharded weights, what this rank has of them."""
    trained = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
    local = [weight.to_local() if isinstance(weight, DTensor) else weight for weight in trained.values()]
    flags = [weight.detach().isfinite().all() for weight in local]
    return list(trained), torch.stack(flags) if flags else None


class Finding(NamedTuple):
    """What was not finite."""

    what: What
    """What was so first."""
    batches: str
    """At which batch, or batches of several ranks, and what was in them."""
    weights: Sequence[str]
    """Trained weights that are not finite by now."""


def message(finding: Finding, *, precision: str, rate: float | None) -> str:
    """The message of a run that has met a number that is not finite.

    Args:
        finding: What was met, and where.
        precision: The trainer's.
        rate: Learning rate; None if nothing is trained.
    """
    what, batch, weights = finding
    state = {
        "rewards": f"rewards are NaN or infinite at {batch}",
        "loss": f"the loss is NaN or infinite, and the rewards are finite, at {batch}",
        "weights": f"trained weights are NaN or infinite after {batch}",
    }[what]
    lower = "lower the learning rate" + ("" if rate is None else f" (now {rate:g})")
    causes = [
        f"an update before was too large: {lower}, warm it up, or set trainer.gradient_clip_val (such as 1.0)"
    ]
    if weights:
        named = ", ".join(weights[:3]) + (f" and {len(weights) - 3} more" if len(weights) > 3 else "")
        state += f": {named}" if what == "weights" else f", and so are the weights {named}"
    elif what == "loss":
        causes.insert(0, "a margin, weight or share of these records is out of proportion")
    else:
        causes.append("features of these records are not finite, or float16 overflows (backbone.dtype)")
    if precision.startswith("16"):
        causes.insert(
            0, f"trainer.precision={precision} holds no number above 65,504: use bf16-mixed or 32-true"
        )
    return f"{state}. Likely causes: {'; '.join(causes)}"


def reads_freely(output: RewardOutput) -> bool:
    """Whether reading values of an output makes no device wait."""
    return all(value.device.type == "cpu" for value in _values(output))


def _is_finite(value: Tensor) -> bool:
    # A sum has what is not finite in it; a sum alone may also be too large.
    value = value.detach()
    return math.isfinite(float(value.sum())) or bool(value.isfinite().all())


def finding_now(
    module: nn.Module, output: RewardOutput, loss: Tensor | None, name: Callable[[], BatchName]
) -> Finding | None:
    """What of a batch is not finite, read at once.

    Args:
        module: What gave the output.
        output: What it said of the batch.
        loss: Of the batch; None before it is computed, when only the output is looked at.
        name: Says what the batch is called, if that is to be told.
    """
    if not all(map(_is_finite, _values(output))):
        what: What = "rewards"
    elif loss is not None and not _is_finite(loss):
        what = "loss"
    else:
        return None
    names, fine = _weight_flags(module)
    flags = [] if fine is None else fine.tolist()
    return Finding(what, str(name()), [weight for weight, flag in zip(names, flags, strict=True) if not flag])


class FiniteWatch:
    """Remembers on the device which training batch was the first one with a number that is not finite.

    Nothing is read before :meth:`look`, so a step costs a few small operations and no wait.
    """

    def __init__(self, remembered: int) -> None:
        """Begin with nothing seen.

        Args:
            remembered: Last batches whose records can be named.
        """
        self.first: Tensor | None = None
        self.batches: deque[tuple[int, BatchName]] = deque(maxlen=remembered)
        self.number = 0

    def note(self, output: RewardOutput, loss: Tensor, name: BatchName, *, fine: bool = False) -> None:
        """Take down a batch.

        Args:
            output: What the module said of it.
            loss: Its loss.
            name: What a message would say of it.
            fine: Whether it is known to be finite: it was read at once.
        """
        if self.first is None:
            self.first = torch.full((2,), NEVER, dtype=torch.int64, device=loss.device)
        if not fine:
            flags = torch.stack([_all_finite(_values(output), loss.device), loss.detach().isfinite().all()])
            self.first = torch.where(flags, self.first, self.first.clamp(max=self.number))
        self.batches.append((self.number, name))
        self.number += 1

    def look(self, module: nn.Module, num_ranks: int) -> Finding | None:
        """Read what was taken down, and whether trained weights are finite; the one place that waits for the device.

        Args:
            module: Whose weights.
            num_ranks: Ranks, all of which look after the same batch.

        Returns:
            What failed first; None if all was finite. Equal on all ranks.
        """
        if self.first is None:
            return None
        names, fine = _weight_flags(module)
        fit = self.first.new_full((1,), NEVER)
        if fine is not None:
            fit = torch.where(fine.all(), fit, fit.clamp(max=self.number))
        own = torch.cat([self.first, fit])
        over_ranks = own.clone()
        if num_ranks > 1:
            distributed.all_reduce(over_ranks, op=distributed.ReduceOp.MIN)
        mine, (rewards, loss, weights) = own.tolist(), over_ranks.tolist()
        earliest = min(rewards, loss, weights)
        if earliest == NEVER:
            return None
        name = dict(self.batches).get(min(earliest, self.number - 1))
        unfit = [] if fine is None else [n for n, flag in zip(names, fine.tolist(), strict=True) if not flag]
        here: tuple[str | None, list[str]] = (str(name) if min(mine) == earliest else None, unfit)
        told = [here]
        if num_ranks > 1:
            told = [here] * num_ranks
            distributed.all_gather_object(told, here)
        batches = [
            f"{text}, on rank {rank}" if num_ranks > 1 else text
            for rank, (text, _) in enumerate(told)
            if text is not None
        ]
        what: What = "rewards" if rewards == earliest else "loss" if loss == earliest else "weights"
        return Finding(what, "; ".join(batches), sorted({weight for _, part in told for weight in part}))
