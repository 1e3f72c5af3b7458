"""Weights in shards over ranks: PyTorch's fully sharded data parallelism (FSDP2) as a strategy of Lightning's trainer."""

from lightning.pytorch.strategies import StrategyRegistry

from .checkpoints import ShardedCheckpoint, consolidate, is_sharded_checkpoint
from .shards import STEPS, gathered, shard_module, whole_weights
from .strategy import FullyShardedStrategy

__all__ = [
    "STEPS",
    "FullyShardedStrategy",
    "ShardedCheckpoint",
    "consolidate",
    "gathered",
    "is_sharded_checkpoint",
    "shard_module",
    "whole_weights",
]

STRATEGY = "fsdp2"
"""What ``trainer.strategy`` calls it."""

if STRATEGY not in StrategyRegistry:
    StrategyRegistry.register(
        STRATEGY, FullyShardedStrategy, "weights, gradients and optimiser in shards (FSDP2)"
    )
