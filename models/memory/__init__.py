"""Memory before hours are spent: what a module takes on each GPU, worked out without weights, data or GPU.

Weights, gradients and the optimiser's state are counted on the meta device, activations on two shallow networks whose tensors
have shapes alone; :mod:`.strategies` divides them among GPUs.
"""

from .activations import Activations, Rows, count_activations
from .live_bytes import LiveBytes
from .load import load_of
from .networks import Weights, count_weights
from .optimizers import state_bytes
from .strategies import STRATEGIES, Cluster, Load, Share, largest_tokens, share_of, step_times

__all__ = [
    "STRATEGIES",
    "Activations",
    "Cluster",
    "LiveBytes",
    "Load",
    "Rows",
    "Share",
    "Weights",
    "count_activations",
    "count_weights",
    "largest_tokens",
    "load_of",
    "share_of",
    "state_bytes",
    "step_times",
]
