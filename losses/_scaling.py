"""Dual potentials of entropic transport in batches: Sinkhorn's iterations as matrix products, or on logarithms.

Problems stand in columns: tensors are (G, K, N), G costs with N problems each, so that a step for all of them is one product
with the kernel exp(-cost / epsilon), computed once, and a few elementwise operations. Both forms take the same steps.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ._cost import Ground

_PLAIN_STEPS = 10
_STEP_LENGTH = 1.5  # overrelaxation; longer steps were seen to diverge on peaked distributions
_LOOK_EVERY = 10
_SETTLED = 16.0  # changes of a scaling, relative, in units of the type's rounding

# Potentials lie within the span of the costs, and overrelaxed ones a little beyond: exp(span / epsilon) must not leave
# the type's range, e^88 and e^709, on either side.
_LARGEST_SPAN = {torch.float32: 60.0, torch.float64: 500.0}


def mean_potentials(
    problems: Sequence[tuple[Tensor, Tensor]],
    cost: Tensor,
    ground: Ground,
    epsilon: float,
    num_iterations: int,
) -> list[tuple[Tensor, Tensor]]:
    """Potentials of several problems under one cost, solved together; no gradient passes through.

    Each is the mean of two runs, one updating the source's potential first and one the target's, so that equal distributions
    have equal potentials, and a divergence of them no gradient, after any number of iterations. Under a symmetric cost the
    second run is that of the problem the other way round, and of a distribution against itself the first one again.

    Args:
        problems: Sources and targets, (K, N) each, all of one shape and type; the same object for an own term.
        cost: (K, K), of the same type, source to target.
        ground: What is known of it.
        epsilon: Regularisation, > 0, in the unit of the cost.
        num_iterations: Iterations at most, >= 1.

    Returns:
        For each problem the potentials of source and target, (K, N), in the unit of the cost.
    """
    one_way = list(problems)
    count, number = len(one_way), one_way[0][0].shape[1]
    other_way = [
        (target, source) for source, target in one_way if not (ground.symmetric and source is target)
    ]
    if ground.symmetric:
        groups, costs = [one_way + other_way], cost.unsqueeze(0)
        places = iter(range(count, count + len(other_way)))
        mirror = [
            index if source is target else next(places) for index, (source, target) in enumerate(one_way)
        ]
    else:
        groups, costs = [one_way, other_way], torch.stack([cost, cost.mT])
        mirror = list(range(count, 2 * count))
    sources, targets = (
        torch.stack([torch.cat([problem[side] for problem in group], dim=1) for group in groups])
        for side in (0, 1)
    )
    found = _dual_potentials(sources, targets, costs, epsilon, num_iterations, ground.span)
    size = (cost.shape[0], len(groups[0]), number)
    f, g = ([column for each in of for column in each.reshape(size).unbind(1)] for of in found)
    return [((f[i] + g[j]) / 2, (g[i] + f[j]) / 2) for i, j in enumerate(mirror)]


def _dual_potentials(
    sources: Tensor, targets: Tensor, costs: Tensor, epsilon: float, num_iterations: int, span: float | None
) -> tuple[Tensor, Tensor]:
    """Potentials (G, K, N) after alternating updates, sources' first.

    Both updates look at whole rows of the cost, so potentials are right also where a probability is zero: the derivative
    there is the one-sided one. Steps longer than the plain update make up for its slow last digits.
    """
    given = sources.dtype
    ratio = torch.inf if span is None else span / epsilon
    fitting = [
        dtype
        for dtype, largest in _LARGEST_SPAN.items()
        if ratio <= largest and dtype.itemsize >= given.itemsize
    ]
    # Under autocast products would be taken in 16 bits.
    with torch.no_grad(), torch.autocast(sources.device.type, enabled=False):
        if not fitting:
            return _by_logarithms(sources, targets, costs / epsilon, epsilon, num_iterations)
        first, second = sources.to(fitting[0]), targets.to(fitting[0])
        f, g = _by_products(first, second, costs, epsilon, num_iterations)
        return f.to(given), g.to(given)


def _by_products(
    sources: Tensor, targets: Tensor, cost: Tensor, epsilon: float, num_iterations: int
) -> tuple[Tensor, Tensor]:
    shift = cost.amin()
    kernel = torch.exp((shift - cost).double() / epsilon).to(sources.dtype)
    back = kernel.mT.contiguous()
    u, v = torch.ones_like(sources), torch.ones_like(targets)
    for step in range(num_iterations):
        need = kernel @ (targets * v)
        if step < _PLAIN_STEPS:
            u = need.reciprocal_()
            v = (back @ (sources * u)).reciprocal_()
            continue
        # 1 / need is the plain update; u times (that / u) ^ 1.5 is u ^ -0.5 need ^ -1.5, and need u is 1 in the end.
        change = need * u
        settled = step % _LOOK_EVERY == 0 and _is_settled(change, 1.0)
        u = change.rsqrt_().div_(need)
        need = back @ (sources * u)
        v = (need * v).rsqrt_().div_(need)
        if settled:
            break
    u = (kernel @ (targets * v)).reciprocal_()
    return epsilon * u.log_() + shift, epsilon * v.log_()


def _by_logarithms(
    sources: Tensor, targets: Tensor, scaled: Tensor, epsilon: float, num_iterations: int
) -> tuple[Tensor, Tensor]:
    log_p, log_q = (x.clamp_min(0).log().unsqueeze(1) for x in (sources, targets))
    rows, columns = scaled.unsqueeze(-1), scaled.mT.unsqueeze(-1)
    f, g = torch.zeros_like(sources), torch.zeros_like(targets)
    for step in range(num_iterations):
        length = 1.0 if step < _PLAIN_STEPS else _STEP_LENGTH
        change = -(log_q + g.unsqueeze(1) - rows).logsumexp(2) - f
        f = f + length * change
        g = g + length * (-(log_p + f.unsqueeze(1) - columns).logsumexp(2) - g)
        if step >= _PLAIN_STEPS and step % _LOOK_EVERY == 0 and _is_settled(change, 0.0):
            break
    f = -(log_q + g.unsqueeze(1) - rows).logsumexp(2)
    return epsilon * f, epsilon * g


def _is_settled(change: Tensor, end: float) -> bool:
    """Whether all changes are where they end up; no where it cannot be read, or would make the host wait."""
    if torch.compiler.is_compiling() or change.device.type != "cpu" or not change.numel():
        return False
    try:
        low, high = (float(extreme) - end for extreme in torch.aminmax(change))
    except RuntimeError:
        return False  # inside vmap
    return max(-low, high) <= _SETTLED * torch.finfo(change.dtype).eps
