"""RolloutModule: a policy writes responses, rewards rate them, and REBEL moves it: one engine for mixtures and plain policies."""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, distributed
from torch.optim.lr_scheduler import ReduceLROnPlateau

from pluralign.datamodules.checks import check_range
from pluralign.datamodules.prompt_batch import PromptBatch
from pluralign.losses import rebel_loss

from .backbone import BackboneConfig
from .responding import RespondingModule, RespondingSettings, rated
from .rollouts import Rollouts, RolloutStore
from .sharding import gathered, whole_weights

__all__ = ["RolloutModule", "RolloutSettings", "steps_of"]

SPREAD_MEMORY = 0.9
"""Weight of the rounds before in the running spread of reward differences."""
FOLDER = "rollouts"


class RolloutSettings(RespondingSettings, total=False):
    """What every module that learns from its own responses takes; :class:`RolloutModule` says what it means."""

    num_epochs: int
    batch_size: int
    eta: float | None
    step_size: float
    max_grad_norm: float | None
    rollout_dir: str | None


class RolloutModule(RespondingModule, ABC):
    r"""Base of modules that write responses and learn which of two their rewards prefer.

    A training batch is a *round*: several responses to every item are drawn from the policy as it is, rated, and then
    learned from in several optimiser steps, which need no further responses (REBEL, see :func:`rebel_loss`). A round is
    written to a file before the first of its steps, so that a run that was killed does not write and rate it anew.

    A subclass writes :meth:`respond`, :meth:`reference_answers`, :meth:`log_probs` and ``configure_model``.
    """

    sharded_entries = ("relative_loss",)

    num_rounds: Tensor
    spread: Tensor

    def __init__(
        self,
        backbone: BackboneConfig | Mapping[str, Any],
        *,
        num_epochs: int = 4,
        batch_size: int = 16,
        eta: float | None = None,
        step_size: float = 0.75,
        max_grad_norm: float | None = 1.0,
        rollout_dir: str | None = None,
        **settings: Unpack[RespondingSettings],
    ) -> None:
        """Keep the settings; builds no weights and reads no file.

        Args:
            backbone: Which network is trained, in which state; a mapping of its fields also does.
            num_epochs: Passes over a round's responses, >= 1.
            batch_size: Items in an optimiser step, with all of their responses, >= 1.
            eta: Nats of log-ratio per unit of reward, > 0; None for ``step_size`` divided by the running spread of the
                rewards' differences, so that it does not depend on the rewards' scale.
            step_size: Nats of log-ratio that differ where rewards differ by their standard deviation, > 0.
            max_grad_norm: Norm that gradients are clipped to, > 0; None for no clipping.
            rollout_dir: Folder of the rounds' files; None for ``rollouts`` in the run's folder.
            **settings: As :class:`RespondingModule` has them.

        Raises:
            ValueError: If a setting is outside its range.
        """
        super().__init__(backbone, **settings)
        check_range("num_epochs", num_epochs, at_least=1)
        check_range("batch_size", batch_size, at_least=1)
        for name, value in {"eta": eta, "step_size": step_size, "max_grad_norm": max_grad_norm}.items():
            check_range(name, value, above=0)
        self.automatic_optimization = False  # a round has several steps
        self.num_epochs, self.batch_size = num_epochs, batch_size
        self.eta, self.step_size, self.max_grad_norm = eta, step_size, max_grad_norm
        self.rollout_dir = rollout_dir
        self.register_buffer("num_rounds", torch.zeros((), dtype=torch.int64))
        self.register_buffer("spread", torch.zeros(()))

    # What a method writes ------------------------------------------------------------------------------

    @abstractmethod
    def log_probs(self, rollouts: Rollouts) -> Tensor:
        """Log-probability of every token under the policy as it is now, (S, T) float32, with its graph; 0 on padding."""

    def scores(self, rollouts: Rollouts) -> tuple[Tensor, Tensor | None]:
        """What :meth:`log_probs` gives, and a scalar that is added to the loss; none, unless overridden."""
        return self.log_probs(rollouts), None

    def check_learning(self) -> None:
        """Make sure, before a fit, that there is something to learn; raises ``ValueError`` if not."""
        if not self.rewards:
            raise ValueError(f"{type(self).__name__} learns from rewards, and has none: set model.rewards")

    def setup(self, stage: str) -> None:
        """Make sure, before a fit, that there is something to learn, and prompts to learn from."""
        super().setup(stage)
        if stage == "fit" and self.trainer.precision == "16-mixed":
            raise ValueError(
                "trainer.precision='16-mixed' scales losses, and gradients would be clipped (max_grad_norm) as they are scaled: use "
                "bf16-mixed, 32-true, or backbone.dtype=bfloat16"
            )
        if stage == "fit":
            self.check_learning()
            _ = self.prompt_source

    def on_fit_start(self) -> None:
        """Open the folder of the rounds."""
        super().on_fit_start()
        if isinstance(self.lr_schedulers(), ReduceLROnPlateau):
            raise TypeError(
                f"{type(self).__name__} steps its scheduler after every optimiser step: take another than a plateau one"
            )
        trainer = self.trainer
        folder = Path(self.rollout_dir or Path(trainer.log_dir or trainer.default_root_dir) / FOLDER)
        self._store = RolloutStore(folder, self.description())

    # Rounds --------------------------------------------------------------------------------------------

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """A round: responses, ratings, and the optimiser steps that learn from them."""
        self.check_resumed()
        with self.argument_checks.of("train"):
            rollouts = self.round(batch)
            eta, spread = self._scale(rollouts)
            losses = [
                self._update(part.to(self.device), eta, weight) for part, weight in self._parts(rollouts)
            ]
        self.num_rounds += 1
        shown = {
            "loss": torch.stack(losses).mean(),
            "reward_spread": spread,
            "eta": torch.as_tensor(eta),
            "step_size": eta * spread,
            **self._shown(rollouts),
        }
        # One mean over the ranks of all of them: what a checkpoint keeps of the step is what was logged.
        means = torch.stack([value.detach().float().to(self.device) for value in shown.values()])
        if self.trainer.world_size > 1:
            means = torch.as_tensor(self.trainer.strategy.reduce(means, reduce_op="mean"))
        self.step_values = {f"train/{name}": mean for name, mean in zip(shown, means.unbind(), strict=True)}
        for name, mean in self.step_values.items():
            bar = name in ("train/loss", "train/reward")
            self.log(name, mean, batch_size=len(batch["id"]), prog_bar=bar)

    def round(self, batch: PromptBatch) -> Rollouts:
        """Responses of the policy as it is, rated, on the CPU; read from the folder if an interrupted run has written them."""
        number, rank, weights = int(self.num_rounds), self.global_rank, self.policy_digest()
        # Shards are gathered by all ranks, of which some may read what others have to write, in unequally many tokens.
        with gathered(self):
            if self._store is not None:
                found = self._store.read(number, rank, batch, weights=weights)
                if found is not None:
                    rank_zero_info(
                        f"round {number}: the responses that an interrupted run has written are used"
                    )
                    return found
            generator = torch.Generator(self.device).manual_seed(self.seed_of(number, rank))
            written = self.respond(batch, num_samples=self.num_samples, sample=True, generator=generator)
            rollouts = written.to("cpu")
            self.rate(rollouts)
        if self._store is not None:
            self._store.write(number, rank, rollouts, weights=weights)
        return rollouts

    @torch.no_grad()
    def policy_digest(self) -> str:
        """What tells the trained weights of now from others."""
        digest = hashlib.sha256()
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                values = whole_weights(parameter).double()
                digest.update(f"{name} {float(values.sum())!r} {float(values.square().sum())!r}".encode())
        return digest.hexdigest()[:16]

    def _round_number(self) -> int:
        return int(self.num_rounds)

    def _scale(self, rollouts: Rollouts) -> tuple[float, Tensor]:
        """Eta of a round, and the spread of its rewards' differences over all ranks."""
        first, second = _pairs(rollouts)
        reward = rated(rollouts)
        square = (reward[first] - reward[second]).square()
        total = torch.stack([square.sum(), torch.tensor(float(len(square)))]).to(self.device)
        if self.trainer.world_size > 1:
            total = torch.as_tensor(self.trainer.strategy.reduce(total, reduce_op="sum"))
        spread = (total[0] / total[1]).sqrt()
        memory = SPREAD_MEMORY if int(self.num_rounds) and float(self.spread) > 0 else 0.0
        self.spread.copy_(memory * self.spread + (1 - memory) * spread)
        running = float(self.spread)
        if self.eta is not None:
            return self.eta, spread
        return (self.step_size / running if running > 0 else self.step_size), spread

    def _parts(self, rollouts: Rollouts) -> Iterator[tuple[Rollouts, float]]:
        """What each optimiser step of a round learns from, and what its loss is multiplied by."""
        sizes = [rollouts.num_items]
        if self.trainer.world_size > 1:
            own = torch.tensor([sizes[0]], device=self.device)
            of_ranks = [torch.zeros_like(own) for _ in range(self.trainer.world_size)]
            distributed.all_gather(of_ranks, own)
            sizes = torch.cat(of_ranks).tolist()
        generator = torch.Generator().manual_seed(self.seed_of(int(self.num_rounds), -1))
        for _ in range(self.num_epochs):
            for items, weight in steps_of(sizes, self.global_rank, self.batch_size, generator):
                yield rollouts.part(items), weight

    def relative_loss(self, rollouts: Rollouts, eta: float) -> Tensor:
        """REBEL's loss of rated responses, a mean over every two responses of an item, in squared nats."""
        log_prob, added = self.scores(rollouts)
        log_ratio = (log_prob - rollouts.log_prob).sum(1)
        first, second = _pairs(rollouts)
        reward = rated(rollouts)
        loss = rebel_loss(
            log_ratio[first], log_ratio[second], reward[first], reward[second], eta=eta, scaling="log_ratio"
        )
        return loss if added is None else loss + added

    def _update(self, part: Rollouts, eta: float, weight: float) -> Tensor:
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        assert isinstance(optimizer, LightningOptimizer)  # as configure_optimizers made it
        loss = self.relative_loss(part, eta)
        optimizer.zero_grad()
        self.manual_backward(loss * weight)
        if self.max_grad_norm is not None:
            self.clip_gradients(optimizer.optimizer, self.max_grad_norm, "norm")
        optimizer.step()
        if scheduler is not None:
            assert not isinstance(scheduler, list | ReduceLROnPlateau)  # on_fit_start refused the latter
            scheduler.step()
        return loss.detach()


