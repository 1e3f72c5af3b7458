"""How much of a machine's matrix products a training step makes use of: operations that are needed, and the measured peak."""

import time
from collections.abc import Iterable
from typing import NamedTuple

import torch
from reward_training_data import Network

from pluralign.datamodules.tokens import TokenRow

__all__ = ["Operations", "gemm_peaks", "needed_operations"]

SQUARE = 2048
SECONDS = 0.2  # for each shape


class Operations(NamedTuple):
    """Floating point operations, a product and a sum counting as two."""

    linear: float
    attention: float

    @property
    def total(self) -> float:
        """Of both."""
        return self.linear + self.attention


def needed_operations(rows: Iterable[TokenRow], network: Network) -> Operations:
    r"""Operations that one training step on some records cannot do without.

    Of a record with p tokens of prefix and responses of r_1 ... r_k own tokens, T = p + r_1 + ... + r_k tokens are
    computed, each once. With hidden size h, feed-forward size f and n layers of as many key heads as heads,

    * a linear layer's forward pass takes two operations for each weight and token: 4 h^2 + 3 h f weights a layer. The last
      layer needs keys and values (2 h^2) of all T tokens, and everything else of the k pooled tokens alone;
    * attention takes 4 h operations for each pair of tokens of which one looks at the other: p (p + 1) / 2 within the
      prefix, and r p + r (r + 1) / 2 for each response; in the last layer p + r for each response, whose last token alone looks;
    * the backward pass takes twice as many operations as the forward pass: one product for the inputs' gradients, one for the
      weights'; in attention, four where there were two. What a fast kernel computes once more is not needed and not counted.

    Norms, activations, rotations, embeddings, the head and the optimiser are no matrix products, or as good as nothing.

    Args:
        rows: Records with two responses or more.
        network: Its shape.
    """
    hidden, layers, feed_forward = network.hidden_size, network.num_hidden_layers, network.intermediate_size
    mixing, expanding = hidden * hidden, 3 * hidden * feed_forward
    linear = looks = 0
    for row in rows:
        prefix, *own = row.lengths.tolist()
        tokens, responses = prefix + sum(own), len(own)
        within = prefix * (prefix + 1) // 2 + sum(r * prefix + r * (r + 1) // 2 for r in own)
        looks += (layers - 1) * within + sum(prefix + r for r in own)
        linear += (layers - 1) * (4 * mixing + expanding) * tokens
        linear += 2 * mixing * tokens + (2 * mixing + expanding) * responses
    return Operations(linear=3 * 2 * linear, attention=3 * 4 * hidden * looks)


def gemm_peaks(networks: Iterable[Network], tokens: int) -> dict[str, float]:
    """Operations a second of float32 matrix products: a large square, and what linear layers compute.

    Args:
        networks: Whose linear layers.
        tokens: Of a step.
    """
    shapes = {(SQUARE, SQUARE, SQUARE)}
    for network in networks:
        hidden, wide = network.hidden_size, network.intermediate_size
        shapes |= {(tokens, hidden, hidden), (tokens, hidden, wide), (tokens, wide, hidden)}
    return {" x ".join(map(str, shape)): _rate(*shape) for shape in sorted(shapes)}


def _rate(rows: int, inner: int, columns: int) -> float:
    """Best of many products of one shape."""
    left, right, out = torch.randn(rows, inner), torch.randn(inner, columns), torch.empty(rows, columns)
    best, end = float("inf"), time.perf_counter() + SECONDS
    while (began := time.perf_counter()) < end:
        torch.mm(left, right, out=out)
        best = min(best, time.perf_counter() - began)
    return 2 * rows * inner * columns / best
