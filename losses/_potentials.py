"""Exact transport between categorical distributions for an arbitrary cost matrix, in batches.

By Kantorovich duality the cheapest transport is a maximum of linear functions of the two distributions:
one for each vertex of the polytope of dual potentials. The polytope depends on the cost matrix alone, so
its vertices are found once and every batch is a matrix product and a maximum; the maximising vertex is
also the gradient.
"""

from collections import OrderedDict
from importlib import import_module
from typing import Protocol, cast

import torch
from torch import Tensor

from ._common import Context, check_values

# Vertices of a generic matrix number C(2K - 2, K - 1): 3,432 for K = 8. The polytope of a matrix that is
# no metric has as many, but takes a search over twice as many nodes.
MAX_METRIC_LABELS = 8
MAX_GENERAL_LABELS = 6
_REMEMBERED = 16
_remembered: OrderedDict[tuple[object, ...], Tensor] = OrderedDict()


def is_metric(cost: Tensor) -> bool:
    """Whether a cost is zero on the diagonal and obeys the triangle inequality; it may be asymmetric.

    Within the rounding of its type: detours that are as long as the direct way are common.
    """
    rounding = 8 * torch.finfo(cost.dtype).eps if cost.is_floating_point() else 0.0
    cost = cost.detach().to("cpu", torch.float64)
    slack = max(1e-9, rounding) * float(cost.abs().max())
    detour = (cost.unsqueeze(2) + cost.unsqueeze(0)).amin(1)
    return bool((cost.diagonal().abs() <= slack).all() and (cost <= detour + slack).all())


def transport_potentials(cost: Tensor) -> Tensor | None:
    """Vertices of the dual polytope of a cost matrix: what :func:`categorical_wasserstein` maximises over.

    Find them once and hand them over as ``potentials`` where a matrix should not be read at each call: on an
    accelerator, under ``torch.compile``, inside ``torch.func.vmap``. :class:`CategoricalWassersteinLoss`
    does.

    Args:
        cost: (K, K), finite: price of moving one unit from label i (row) to label j (column).

    Returns:
        (V, K) if the cost is a metric, possibly asymmetric: row f stands for f . (p - q). Else (V, 2 K): row
        (f, g) stands for f . p + g . q. Type (float64 for integers) and device of ``cost``. None if K is too
        large: above 8 for a metric, above 6 otherwise.

    Raises:
        ValueError: If ``cost`` is not a square matrix or not finite.

    Example:
        >>> import torch
        >>> transport_potentials(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
        tensor([[ 0.5000, -0.5000],
                [-0.5000,  0.5000]])

    Source:
        Kantorovich duality: Villani, *Topics in Optimal Transportation*, 2003, theorem 1.14 (for metrics)
        and theorem 1.3. Departures: the enumeration of vertices is our own.

    .. versionadded:: 0.1
    """
    if cost.ndim != 2 or cost.shape[0] != cost.shape[1] or cost.shape[0] == 0:
        raise ValueError(f"cost must be a square matrix; got shape {tuple(cost.shape)}")
    exact = cost.detach().to("cpu", torch.float64)
    check_values("cost", exact)
    labels = exact.shape[0]
    metric = is_metric(cost)
    if labels > (MAX_METRIC_LABELS if metric else MAX_GENERAL_LABELS):
        return None
    key = (labels, metric, *exact.flatten().tolist())
    vertices = _remembered.get(key)
    if vertices is None:
        if metric:
            vertices = _vertices(exact)
            vertices = vertices - vertices.mean(1, keepdim=True)
        else:
            bound = torch.full((2 * labels, 2 * labels), torch.inf, dtype=torch.float64)
            bound[:labels, labels:] = exact
            vertices = _vertices(bound)
            vertices = torch.cat([vertices[:, :labels], -vertices[:, labels:]], dim=1)
        _remembered[key] = vertices
        while len(_remembered) > _REMEMBERED:
            _remembered.popitem(last=False)
    return vertices.to(cost.device, cost.dtype if cost.is_floating_point() else torch.float64)


