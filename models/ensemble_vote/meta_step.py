"""The meta step: gradient of a loss at weights that went up an objective, for the weights they had before."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, distributed, nn
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["MetaOutcome", "MetaStep", "num_ranks"]

Gradients = list[Tensor | None]
"""Of parameters, in their order; None for one that a value does not depend on."""


class MetaOutcome(NamedTuple):
    """What a meta step gives."""

    loss: Tensor
    """Scalar, L at the moved weights; its backward pass hands the step's gradient to the parameters."""
    rise: Tensor | None = None
    """Scalar, of a checked step: how much the objective rose, the mean over ranks."""
    expected: Tensor | None = None
    """Scalar >= 0, of a checked step: how much it would have risen were it linear, the mean over ranks."""


class MetaStep:
    r"""Gradient descent on a loss L, as it is after gradient ascent on an objective J.

    .. math::
        \theta' = \theta + \eta\, d, \qquad
        d = \nabla J(\theta) \ \text{or}\ \nabla J(\theta) / \lVert \nabla J(\theta) \rVert, \qquad
        g = \nabla L(\theta')

    The gradient g is handed to the weights :math:`\theta` (first order), or all of
    :math:`\nabla_\theta L(\theta'(\theta))` (second order), which adds :math:`\eta` times the curvature of J along g:

    .. math:: g + \eta\, \nabla^2 J(\theta)\, g, \qquad \text{normalised:}\quad
        g + \frac{\eta}{\lVert \nabla J \rVert} \nabla^2 J(\theta) (1 - d d^\top)\, g

    Weights are moved in place, passes forward *and* backward run there, and they come back from copies, to the bit, before
    the call ends, however it ends. Nobody else ever sees moved weights. With functional calls in their place gradients would
    be wrong under gradient checkpointing, and the moved weights ignored under ``fully_shard``. Both passes backward are
    over when the call returns; what it returns carries the gradient, so that a trainer scales, accumulates, averages over
    ranks and clips it as any other.

    Several ranks: the objective is one whose mean over ranks counts (weigh a rank's value by its share), and so is the
    loss. Its gradient is averaged here, since the reducer of ``DistributedDataParallel`` waits for the pass backward that comes
    after; gradients of sharded weights (``fully_shard``) are averaged by their own pass.
    """

    def __init__(self, rate: float, *, normalized: bool = False, second_order: bool = False) -> None:
        """Keep the settings.

        Args:
            rate: eta, > 0; with ``normalized`` the length of the move.
            normalized: Whether the move has this length, however steep the objective is.
            second_order: Whether the gradient goes through the move. Costs one pass more, twice differentiated, with
                the attention kernel that can be; not for sharded weights.
        """
        self.rate, self.normalized, self.second_order = rate, normalized, second_order

    def __call__(
        self,
        module: nn.Module,
        objective: Callable[[], Tensor],
        loss: Callable[[], Tensor],
        *,
        check: bool = False,
    ) -> MetaOutcome:
        """Make the step.

        Args:
            module: Whose parameters that require gradients are moved.
            objective: J, a scalar; called once, and again with the same random numbers to check the step or for its
                second order.
            loss: L, a scalar; called once, on the moved weights.
            check: Whether to measure how much the objective rises, at one pass more without gradients.

        Raises:
            ValueError: If no parameter requires gradients, or the second order is asked for of sharded ones.
        """
        _settle(module)
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        if not parameters:
            raise ValueError("a meta step needs parameters that are trained, and there are none")
        if self.second_order and any(map(_is_sharded, parameters)):
            raise ValueError("second_order=true does not work on sharded weights: use first order, or ddp")
        random = _RandomNumbers(parameters[0].device)
        with self._kernel():  # as far as the pass backward, which may compute activations again
            before = objective()
            slopes = _gradients(before, parameters)
        ascent = _averaged(slopes, parameters)
        norm = _norm(ascent) if self.normalized or check else None
        directions = ascent
        if self.normalized and norm is not None:
            directions = [_unit(gradient, norm) for gradient in ascent]
        rise = expected = None
        with _moved(module, parameters, directions, self.rate):
            if check and norm is not None:
                with random.again(), torch.no_grad(), self._kernel():
                    rise = _mean_over_ranks(objective() - before.detach())
                expected = self.rate * (norm if self.normalized else norm.square())
            value = loss()
            given = _gradients(value, parameters)
        if self.second_order:
            with random.again():
                given = self._through_move(objective, parameters, ascent, given, norm)
        known = [
            (each, gradient) for each, gradient in zip(parameters, given, strict=True) if gradient is not None
        ]
        carried = _carrying(value.detach(), [each for each, _ in known], [gradient for _, gradient in known])
        return MetaOutcome(carried, rise, expected)

    def _kernel(self) -> AbstractContextManager[object]:
        """Attention that can be differentiated twice where that is needed, of equal random numbers in all passes."""
        return sdpa_kernel(SDPBackend.MATH) if self.second_order else nullcontext()

    def _through_move(
        self,
        objective: Callable[[], Tensor],
        parameters: Sequence[nn.Parameter],
        ascent: Sequence[Tensor],
        given: Gradients,
        norm: Tensor | None,
    ) -> Gradients:
        """The gradient with what the move itself depends on: a product of the objective's Hessian with it."""
        along = _averaged(given, parameters)
        if norm is not None and self.normalized:
            share = torch.stack([(a * v).sum() for a, v in zip(ascent, along, strict=True)]).sum() / norm
            along = [_unit(v - _unit(a, norm) * share, norm) for a, v in zip(ascent, along, strict=True)]
        with self._kernel():
            value = objective()
            with torch.autocast(value.device.type, enabled=False):
                slopes = torch.autograd.grad(value, parameters, create_graph=True, allow_unused=True)
                terms = [(s * v).sum() for s, v in zip(slopes, along, strict=True) if s is not None]
                slope = torch.stack(terms).sum()
                if not slope.requires_grad:  # an objective that is linear has no curvature
                    return given
                bends = torch.autograd.grad(slope, parameters, allow_unused=True)
        pairs = zip(given, bends, strict=True)
        return [
            g if h is None else self.rate * h if g is None else torch.add(g, h, alpha=self.rate)
            for g, h in pairs
        ]


