"""MetaRM: a reward model that learns from its labels what still holds when responses move on."""

from functools import partial
from typing import NamedTuple, Unpack

import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, distributed

from pluralign.datamodules.batch import PreferenceBatch
from pluralign.datamodules.checks import check_range
from pluralign.losses import separation_objective

from .._finite import finding_now, reads_freely
from ..backbone import BackboneConfig
from ..base import ModuleSettings
from ..bradley_terry import BradleyTerryRM
from .meta_step import MetaOutcome, MetaStep, num_ranks

__all__ = ["MetaRM"]

HALF = (torch.bfloat16, torch.float16)
RISE = "meta_step.rise"
"""Name of the latest measured rise among what a checkpoint keeps of an epoch that is not over."""
ADVICE = (
    "MetaRM climbs on prompts with two sampled responses or more, without judgements: name the sources that have them in "
    "MixtureDataModule(unlabelled=[...]), or set model.meta_rate=0, which trains as BradleyTerryRM does"
)


class Separation(NamedTuple):
    """How far apart rewards of responses to one prompt lie, in a batch of groups."""

    objective: Tensor
    """Scalar with a graph; its mean over ranks is J, a mean over the prompts of all ranks."""
    mean: Tensor
    """Scalar, J of this rank's prompts."""
    std: Tensor
    """Scalar, population standard deviation of this rank's rewards."""


