"""Optimisers whose state has few bits (bitsandbytes): what of a module keeps 32, and weights that they cannot train."""

import sys
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

__all__ = ["keep_in_32_bits"]


def keep_in_32_bits(optimizer: Optimizer, module: nn.Module) -> None:
    """Have an optimiser of bitsandbytes keep 32 bits of state for embeddings, and for all outside the backbone; others stay as they are.

    Rows of embeddings and of tables of users get gradients of very different sizes, and few of them; in one block of 8-bit values the
    large ones would round the small ones away. bitsandbytes advises the same for embeddings, and transformers' trainer does so. Heads
    are small, and decide every reward.

    Args:
        optimizer: Any.
        module: Whose parameters it has.

    Raises:
        ValueError: If it is one of bitsandbytes and weights are sharded over ranks.

    Source:
        Dettmers et al., *8-bit Optimizers via Block-wise Quantization*, ICLR 2022, section 2.3, https://arxiv.org/abs/2110.02861.
        Departures: embeddings are transformers' own, without a norm of their own; what is outside the backbone keeps 32 bits, too.
    """
    if "bitsandbytes" not in sys.modules:  # so it is none of its
        return
    from bitsandbytes.optim.optimizer import GlobalOptimManager, Optimizer8bit

    if not isinstance(optimizer, Optimizer8bit):
        return
    if any(
        isinstance(parameter, DTensor) for group in optimizer.param_groups for parameter in group["params"]
    ):
        raise ValueError(
            f"model.optimizer={type(optimizer).__name__} of bitsandbytes knows nothing of weights that are sharded over ranks: use "
            "torch.optim.AdamW, whose state is sharded with them"
        )
    # The manager that all optimisers of a process share knows weights by their place in a group, whoever's they are.
    manager: Any = GlobalOptimManager.__new__(GlobalOptimManager)
    manager.initialize()
    manager.override_config([*_in_32_bits(module)], "optim_bits", 32)
    manager.register_parameters(optimizer.param_groups)
    vars(optimizer)["mng"] = manager


def _in_32_bits(module: nn.Module) -> Iterator[nn.Parameter]:
    for name, parameter in module.named_parameters():
        if not name.startswith("backbone."):
            yield parameter
    for part in module.modules():
        if isinstance(part, nn.Embedding):
            yield from part.parameters(recurse=False)
