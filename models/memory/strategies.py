r"""What each GPU holds and sends under a strategy: the arithmetic, in bytes.

With W bytes of weights, G of gradients, S of the optimiser's state, A of activations on N GPUs, L of a layer's weights, E of
those outside the layers and g of a layer's gradients, a GPU holds

=====================  ==================================  =======================================
strategy               weights, gradients, state           buffers
=====================  ==================================  =======================================
one device             W + G + S                           0
``ddp``                W + G + S                           G, in which gradients are averaged
``deepspeed_stage_2``  W + (G + S) / N                     2 buckets
``deepspeed_stage_3``  (W + G + S) / N                     2 L + E + g, and 2 buckets
``fsdp2``              (W + G + S) / N                     2 L + E + g: this layer, the next, what is gathered throughout
=====================  ==================================  =======================================

and A everywhere. Sent per GPU and step, as rings do it: :math:`2G (N-1)/N` for ``ddp``, :math:`(G + W_t)(N-1)/N` for stage 2,
where :math:`W_t` are the trained weights, :math:`(2W + G)(N-1)/N` where weights are sharded: gathered for both passes, and
gradients scattered.
"""

import math
from dataclasses import dataclass

from pluralign.datamodules.checks import check_range

from .activations import Activations
from .networks import Weights

__all__ = ["STRATEGIES", "Cluster", "Load", "Share", "largest_tokens", "share_of", "step_times"]

BUCKET = 200_000_000
"""Numbers of a bucket in which DeepSpeed reduces and gathers, as Lightning sets it."""
RESERVED = 1.0
"""GB that a CUDA process takes for itself: the context, kernels and workspaces of matrix products."""
FRAGMENTS = 0.05
"""Share of the activations that the allocator loses between blocks."""
GATHERED = 2
"""Layers whose weights are whole at a time: that which runs, and the one after it."""
HOP = 10e-6
"""Seconds that a collective takes for each doubling of the number of GPUs, whatever it sends."""

STRATEGIES = ("auto", "ddp", "fsdp2", "deepspeed_stage_2", "deepspeed_stage_3")
"""Names of ``trainer.strategy``; ``auto`` is one device."""


@dataclass(frozen=True)
class Load:
    """What a step needs, however it is divided.

    Attributes:
        weights: The module.
        state: Bytes of the optimiser's state.
        activations: Of a step on one GPU; under mixed precision the weights' copies in the other dtype are among them.
    """

    weights: Weights
    state: int
    activations: Activations


