"""StepWeights: what the batches of one optimiser step weigh, over ranks and accumulated batches."""

import torch
from torch import Tensor, distributed
from torch.optim import Optimizer

__all__ = ["StepWeights", "weight_total"]


def weight_total(weight: Tensor | None, number: int, device: torch.device) -> Tensor:
    """What a weighted mean is divided by, a scalar: the sum of the weights, or the number of items without any.

    Args:
        weight: Of the items, (items,); None for equal ones.
        number: Of the items.
        device: Where the result is made; nothing is copied there.
    """
    # Millions of items still count one by one; Apple's devices have no float64.
    dtype = torch.float32 if device.type == "mps" else torch.float64
    if weight is not None:
        return weight.detach().sum(dtype=dtype)
    return torch.full((), number, dtype=dtype, device=device)


class StepWeights:
    r"""Makes the gradient of an optimiser step that of the mean over everything the step has seen.

    Batch j of rank r has a loss :math:`l_{rj}`, a mean with denominator :math:`d_{rj}`: so many items, or so much of
    their weights. Trainers add up :math:`l_{rj} / (A R)` over A accumulated batches and R ranks, so that an item of a
    batch with few others weighs more than one of a batch with many. What is wanted is

    .. math:: \sum_{rj} d_{rj} l_{rj} \Big/ \sum_{rj} d_{rj}

    The sum of all denominators is not known before the last batch of a step is. So losses are multiplied by
    :math:`R d_{rj} / D_1`, where D_1 is the sum over the ranks of the step's first batch, and in the end gradients by
    :math:`A D_1 / \sum_j D_j`, which is 1 and left out where nothing is accumulated. Weights add up to one: a penalty
    that is no mean over items keeps the weight that it has in one batch.

    Each batch costs one sum of a number over the ranks, asynchronous until the loss is there; the host waits for no device.
    """

    def __init__(self) -> None:
        """Begin with no step under way."""
        self.reset()

    def reset(self) -> None:
        """Forget a step that was not finished."""
        self._first: Tensor | None = None
        self._total: Tensor | None = None
        self._batches = 0
        self._denominator: Tensor | None = None
        self._sum: Tensor | None = None
        self._work: distributed.Work | None = None

    @property
    def batches(self) -> int:
        """Batches of the step under way."""
        return self._batches

    def begin_batch(self, denominator: Tensor, num_ranks: int) -> None:
        """Start to add a batch's denominator up over the ranks.

        Args:
            denominator: d, a scalar >= 0, on the device of the losses.
            num_ranks: R; each of them calls this in the same order.
        """
        self._denominator = denominator.detach()
        self._sum, self._work = self._denominator, None
        if num_ranks > 1:
            self._sum = self._denominator.clone()
            # Without the group's barrier, which Lightning's own reduction has, and which waits for the device.
            self._work = distributed.all_reduce(self._sum, async_op=True)

    def scaled(self, loss: Tensor, num_ranks: int) -> Tensor:
        """The loss of the batch that was begun, scaled as above.

        Args:
            loss: l, a scalar.
            num_ranks: R.
        """
        assert self._denominator is not None and self._sum is not None  # begin_batch came first
        if self._work is not None:
            self._work.wait()  # of a GPU only its queue waits
            self._work = None
        if self._first is None or self._total is None:
            # The unit that losses are in until the step ends; any number that all ranks share would do.
            self._first = torch.where(self._sum > 0, self._sum, torch.ones_like(self._sum))
            self._total = self._sum
        else:
            self._total = self._total + self._sum
        self._batches += 1
        return loss * (self._denominator * num_ranks / self._first).to(loss.dtype)

    @torch.no_grad()
    def end_step(self, optimizer: Optimizer, accumulated: int) -> None:
        """Scale the gradients as above; a step is over.

        Args:
            optimizer: Whose parameters have the gradients.
            accumulated: A, by which losses were divided, however many batches there were.
        """
        first, total = self._first, self._total
        self.reset()
        if first is None or total is None or accumulated == 1:
            return
        factor = torch.where(total > 0, first * accumulated / total, torch.ones_like(total))
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.mul_(factor.to(parameter.grad.device))
