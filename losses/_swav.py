"""SwAV: views predict each other's assignment to prototypes that are used about equally."""

import math

import torch
from torch import Tensor, distributed, nn

from ._check_mode import LossModule
from ._common import (
    Reduction,
    as_compute,
    check_distribution,
    check_mask,
    check_number,
    check_same_shape,
    check_values,
    reduce_loss,
    unit_vector,
)


@torch.no_grad()
def sinkhorn_assignment(
    scores: Tensor, *, epsilon: float = 0.05, num_iterations: int = 3, mask: Tensor | None = None
) -> Tensor:
    r"""Soft assignment of rows to prototypes that uses all prototypes about equally; without gradient.

    .. math:: q \propto \exp(s / \epsilon) \quad \text{scaled so that rows sum to 1, columns to about}\ N / K

    Args:
        scores: Similarity of rows and prototypes, (N, K).
        epsilon: Softness, > 0.
        num_iterations: Alternating scalings, >= 1; rows come last, so that their sums are exact.
        mask: Rows that take part in balancing the columns, (N,) bool; the others are assigned only.

    Returns:
        Assignment, (N, K), float32 (float64 for float64 scores).

    Raises:
        ValueError: If a setting is outside its range or a score is not finite.

    Source:
        Caron et al., *Unsupervised Learning of Visual Features by Contrasting Cluster Assignments*, NeurIPS
        2020, section 3.1 and listing in the appendix, https://arxiv.org/abs/2006.09882. Departures: log
        domain; mask.

    .. versionadded:: 0.1
    """
    check_number("epsilon", epsilon, 0.0, open_low=True)
    check_number("num_iterations", num_iterations, 1)
    check_values("scores", scores)
    (logits,) = as_compute(scores)
    logits = logits / epsilon
    for _ in range(num_iterations):
        rows = logits if mask is None else logits.masked_fill(~mask.unsqueeze(-1), -torch.inf)
        total = rows.logsumexp(0, keepdim=True)
        logits = (logits - total.clamp_min(torch.finfo(logits.dtype).min)).log_softmax(-1)
    return logits.exp()