def steps_of(
    sizes: Sequence[int], rank: int, batch_size: int, generator: torch.Generator
) -> Iterator[tuple[list[int], float]]:
    """Items of each step of a pass over a round, on one of several ranks that may have unequal numbers of them.

    All ranks take equally many steps, and divide their items evenly over them. DDP takes the mean of their gradients: a rank's
    weight, items of its own over the mean of all ranks, makes it the mean over all items of the step. A rank without an item for
    a step takes one that counts nothing.

    Args:
        sizes: Items of each rank, >= 1.
        rank: Which one.
        batch_size: Items of a step on a rank at most.
        generator: Of the order.

    Yields:
        Items of this rank, ascending, and its weight.
    """
    steps = math.ceil(max(sizes) / batch_size)
    counts = [
        [(size * (step + 1)) // steps - (size * step) // steps for step in range(steps)] for size in sizes
    ]
    order = torch.randperm(sizes[rank], generator=generator)
    for step, items in enumerate(order.split(counts[rank])):
        total = sum(count[step] for count in counts)
        chosen = items if len(items) else order[:1]
        yield chosen.sort().values.tolist(), len(items) * len(sizes) / total


def _pairs(rollouts: Rollouts) -> tuple[Tensor, Tensor]:
    """Every two responses of an item, (P,) each; every item has equally many."""
    number = len(rollouts) // rollouts.num_items
    first, second = torch.combinations(torch.arange(number), 2).to(rollouts.item.device).unbind(1)
    start = torch.arange(rollouts.num_items, device=first.device)[:, None] * number
    return (start + first).flatten(), (start + second).flatten()