@dataclass(frozen=True)
class Cluster:
    """The machine, as it is said to be.

    Attributes:
        gpus: In all nodes together, >= 1.
        memory: Of each, GB (10^9 bytes), > 0.
        bandwidth: At which a GPU sends while all do, GB/s, > 0.
        teraflops: Operations that a GPU makes in this network, 10^12 a second, > 0: what is reached, not what is promised.
    """

    gpus: int
    memory: float
    bandwidth: float = 50.0
    teraflops: float = 400.0

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            ValueError: Naming the option, its value and what is allowed.
        """
        check_range("gpus", self.gpus, at_least=1)
        for name in ("memory", "bandwidth", "teraflops"):
            check_range(name, getattr(self, name), above=0)


@dataclass(frozen=True)
class Share:
    """What one GPU holds under a strategy, in bytes, and what it sends in a step.

    Attributes:
        strategy: Its name.
        gpus: How many there are.
        weights: Of weights.
        gradients: Of gradients.
        state: Of the optimiser's state.
        buffers: Of what is gathered, reduced or reserved.
        activations: Of one step.
        sent: In one step.
        collectives: How many there are in one step.
    """

    strategy: str
    gpus: int
    weights: int
    gradients: int
    state: int
    buffers: int
    activations: int
    sent: int
    collectives: int

    @property
    def total(self) -> int:
        """All that it holds."""
        return self.weights + self.gradients + self.state + self.buffers + self.activations

    def fits(self, memory: float) -> bool:
        """Whether that is at most so many GB."""
        return self.total <= memory * 1e9


def share_of(strategy: str, load: Load, tokens: int, gpus: int) -> Share:
    """What a GPU holds and sends under a strategy.

    Args:
        strategy: One of :data:`STRATEGIES`.
        load: What a step needs.
        tokens: Of a GPU's batch.
        gpus: How many there are; ``auto`` uses one of them.

    Raises:
        ValueError: If the strategy is unknown.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy must be one of {', '.join(STRATEGIES)}; got {strategy!r}")
    weights, gpus = load.weights, 1 if strategy == "auto" else gpus
    whole, gradients, state = weights.weight_bytes, weights.gradient_bytes, load.state
    ring, layers = (gpus - 1) / gpus, max(1, weights.layers)
    gathered = (
        GATHERED * weights.layer_bytes + weights.outer_bytes + weights.layer_gradient_bytes if gpus > 1 else 0
    )
    buckets = 2 * min(BUCKET * 4, gradients)
    trained = round(sum(number * _size(name) for name, number in weights.trained_by_dtype.items()))
    of_weights, of_others, buffers, sent, collectives = {
        "auto": (1, 1, 0, 0.0, 0),
        "ddp": (1, 1, gradients if gpus > 1 else 0, 2 * gradients * ring, -(-gradients // 25_000_000)),
        "fsdp2": (gpus, gpus, gathered, (2 * whole + gradients) * ring, 3 * layers),
        "deepspeed_stage_2": (
            1,
            gpus,
            buckets,
            (gradients + trained) * ring,
            -(-gradients // (4 * BUCKET)) * 2,
        ),
        "deepspeed_stage_3": (gpus, gpus, gathered + buckets, (2 * whole + gradients) * ring, 3 * layers),
    }[strategy]
    activations = load.activations.of(tokens) * weights.networks
    return Share(
        strategy=strategy,
        gpus=gpus,
        weights=math.ceil(whole / of_weights),
        gradients=math.ceil(gradients / of_others),
        state=math.ceil(state / of_others),
        buffers=round(buffers + FRAGMENTS * activations + RESERVED * 1e9),
        activations=activations,
        sent=round(sent),
        collectives=collectives if gpus > 1 else 0,
    )


def largest_tokens(strategy: str, load: Load, cluster: Cluster, *, step: int = 256) -> int:
    """Most tokens of a GPU's batch that fit, a multiple of ``step``; 0 if not even that fits.

    Args:
        strategy: As :func:`share_of` has it.
        load: Likewise.
        cluster: What there is.
        step: Tokens, >= 1.
    """
    empty = share_of(strategy, load, 0, cluster.gpus).total
    per_token = load.activations.per_token * load.weights.networks * (1 + FRAGMENTS)
    left = cluster.memory * 1e9 - empty
    return max(0, int(left / max(per_token, 1e-9)) // step * step)


def step_times(
    share: Share, load: Load, tokens: int, cluster: Cluster, *, recomputed: bool
) -> tuple[float, float]:
    """Seconds of a step that a GPU computes, and that it sends, if neither waits for the other.

    Each token costs 2 operations a weight forward, 2 backward to the input, 2 more for each trained weight; and another 2
    where layers are recomputed. Attention's own are left out: they are few in rows of some thousand tokens.

    Args:
        share: What it sends.
        load: The module.
        tokens: Of its batch.
        cluster: How fast it is.
        recomputed: Whether activations are.
    """
    weights = load.weights
    used = weights.networks * (weights.parameters - weights.embedded)
    operations = tokens * ((6 if recomputed else 4) * used + 2 * min(weights.trained, used))
    latency = share.collectives * HOP * math.log2(max(2, share.gpus)) if share.gpus > 1 else 0.0
    return operations / (cluster.teraflops * 1e12), share.sent / (cluster.bandwidth * 1e9) + latency


def _size(dtype: str) -> int:
    return {"float32": 4, "float64": 8}.get(dtype, 2)
