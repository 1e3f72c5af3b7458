"""Rollouts: what a policy wrote for a batch of items, and the files that keep it."""

from .columns import ReferenceAnswer
from .samples import Rollouts, items_of
from .store import RolloutStore

__all__ = ["ReferenceAnswer", "RolloutStore", "Rollouts", "items_of"]