def swav_loss(
    first: Tensor,
    second: Tensor,
    prototypes: Tensor,
    first_assignment: Tensor,
    second_assignment: Tensor,
    *,
    temperature: float = 0.1,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Each view should predict the prototype that the other view is assigned to.

    .. math::
        L = \ell(h', q) + \ell(h, q'), \qquad \ell(h, q) = -\sum_k q_k \log p_k, \qquad
        p = \mathrm{softmax}\Big(\frac{\cos(h, c_k)}{\tau}\Big)

    Args:
        first: One view h, (N, H).
        second: The other view h' of the same rows, (N, H).
        prototypes: Prototypes c, (K, H).
        first_assignment: q of the first view, (N, K), see :func:`sinkhorn_assignment`.
        second_assignment: q' of the second view, (N, K).
        temperature: tau > 0.
        weight: Weights >= 0 of the rows, (N,).
        reduction: ``"mean"`` (weighted), ``"sum"`` or ``"none"``.

    Returns:
        Loss >= 0, scalar or (N,).

    Raises:
        ValueError: If shapes do not fit, a value is not finite, an assignment is no distribution,
            ``temperature`` <= 0, or ``reduction`` is unknown.

    Source:
        Wang et al., *Secrets of RLHF in Large Language Models Part II: Reward Modeling*, 2024, equations 7
        and 8, https://arxiv.org/abs/2401.06080; Caron et al., 2020, equation 2,
        https://arxiv.org/abs/2006.09882. Departures: none; unit-length features and prototypes and the
        temperature (SwAV's own) are our reading.

    .. versionadded:: 0.1
    """
    check_views(first, second)
    check_number("temperature", temperature, 0.0, open_low=True)
    if prototypes.ndim != 2 or prototypes.shape[1] != first.shape[1]:
        raise ValueError(f"prototypes must be of shape (K, {first.shape[1]}); got {tuple(prototypes.shape)}")
    check_values("prototypes", prototypes)
    expected = (first.shape[0], prototypes.shape[0])
    for name, assignment in (
        ("first_assignment", first_assignment),
        ("second_assignment", second_assignment),
    ):
        if assignment.shape != expected:
            raise ValueError(f"{name} must be of shape {expected}; got {tuple(assignment.shape)}")
        check_distribution(name, assignment)
    one, two, centres = as_compute(first, second, prototypes)
    log_one = (_cosine(one, centres) / temperature).log_softmax(-1)
    log_two = (_cosine(two, centres) / temperature).log_softmax(-1)
    loss = -(first_assignment.to(one.dtype) * log_two + second_assignment.to(one.dtype) * log_one).sum(-1)
    return reduce_loss(loss, reduction, weight)


def check_views(first: Tensor, second: Tensor) -> None:
    """Raise ``ValueError`` unless both views are finite (N, H)."""
    check_same_shape(first=first, second=second)
    if first.ndim != 2:
        raise ValueError(f"first must be of shape (N, H); got {tuple(first.shape)}")
    check_values("first", first)
    check_values("second", second)


def check_row_mask(mask: Tensor, number: int) -> None:
    """Raise ``ValueError`` unless there is one value for each row, ``TypeError`` unless they are boolean."""
    check_mask(mask)
    if mask.shape != (number,):
        raise ValueError(f"mask must be of shape ({number},); got {tuple(mask.shape)}")


def masked_weight(weight: Tensor | None, mask: Tensor | None, loss: Tensor) -> Tensor | None:
    """Weights of the rows of a loss, 0 where a row takes no part; None for equal ones."""
    if mask is None:
        return weight
    return mask.to(loss.dtype) if weight is None else torch.where(mask, weight, 0.0)


def _cosine(rows: Tensor, prototypes: Tensor) -> Tensor:
    with torch.autocast(rows.device.type, enabled=False):
        return unit_vector(rows) @ unit_vector(prototypes).T


def _gather_rows(rows: Tensor) -> tuple[Tensor, int]:
    """Rows of all processes, and where this one's begin; ranks may hold different numbers of them."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return rows, 0
    size = torch.tensor([rows.shape[0]], device=rows.device)
    sizes = [torch.zeros_like(size) for _ in range(distributed.get_world_size())]
    distributed.all_gather(sizes, size)
    numbers = [int(number) for number in sizes]
    padded = rows.new_zeros(max(numbers), rows.shape[1])
    padded[: rows.shape[0]] = rows
    parts = [torch.empty_like(padded) for _ in numbers]
    distributed.all_gather(parts, padded)
    gathered = torch.cat([part[:number] for part, number in zip(parts, numbers, strict=True)])
    return gathered, sum(numbers[: distributed.get_rank()])


class SwAVLoss(LossModule):
    """:func:`swav_loss` with trainable prototypes, and assignments balanced over more than one batch.

    Rows to balance over come from all processes and from a queue of earlier rows. The queue is updated in training mode
    only. As long as it holds too few rows to balance the prototypes over, the loss is 0, and so is its gradient.
    """

    queue: Tensor
    queue_filled: Tensor

    def __init__(
        self,
        num_features: int,
        num_prototypes: int,
        *,
        queue_size: int = 0,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        num_iterations: int = 3,
        reduction: Reduction = "mean",
    ) -> None:
        """Make the prototypes and the queue.

        Args:
            num_features: H, width of the features.
            num_prototypes: K. Balancing needs at least K / 2 rows, queue and processes included.
            queue_size: Earlier rows kept per view.
            temperature: Divides the cosines, > 0.
            epsilon: Softness of the assignments, > 0.
            num_iterations: Sinkhorn iterations, >= 1.
            reduction: ``"mean"`` (weighted), ``"sum"`` or ``"none"``.

        Raises:
            ValueError: If a number is outside its range.
        """
        super().__init__()
        check_number("num_features", num_features, 1)
        check_number("num_prototypes", num_prototypes, 1)
        check_number("queue_size", queue_size, 0)
        self.prototypes = nn.Parameter(unit_vector(torch.randn(num_prototypes, num_features)))
        self.temperature = temperature
        self.epsilon = epsilon
        self.num_iterations = num_iterations
        self.reduction: Reduction = reduction
        self.register_buffer("queue", torch.zeros(2, queue_size, num_features))
        self.register_buffer("queue_filled", torch.zeros(queue_size, dtype=torch.bool))

    def forward(
        self, first: Tensor, second: Tensor, *, weight: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Loss of the rows; arguments as in :func:`swav_loss`. All processes call it together.

        Args:
            first: One view, (N, H).
            second: The other view of the same rows, (N, H).
            weight: Weights >= 0 of the rows, (N,).
            mask: Rows that take part, (N,) bool; the others have loss 0 and enter neither balance nor queue.

        Returns:
            Loss, scalar or (N,).

        Raises:
            ValueError: If batch, processes and queue together have fewer rows than K / 2, in training mode.
        """
        check_views(first, second)
        if mask is not None:
            check_row_mask(mask, len(first))
        with torch.no_grad():
            views, part, start = self._gathered(first, second, mask)
            filled = torch.cat([part, self.queue_filled])
            candidates = [
                torch.cat([view, earlier.to(view.dtype)])
                for view, earlier in zip(views, self.queue, strict=True)
            ]
            assignments = [self._assigned(rows, filled)[start : start + len(first)] for rows in candidates]
            enough = 2 * filled.sum() >= len(self.prototypes)
            if self.training and self.queue.shape[1]:
                self._keep(candidates, filled)
        loss = swav_loss(
            first,
            second,
            self.prototypes,
            *assignments,
            temperature=self.temperature,
            weight=masked_weight(weight, mask, as_compute(first)[0]),
            reduction=self.reduction,
        )
        return loss * enough.to(loss.dtype)

    def _gathered(
        self, first: Tensor, second: Tensor, mask: Tensor | None
    ) -> tuple[tuple[Tensor, Tensor], Tensor, int]:
        """Unit rows of both views of all processes, which of them take part, and where this one's begin."""
        one, two = (unit_vector(view) for view in as_compute(first, second))
        part = one.new_ones(len(one), 1) if mask is None else mask[:, None].to(one.dtype)
        rows, start = _gather_rows(torch.cat([one, two, part], dim=1))
        number, size, needed = len(rows), self.queue.shape[1], len(self.prototypes) / 2
        if self.training and 0 < number and number + size < needed:
            raise ValueError(
                f"{len(self.prototypes)} prototypes need at least {needed:g} rows to be balanced over, and a batch has "
                f"{number} over all processes, with a queue of {size}: set queue_size to {math.ceil(needed)} or more, "
                "num_prototypes lower, or larger batches"
            )
        width = one.shape[1]
        return (rows[:, :width], rows[:, width:-1]), rows[:, -1] > 0, start

    def _assigned(self, rows: Tensor, filled: Tensor) -> Tensor:
        """Assignment of rows to prototypes, balanced over those that take part."""
        prototypes = self.prototypes.detach().to(rows.dtype)
        return sinkhorn_assignment(
            _cosine(rows, prototypes), epsilon=self.epsilon, num_iterations=self.num_iterations, mask=filled
        )

    def _keep(self, candidates: list[Tensor], filled: Tensor) -> None:
        """Fill the queue with the newest rows that take part."""
        # A stable sort brings them to the front in their order, without reading how many there are.
        newest = torch.argsort(~filled, stable=True)[: len(self.queue_filled)]
        self.queue.copy_(torch.stack([rows[newest] for rows in candidates]))
        self.queue_filled.copy_(filled[newest])
