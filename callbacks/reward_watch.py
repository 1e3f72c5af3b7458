"""RewardWatch: a second reward model rates what a policy writes, and ends the run when the two part."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn

from pluralign.datamodules.checks import check_range
from pluralign.datamodules.prompt_batch import PromptBatch, RewardFunction
from pluralign.models.responding import RespondingModule, rated
from pluralign.models.rollouts import Rollouts

__all__ = ["RewardWatch"]

NAME = "watch"


class Seen(NamedTuple):
    """What a validation found: means over responses."""

    step: int
    trained: float
    """Of the reward that is trained on."""
    watching: float
    """Of the reward that watches."""


class RewardWatch(L.Callback):
    """Watch for a policy that learns the faults of its reward model: rewards rise while its responses get worse.

    A reward model that training does not see, such as one of another seed, other data or another method, rates the
    responses of every validation; its mean is logged as ``val/watch`` (``test/watch`` in a test). Where in ``patience``
    validations one after another the trained reward is above, and the watching one below, what they were when the
    watching one was at its best, the run ends. The message names the step of that best, from which a checkpoint would be taken.

    Attributes:
        best: The validation of the fit in which the watching reward was highest; None before the first.
        num_parted: Validations up to now in which the two had parted.
    """

    def __init__(self, reward: RewardFunction, *, patience: int = 3, min_drop: float = 0.0) -> None:
        """Keep the settings.

        Args:
            reward: The reward that watches: a class with its arguments (``class_path``, ``init_args``) or the import path of
                a function.
            patience: Validations in which the two must have parted, >= 1.
            min_drop: How far the watching reward must be below its best, >= 0, in its units.

        Raises:
            ValueError: If a setting is outside its range.
        """
        check_range("patience", patience, at_least=1)
        check_range("min_drop", min_drop, at_least=0)
        self.reward, self.patience, self.min_drop = reward, patience, min_drop
        self.best: Seen | None = None
        self.num_parted = 0
        self._sums = torch.zeros(3, dtype=torch.float64)

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin to count."""
        self._sums = torch.zeros(3, dtype=torch.float64)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,  # noqa: ANN401  Lightning's type; the responses of a RespondingModule
        batch: PromptBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Have the responses rated.

        Raises:
            TypeError: If the module writes no responses.
            ValueError: If a rating is not finite.
        """
        if trainer.sanity_checking:
            return
        if not isinstance(pl_module, RespondingModule) or not isinstance(outputs, Mapping):
            raise TypeError(
                f"RewardWatch rates the responses of a policy, and {type(pl_module).__name__} writes none: leave the callback out"
            )
        rollouts: Rollouts = outputs["rollouts"]
        watching = pl_module.ratings_by({NAME: self.reward}, rollouts)[:, 0]
        trained = rated(rollouts).cpu()
        self._sums += torch.stack(
            [trained.double().sum(), watching.double().sum(), torch.tensor(len(rollouts))]
        )

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the mean, and end the fit if the two have parted for long enough."""
        if trainer.sanity_checking:
            return
        sums = self._sums
        if trainer.world_size > 1:
            sums = trainer.strategy.all_gather(sums.float().to(pl_module.device)).sum(0)
        trained, watching, number = sums.tolist()
        if not number:
            return
        stage = "test" if trainer.testing else "val"
        pl_module.log(f"{stage}/{NAME}", watching / number)
        if trainer.state.fn == TrainerFn.FITTING:
            self._judge(trainer, Seen(trainer.global_step, trained / number, watching / number))

    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end

    def _judge(self, trainer: L.Trainer, now: Seen) -> None:
        best = self.best
        if best is None or now.watching >= best.watching:
            self.best, self.num_parted = now, 0
            return
        parted = now.trained > best.trained and now.watching < best.watching - self.min_drop
        self.num_parted = self.num_parted + 1 if parted else 0
        if self.num_parted >= self.patience:
            trainer.should_stop = True
            rank_zero_warn(
                f"RewardWatch ends the run at step {now.step:,}: since step {best.step:,} the trained reward rose from "
                f"{best.trained:.4g} to {now.trained:.4g}, and the reward that watches fell from {best.watching:.4g} to "
                f"{now.watching:.4g} ({self.num_parted} validations). The policy learns the faults of its reward: take a "
                f"checkpoint of step {best.step:,}, raise model.kl_weight or lower model.step_size; more patience lets it go on"
            )

    def state_dict(self) -> dict[str, Any]:
        """What a run that goes on needs."""
        return {"best": None if self.best is None else list(self.best), "num_parted": self.num_parted}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back."""
        best = state_dict["best"]
        self.best = None if best is None else Seen(int(best[0]), float(best[1]), float(best[2]))
        self.num_parted = int(state_dict["num_parted"])