def _vertices(bound: Tensor) -> Tensor:
    """Vertices of {x: x_i - x_j <= bound_ij, x_0 = 0}, (V, n), in a fixed order.

    At a vertex the tight constraints connect all coordinates. So each vertex can be grown from x_0 by one
    coordinate at a time, each tight against an earlier one, through partial points that are feasible.
    """
    size = bound.shape[0]
    scale = float(bound[bound.isfinite()].abs().max().clamp_min(1e-300))
    bound = bound / scale
    values = torch.zeros(1, size, dtype=torch.float64)
    reached = torch.zeros(1, size, dtype=torch.bool)
    reached[:, 0] = True
    for _ in range(size - 1):
        # Candidate (state, anchor, new, direction): x_new is tight against x_anchor from below or above.
        proposal = torch.stack([values.unsqueeze(2) - bound, values.unsqueeze(2) + bound.T], dim=-1)
        open_ = reached.unsqueeze(2) & ~reached.unsqueeze(1)
        state, anchor, new, direction = (open_.unsqueeze(-1) & proposal.isfinite()).nonzero(as_tuple=True)
        value = proposal[state, anchor, new, direction]
        known, seen = values[state], reached[state]
        rise = value.unsqueeze(1) - known
        feasible = ((rise <= bound[new] + 1e-9) & (-rise <= bound.T[new] + 1e-9) | ~seen).all(1)
        values, reached = known[feasible], seen[feasible]
        values = values.scatter(1, new[feasible].unsqueeze(1), value[feasible].unsqueeze(1))
        reached = reached.scatter(1, new[feasible].unsqueeze(1), True)
        merged = torch.cat([(values * 1e7).round().long(), reached.long()], dim=1)
        _, which = torch.unique(merged, dim=0, return_inverse=True)
        first = torch.full((int(which.max()) + 1,), len(which), dtype=torch.long)
        first = first.scatter_reduce(0, which, torch.arange(len(which)), "amin")
        values, reached = values[first], reached[first]
    return values * scale


def best_potentials(p: Tensor, q: Tensor, potentials: Tensor) -> Tensor:
    """Transport cost (...,) of p to q, (..., K), as the maximum over potentials; they are its gradient."""
    labels = p.shape[-1]
    potentials = potentials.to(p.dtype)
    both = torch.cat([p, q], dim=-1) if potentials.shape[-1] == 2 * labels else p - q
    with torch.no_grad(), torch.autocast(p.device.type, enabled=False):
        best = potentials[(both @ potentials.T).argmax(-1)]
    return (best * both).sum(-1)


class _Solver(Protocol):
    """The part of POT that is used."""

    def emd(self, a: object, b: object, M: object, log: bool) -> tuple[object, dict[str, object]]:
        """Solve one transport problem exactly."""
        ...


class _ExactTransport(torch.autograd.Function):
    """POT's network simplex in a loop on the host; its dual variables are the gradient."""

    @staticmethod
    def forward(ctx: Context, p: Tensor, q: Tensor, cost: Tensor) -> Tensor:
        solver = cast(_Solver, import_module("ot.lp"))
        rows = [t.detach().to("cpu", torch.float64).reshape(-1, t.shape[-1]) for t in (p, q)]
        rows = [row / row.sum(-1, keepdim=True) for row in rows]
        matrix = cost.detach().to("cpu", torch.float64).contiguous().numpy()
        duals: list[Tensor] = []
        for source, target in zip(*rows, strict=True):
            _, log = solver.emd(source.numpy(), target.numpy(), matrix, log=True)
            duals.append(torch.stack([torch.as_tensor(log["u"]), torch.as_tensor(log["v"])]))
        dual = torch.stack(duals) if duals else torch.zeros(0, 2, p.shape[-1], dtype=torch.float64)
        u, v = dual.to(p.device, p.dtype).reshape(*p.shape[:-1], 2, p.shape[-1]).unbind(-2)
        ctx.save_for_backward(u, v)
        return (u * p).sum(-1) + (v * q).sum(-1)

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        u, v = ctx.saved_tensors
        return grads[0].unsqueeze(-1) * u, grads[0].unsqueeze(-1) * v, None


def exact_transport(p: Tensor, q: Tensor, cost: Tensor) -> Tensor:
    """Transport cost (...,) of p to q, (..., K), solved one by one by POT."""
    value: Tensor = _ExactTransport.apply(p, q, cost)  # type: ignore[no-untyped-call]
    return value