# Gradients ---------------------------------------------------------------------------------------------


def _gradients(value: Tensor, parameters: Sequence[nn.Parameter]) -> Gradients:
    """Gradients of a scalar; what the parameters have gathered in ``.grad`` stays as it is.

    Outside autocast, as any pass backward. Hooks of ``DistributedDataParallel`` are not called, for it counts passes.
    """
    with torch.autocast(value.device.type, enabled=False):
        if not any(map(_is_sharded, parameters)):
            return list(torch.autograd.grad(value, parameters, allow_unused=True))
        gathered = [parameter.grad for parameter in parameters]
        try:
            for parameter in parameters:
                parameter.grad = None
            value.backward()  # where shards are reduced; autograd.grad would leave that out
            return [parameter.grad for parameter in parameters]
        finally:
            for parameter, gradient in zip(parameters, gathered, strict=True):
                parameter.grad = gradient


class _Context(Protocol):
    gradients: Sequence[Tensor]


class _Carrying(torch.autograd.Function):
    """A value whose pass backward gives parameters the gradients that were worked out before."""

    @staticmethod
    def forward(
        ctx: _Context, value: Tensor, gradients: Sequence[Tensor], *parameters: nn.Parameter
    ) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: _Context, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        return (None, None, *(gradient * grads[0].to(gradient.dtype) for gradient in ctx.gradients))


def _carrying(value: Tensor, parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]) -> Tensor:
    carried: Tensor = _Carrying.apply(value, gradients, *parameters)  # type: ignore[no-untyped-call]
    return carried


# Ranks and shards --------------------------------------------------------------------------------------


def num_ranks() -> int:
    """Processes that train together; 1 for one by itself."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def _is_sharded(tensor: Tensor) -> bool:
    if not distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def _settle(module: nn.Module) -> None:
    """Have nobody go on with copies of weights as they were: whole weights of shards, and those of autocast."""
    torch.clear_autocast_cache()
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    from torch.distributed.fsdp import FSDPModule

    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def _averaged(gradients: Gradients, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Gradients of the mean over ranks, zero where there are none; those of shards are that already."""
    pairs = zip(gradients, parameters, strict=True)
    known = [torch.zeros_like(parameter) if each is None else each for each, parameter in pairs]
    ranks = num_ranks()
    if ranks == 1:
        return known
    mean = [
        each if _is_sharded(each) else each.clone(memory_format=torch.contiguous_format) for each in known
    ]
    whole = [each for each in mean if not _is_sharded(each)]
    for work in [distributed.all_reduce(each, async_op=True) for each in whole]:
        if work is not None:
            work.wait()  # of a GPU only its queue waits
    for each in whole:
        each.div_(ranks)
    return mean


def _mean_over_ranks(value: Tensor) -> Tensor:
    ranks = num_ranks()
    if ranks > 1:
        value = value.clone()
        distributed.all_reduce(value)
    return value / ranks


def _norm(gradients: Sequence[Tensor]) -> Tensor:
    """Euclidean norm of all gradients together, a scalar."""
    parts = [
        nn.utils.get_total_norm(part)
        for sharded in (False, True)
        if (part := [each for each in gradients if _is_sharded(each) == sharded])
    ]
    return torch.stack([_whole(norm) for norm in parts]).square().sum().sqrt()


def _whole(value: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor

    return value.full_tensor() if isinstance(value, DTensor) else value


# Weights and random numbers ----------------------------------------------------------------------------


def _unit(gradient: Tensor, norm: Tensor) -> Tensor:
    """A gradient in units of the norm of all; zero where that is."""
    return gradient * torch.where(norm > 0, 1 / norm, 0.0).to(gradient.dtype)


@contextmanager
def _moved(
    module: nn.Module, parameters: Sequence[nn.Parameter], directions: Sequence[Tensor], rate: float
) -> Iterator[None]:
    """Parameters further along directions; afterwards what they were, to the bit."""
    before = [parameter.detach().clone() for parameter in parameters]
    try:
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter.add_(direction, alpha=rate)
        _settle(module)
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)
        _settle(module)


class _RandomNumbers:
    """State of torch's random numbers when it was made."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device if device.type == "cuda" else None
        self._then = self._now()

    def _now(self) -> list[Tensor]:
        states = [torch.get_rng_state()]
        return states if self._cuda is None else [*states, torch.cuda.get_rng_state(self._cuda)]

    def _restore(self, states: Sequence[Tensor]) -> None:
        torch.set_rng_state(states[0])
        if self._cuda is not None:
            torch.cuda.set_rng_state(states[1], self._cuda)

    @contextmanager
    def again(self) -> Iterator[None]:
        """Draw the numbers of then once more, and go on as if that had not been."""
        now = self._now()
        self._restore(self._then)
        try:
            yield
        finally:
            self._restore(now)