class MetaRM(BradleyTerryRM):
    r"""Bradley-Terry reward model whose every step asks what the labels say once responses are told further apart.

    Comparisons come from responses of an early policy; a later one writes others, on which rewards hardly differ. For
    unlabelled groups of responses s of such a policy (``batch["unlabelled"]``) the objective

    .. math::
        J_\theta(x, s) = \frac{2}{k^2} \sum_{i < j} \sigma(|r_\theta(x, s_i) - r_\theta(x, s_j)|)

    is climbed for one step, and the gradient of the loss on the labels there is applied to the weights of before:

    .. math::
        \theta' = \theta + \eta \nabla_\theta J_\theta(X_s), \qquad
        \theta \leftarrow \theta - \alpha \nabla_{\theta'} L(\theta'; X_t)

    This is the report's Algorithm 1, and not its equation 17, the gradient of
    :math:`L + \eta \langle \nabla L, \nabla J \rangle`: to first order the algorithm follows
    :math:`\nabla L + \eta \nabla^2 L \nabla J`, equation 17 has :math:`\eta \nabla^2 J \nabla L` besides, which is lost
    where equation 15 treats :math:`(1 + \eta \nabla^2 J)^{-1}` as a constant. They differ in order eta;
    ``second_order`` has both terms.

    Any separation raises J (``train/objective``), right or wrong, and any growth of scale does: watch
    ``train/accuracy`` and ``train/reward_std`` on the labels and ``train/unlabelled_std`` of the groups' rewards, and
    consider ``reward_centering``. Exactly tied rewards have no gradient of J. With the
    published :math:`\eta = 5 \cdot 10^{-6}` the ascent is a few units in the last place of a float32 weight at
    best, and nothing at all in 16 bits; ``check_every`` looks whether J rises. Training's loss and metrics are
    those at the moved weights; validation, checkpoints, averages and every callback see unmoved ones only.

    A step costs a pass forward and backward over the groups, and a copy of the trained weights. Rounds (a file of
    responses of the newest policy for each) start from the run before with ``init_from``.

    Source:
        Wang et al., *Secrets of RLHF in Large Language Models Part II: Reward Modeling*, 2024, equations 11 to 17 and
        Algorithm 1, https://arxiv.org/abs/2401.06080; also Dou et al., *MetaRM: Shifted Distributions Alignment via
        Meta-Learning*, https://arxiv.org/abs/2405.00438. Departures: J is a mean over the prompts of all ranks
        (our reading); the normalised step :math:`\eta \nabla J / \lVert \nabla J \rVert` (our reading), the second order,
        smoothing, breaking of ties and the check are additions; the ascent reads the same dropout as training does;
        labels, margins and weights count as in :class:`BradleyTerryRM`. Accumulated batches climb each by itself.
    """

    reads_unlabelled = True
    sharded_entries = ()  # a step moves weights in their shards

    def __init__(
        self,
        backbone: BackboneConfig,
        *,
        meta_rate: float = 5e-6,
        normalized: bool = False,
        second_order: bool = False,
        smoothing: float = 0.0,
        break_ties: bool = False,
        check_every: int = 50,
        label_smoothing: float = 0.0,
        reward_centering: float = 0.0,
        **settings: Unpack[ModuleSettings],
    ) -> None:
        """Keep the settings; ``configure_model`` builds the network.

        Args:
            backbone: Which network, in which state; trained weights must be float32 (all of it, or adapters).
            meta_rate: Rate of the ascent, >= 0 (eta of the paper); 0 trains as :class:`BradleyTerryRM` does, to the bit.
            normalized: Whether the ascent goes ``meta_rate`` far, however steep the objective is.
            second_order: Whether the gradient goes through the ascent; one pass more, with attention of plain
                operations. Not with quantized bases or sharded weights.
            smoothing: Width of the rounded corner of |d| in the objective, >= 0, in the unit of the rewards.
            break_ties: Whether exactly tied rewards are parted, in the order of the responses.
            check_every: Training batches, >= 0, from one check to the next of whether the ascent raises the objective,
                each of one pass without gradients; logged as ``train/objective_rise``. 0 for none.
            label_smoothing: As :class:`BradleyTerryRM` has it.
            reward_centering: As :class:`BradleyTerryRM` has it.
            **settings: As :class:`BaseModule` has them.

        Raises:
            ValueError: If a setting is outside its range, or the second order cannot be had with the backbone.

        .. versionadded:: 0.1
        """
        super().__init__(
            backbone, label_smoothing=label_smoothing, reward_centering=reward_centering, **settings
        )
        for name, value in (("meta_rate", meta_rate), ("smoothing", smoothing), ("check_every", check_every)):
            check_range(name, value, at_least=0)
        if second_order and (quantization := self.backbone_config.quantization):
            raise ValueError(
                f"second_order=true differentiates twice, which layers of backbone.quantization={quantization!r} cannot: set "
                "one of them to its default"
            )
        self.meta_rate, self.smoothing, self.break_ties = meta_rate, smoothing, break_ties
        self.check_every = check_every
        self._meta_step = MetaStep(meta_rate, normalized=normalized, second_order=second_order)
        self._groups_checked = self._warned = False
        self._rise: Tensor | None = None

    # Checks --------------------------------------------------------------------------------------------

    def check_trainer(self) -> None:
        """Make sure that a fit can make meta steps as the trainer is set.

        Raises:
            ValueError: If weights are held in a way, or gradients scaled, that the ascent does not know.
        """
        super().check_trainer()
        if not self.meta_rate or not self.fitting:
            return
        strategy = self.trainer.strategy
        if self.trainer.precision == "16-mixed":
            raise ValueError(
                "trainer.precision=16-mixed would lose the ascent's small gradients, which no scaler scales: use bf16-mixed "
                "or 32-true"
            )
        in_pieces = isinstance(strategy, (DeepSpeedStrategy, FSDPStrategy))
        if in_pieces:
            raise ValueError(
                f"{type(strategy).__name__} holds weights in pieces that MetaRM cannot move: use trainer.strategy=ddp or fsdp2"
            )
        if isinstance(strategy, ModelParallelStrategy) and self._meta_step.second_order:
            raise ValueError("second_order=true does not work on sharded weights: use first order, or ddp")

    def on_fit_start(self) -> None:
        """Make sure that the trained weights can be moved by so little, and differentiated so often.

        Raises:
            ValueError: If trained weights have 16 bits.
        """
        super().on_fit_start()
        if not self.meta_rate:
            return
        halves = [n for n, p in self.named_parameters() if p.requires_grad and p.dtype in HALF]
        if halves:
            raise ValueError(
                f"trained weights of 16 bits, such as {halves[0]}, would lose the ascent: at 0.02 a bfloat16 weight moves by "
                f"6e-5 or not at all, and meta_rate is {self.meta_rate:g}. Set backbone.dtype=float32 (with "
                "trainer.precision=bf16-mixed for speed), or train float32 adapters (backbone.lora)"
            )

    def setup(self, stage: str) -> None:
        """Check the trainer, and later the first batch and its groups."""
        super().setup(stage)
        self._groups_checked = False

    def check_groups(self, batch: PreferenceBatch) -> None:
        """Make sure that a training batch has groups to climb on; of the first one, that they are groups.

        Raises:
            ValueError: If it has none, or the network cannot read them.
        """
        if "unlabelled" not in batch:
            raise ValueError(f"the training batch has no 'unlabelled' groups, only {sorted(batch)}. {ADVICE}")
        if self._groups_checked:
            return
        groups = batch["unlabelled"]
        self.check_network(groups)
        if not bool(_num_groups(groups) > 0):
            raise ValueError(f"no prompt of batch['unlabelled'] has two responses. {ADVICE}")
        self._groups_checked = True

    # The step ------------------------------------------------------------------------------------------

    def separation(self, groups: PreferenceBatch) -> Separation:
        """The objective on a batch of groups: a mean over the prompts that have two responses or more.

        Args:
            groups: Responses and which prompt each is of; judgements are not read.
        """
        output = self(groups)
        if reads_freely(output):
            found = finding_now(self, output, None, partial(self._name, groups, "train"))
            self._stop_at(found, passing=self.passes_over)
        reward = output["reward"]
        total = separation_objective(
            reward,
            group=groups["response_prompt"],
            smoothing=self.smoothing,
            break_ties=self.break_ties,
            reduction="sum",
        )
        own, ranks = _num_groups(groups).to(total.dtype), num_ranks()
        number = own.clone()
        if ranks > 1:
            distributed.all_reduce(number)
        std = reward.detach().std(correction=0)
        mean = total.detach() / own.clamp_min(1)
        return Separation(total * ranks / number.clamp_min(1), mean, std)

    def training_step(self, batch: PreferenceBatch, batch_idx: int) -> Tensor:
        """Loss of one batch at the weights that the groups' objective leads to; its pass backward is that of the meta step."""
        if not self.meta_rate:
            return super().training_step(batch, batch_idx)
        if not self._checked:
            self.check_batch(batch)
        self.check_groups(batch)
        groups, seen = batch["unlabelled"], list[Separation]()

        def objective() -> Tensor:
            with self.argument_checks.of("objective"):
                found = self.separation(groups)
            seen.append(found)
            return found.objective

        def loss() -> Tensor:
            return super(MetaRM, self).training_step(batch, batch_idx)

        check = self.check_every > 0 and batch_idx % self.check_every == 0
        outcome = self._meta_step(self, objective, loss, check=check)
        values = {"objective": seen[0].mean, "unlabelled_std": seen[0].std}
        if outcome.rise is not None:
            self._rise = outcome.rise.detach()
            self._judge(outcome, seen[0].mean)
        if self._rise is not None:  # the latest stands in the log until the next check
            values["objective_rise"] = self._rise
        logged = {f"train/{name}": value.detach() for name, value in values.items()}
        self.step_values |= logged
        self.log_dict(logged, batch_size=len(groups["response_prompt"]))
        return outcome.loss

    def running_sums(self) -> dict[str, Tensor]:
        """Sums of the training metrics, and the latest rise that was measured."""
        sums = super().running_sums()
        return sums if self._rise is None else {**sums, RISE: self._rise}

    def restore_sums(self, sums: dict[str, Tensor]) -> None:
        """Go on counting, with the latest rise."""
        if RISE in sums:
            self._rise = sums[RISE].to(self.device)
        super().restore_sums({name: value for name, value in sums.items() if name != RISE})

    def _judge(self, outcome: MetaOutcome, objective: Tensor) -> None:
        """Say once that a checked ascent did not raise the objective, and why."""
        if self._warned or outcome.rise is None or outcome.expected is None:
            return
        rise, expected = float(outcome.rise), float(outcome.expected)
        dtype = self._computed_in(objective.device.type)
        told_apart = float(objective) * torch.finfo(dtype).eps
        if expected == 0:
            problem = (
                "the ascent has no gradient, so that this is plain training: rewards of each prompt's responses are equal. Set "
                "break_ties=true, and start from a head that is not zero"
            )
        elif rise >= 0:
            return
        elif expected < told_apart:
            problem = (
                f"whether the ascent raises the objective cannot be seen: {expected:.1e} is expected, and {dtype} tells apart "
                f"{told_apart:.1e} (measured: {rise:.1e}). Weights move by next to nothing; a larger meta_rate, or "
                "normalized=true with the length of the move, would have an effect"
            )
        else:
            problem = (
                f"the ascent lowers the objective, by {-rise:.1e} where a rise of {expected:.1e} was expected: it goes too far; "
                "lower meta_rate"
            )
        self._warned = True
        rank_zero_warn(f"MetaRM with meta_rate={self.meta_rate:g}: {problem}")

    def _computed_in(self, device: str) -> torch.dtype:
        """The coarsest type of number that rewards go through."""
        if torch.is_autocast_enabled(device):
            return torch.get_autocast_dtype(device)
        dtype: torch.dtype = getattr(torch, self.backbone_config.dtype)
        return dtype


def _num_groups(groups: PreferenceBatch) -> Tensor:
    """Prompts with two responses or more, a scalar on their device, which is not read."""
    prompt = groups["response_prompt"]
    sizes = torch.zeros(len(groups["id"]), dtype=torch.int64, device=prompt.device)
    return (sizes.index_add(0, prompt, torch.ones_like(prompt)) >= 2).sum()
