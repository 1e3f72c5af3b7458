"""The weights that a run started from: how far it has moved from them, and what it left behind of them."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..reward import RewardModule

__all__ = ["StartWeights", "StartedModule"]

SHARDED = "l2_sp is not there for weights that are sharded over ranks: use trainer.strategy=ddp"
LANGUAGE_HEAD = "backbone.language_head."


class StartWeights:
    """Copies of trained weights as they were at the start; no part of a module's state.

    Attributes:
        digest: Number that tells these weights from others: the sum of their squares, in float64.
    """

    def __init__(self, weights: Iterable[nn.Parameter]) -> None:
        """Copy the weights.

        Args:
            weights: As they are at the start.

        Raises:
            ValueError: If they are sharded over ranks.
        """
        self._weights = list(weights)
        if any(isinstance(weight, DTensor) for weight in self._weights):
            raise ValueError(SHARDED)
        self._start = [weight.detach().clone() for weight in self._weights]
        self.digest = float(sum(float(weight.double().square().sum()) for weight in self._start))

    def __len__(self) -> int:
        """Number of tensors."""
        return len(self._weights)

    def squared_distance(self) -> Tensor:
        """Sum of squared differences between now and the start: a scalar with its graph, float32, on the weights' device."""
        device = self._weights[0].device
        if self._start[0].device != device:
            self._start = [
                start.to(weight.device) for start, weight in zip(self._start, self._weights, strict=True)
            ]
        pairs = zip(self._weights, self._start, strict=True)
        return torch.stack([(weight.float() - start.float()).square().sum() for weight, start in pairs]).sum()


class StartedModule(RewardModule):
    """A reward module that remembers the weights it started from, and takes a language-model head over with them.

    Attributes:
        l2_sp: Weight of the pull toward them.
        start: Copies of them; None without such a pull, or where they are not known.
    """

    l2_sp: float = 0.0
    start: StartWeights | None = None
    _start_digest: float | None = None
    _left_head = False

    def keep_start(self) -> None:
        """Copy the trained weights that came from ``init_from``, where the run is pulled toward them; once it is built."""
        if self.l2_sp and self._started:
            named = self.named_parameters()
            self.start = StartWeights(w for name, w in named if w.requires_grad and name in self._loaded_keys)

    def check_trainer(self) -> None:
        """As every module; and the pull knows weights as they were built, which shards take the place of.

        Raises:
            ValueError: If they will be sharded over ranks.
        """
        super().check_trainer()
        sharded = isinstance(self.trainer.strategy, (DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy))
        if self.l2_sp and sharded:
            raise ValueError(SHARDED)

    def on_train_start(self) -> None:
        """Make sure that there is what the run is pulled toward.

        Raises:
            ValueError: If ``l2_sp`` has no weights to start from, or others than the run that goes on had.
        """
        super().on_train_start()
        if not self.l2_sp:
            return
        if self.start is None or not len(self.start):
            raise ValueError(
                f"l2_sp={self.l2_sp} pulls toward the weights that a run started from, and there are none: let init_from "
                "name the checkpoint, also where a run goes on"
            )
        before = self._start_digest
        if before is not None and not math.isclose(before, self.start.digest, rel_tol=1e-9):
            raise ValueError(
                "init_from names other weights than those that this run started from: restore the file"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As every module; and which weights the run is pulled toward, and what it left behind of those."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["pluralign"]["left_language_head"] = self._left_head
        if self.start is not None:
            checkpoint["pluralign"]["start"] = self.start.digest

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As every module; and which weights the run was pulled toward, and what it had left behind."""
        super().on_load_checkpoint(checkpoint)
        kept = checkpoint.get("pluralign", {})
        self._start_digest, self._left_head = kept.get("start"), kept.get("left_language_head", False)

    def with_language_head(
        self, state: dict[str, Tensor], content: Mapping[str, Any]
    ) -> tuple[dict[str, Tensor], set[str]]:
        """Weights to start from, with as much of a language-model head as this run has.

        Args:
            state: Weights of the other run, by name.
            content: Its checkpoint.

        Returns:
            The weights, and names of those of the head that come from elsewhere: the embeddings, or the base's own files.

        Raises:
            ValueError: If there is no such place, or the head is tied to the embeddings in one of the runs alone.
        """
        named = dict(self.named_parameters(remove_duplicate=False))
        ours, theirs = (
            {name for name in names if name.startswith(LANGUAGE_HEAD)} for names in (named, state)
        )
        twins = {
            name: other
            for name in ours
            for other, weight in named.items()
            if weight is named[name] and other not in ours
        }
        for name in twins.keys() & theirs:
            if not torch.equal(state[name], state[twins[name]]):
                raise ValueError(
                    f"init_from={self.init_from!r} has a language-model head of its own, which is tied to the embeddings here: "
                    "set tie_word_embeddings=false in backbone.config"
                )
        left = bool(content.get("pluralign", {}).get("left_language_head", False))
        self._left_head = bool(left or theirs - ours) and not ours
        if theirs - ours:
            rank_zero_info(
                f"init_from={self.init_from!r} has a language-model head, which a run with imitation=0 and perplexity=false "
                "leaves behind"
            )
        kept = {name: value for name, value in state.items() if name not in theirs - ours}
        absent = ours - theirs
        if absent - twins.keys():
            self._check_elsewhere(absent, left=left)
        return kept, absent

    def _check_elsewhere(self, absent: set[str], *, left: bool) -> None:
        """Refuse random weights for a head that the other run lacks, and say where a trained one is lost."""
        if self.backbone_config.name is None and not any(self._may_differ(name) for name in absent):
            raise ValueError(
                f"init_from={self.init_from!r} has no language-model head, and backbone.name is null, so that no other file "
                "has one: train that run with perplexity=true, which keeps it, or let init_may_differ name "
                "backbone.language_head, which starts from random weights"
            )
        if left:
            rank_zero_warn(
                f"the run of init_from={self.init_from!r} left a trained language-model head behind, so that this one starts "
                "from that of backbone.name: set perplexity=true there, which keeps it"
            )
