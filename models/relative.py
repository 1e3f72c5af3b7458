"""RolloutModule: a policy writes responses, rewards rate them, and REBEL moves it: one engine for mixtures and plain policies."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Unpack

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from pluralign.datamodules.checks import check_choices, check_range
from pluralign.datamodules.prompt_batch import PromptBatch, PromptSource, RewardFunction
from pluralign.losses import rebel_loss

from ._loader_sums import Means
from ._ratings import Ratings, combined, rate
from .backbone import BackboneConfig
from .base import BaseModule, ModuleSettings
from .rollouts import ReferenceAnswer, Rollouts, RolloutStore

if TYPE_CHECKING:
    from transformers import GenerationConfig

__all__ = ["RolloutModule", "RolloutSettings"]

SPREAD_MEMORY = 0.9
"""Weight of the rounds before in the running spread of reward differences."""
FOLDER = "rollouts"
Stage = Literal["val", "test"]


class RolloutSettings(ModuleSettings, total=False):
    """What every module that learns from its own responses takes; :class:`RolloutModule` says what it means."""

    rewards: Mapping[str, RewardFunction] | None
    reference: Literal["greedy", "none"]
    num_samples: int
    num_epochs: int
    batch_size: int
    eta: float | None
    step_size: float
    kl_weight: float
    missing_end_reward: float | None
    max_new_tokens: int
    temperature: float
    max_grad_norm: float | None
    rollout_dir: str | None
    seed: int


class RolloutModule(BaseModule, ABC):
    r"""Base of modules that write responses and learn which of two their rewards prefer.

    A training batch is a *round*: several responses to every item are drawn from the policy as it is, rated, and then
    learned from in several optimiser steps, which need no further responses (REBEL, see :func:`rebel_loss`). A round is
    written to a file before the first of its steps, so that a run that was killed does not write and rate it anew.

    A subclass writes :meth:`respond`, :meth:`log_probs`, :meth:`reference_answers` and ``configure_model``.

    Attributes:
        rewards: Functions by name. One that is called as a dimension counts where an item asks for that dimension, any
            other counts always.
        prompt_source: Data that give prompts; the trainer's, unless it is set.
    """

    not_saved: ClassVar[tuple[str, ...]] = ("rewards",)
    num_rounds: Tensor
    spread: Tensor

    def __init__(
        self,
        backbone: BackboneConfig | Mapping[str, Any],
        *,
        rewards: Mapping[str, RewardFunction] | None = None,
        reference: Literal["greedy", "none"] = "greedy",
        num_samples: int = 2,
        num_epochs: int = 4,
        batch_size: int = 16,
        eta: float | None = None,
        step_size: float = 0.75,
        kl_weight: float = 0.0,
        missing_end_reward: float | None = None,
        max_new_tokens: int = 64,
        temperature: float = 1.0,
        max_grad_norm: float | None = 1.0,
        rollout_dir: str | None = None,
        seed: int = 0,
        **settings: Unpack[ModuleSettings],
    ) -> None:
        """Keep the settings; builds no weights and reads no file.

        Args:
            backbone: Which network is trained, in which state; a mapping of its fields also does.
            rewards: Functions that rate responses, by name; a class with its arguments (``class_path``, ``init_args``) or
                the import path of a function. Needed to train and to validate, not to write responses.
            reference: ``greedy``: the reward is the mean probability, over what counts, of beating an answer that is
                written once for every item without sampling, by what the method starts from; ``none``: the mean of the
                rewards themselves.
            num_samples: Responses to every item in a round, >= 2, and in validation; every two of an item are compared.
            num_epochs: Passes over a round's responses, >= 1.
            batch_size: Items in an optimiser step, with all of their responses, >= 1.
            eta: Nats of log-ratio per unit of reward, > 0; None for ``step_size`` divided by the running spread of the
                rewards' differences, so that it does not depend on the rewards' scale.
            step_size: Nats of log-ratio that differ where rewards differ by their standard deviation, > 0.
            kl_weight: What a nat of a response's log-ratio to the reference policy takes from its reward, >= 0.
            missing_end_reward: Reward of a response that does not end within ``max_new_tokens``; None for its own.
            max_new_tokens: Longest response, >= 1.
            temperature: Of sampling, > 0; of a mixture that of every expert, before they are mixed.
            max_grad_norm: Norm that gradients are clipped to, > 0; None for no clipping.
            rollout_dir: Folder of the rounds' files; None for ``rollouts`` in the run's folder.
            seed: Of sampling, with the number of the round.
            **settings: As :class:`BaseModule` has them.

        Raises:
            ValueError: If a setting is outside its range.
        """
        super().__init__(backbone, **settings)
        check_choices(RolloutModule.__init__, reference=reference)
        check_range("num_samples", num_samples, at_least=2)
        for name, count in {"num_epochs": num_epochs, "batch_size": batch_size, "max_new_tokens": max_new_tokens}.items():
            check_range(name, count, at_least=1)
        for name, value in {"eta": eta, "step_size": step_size, "temperature": temperature}.items():
            check_range(name, value, above=0)
        check_range("max_grad_norm", max_grad_norm, above=0)
        check_range("kl_weight", kl_weight, at_least=0)
        check_range("seed", seed, at_least=0)
        self.automatic_optimization = False  # a round has several steps
        self.rewards = dict(rewards or {})
        self.reference: Literal["greedy", "none"] = reference
        self.num_samples, self.num_epochs, self.batch_size = num_samples, num_epochs, batch_size
        self.eta, self.step_size, self.kl_weight = eta, step_size, kl_weight
        self.missing_end_reward, self.max_grad_norm = missing_end_reward, max_grad_norm
        self.max_new_tokens, self.temperature = max_new_tokens, temperature
        self.rollout_dir, self.seed = rollout_dir, seed
        self.register_buffer("num_rounds", torch.zeros((), dtype=torch.int64))
        self.register_buffer("spread", torch.zeros(()))
        self._source: PromptSource | None = None
        self._means: Means | None = None
        self._store: RolloutStore | None = None
        self._reference_rewards: dict[int, Tensor] = {}

    # What a method writes ------------------------------------------------------------------------------

    @abstractmethod
    def respond(
        self,
        batch: PromptBatch,
        *,
        num_samples: int = 1,
        sample: bool = False,
        generator: torch.Generator | None = None,
        config: "GenerationConfig | None" = None,
        streamer: object = None,
    ) -> Rollouts:
        """Write responses.

        Args:
            batch: Items, on the module's device.
            num_samples: Responses to each.
            sample: Whether tokens are drawn, at ``temperature``; the likeliest otherwise.
            generator: Of the draws; None for the global one.
            config: How tokens are chosen, in place of ``sample`` and ``temperature``.
            streamer: Told of tokens as they are chosen, of a single response.
        """

    @abstractmethod
    def log_probs(self, rollouts: Rollouts) -> Tensor:
        """Log-probability of every token under the policy as it is now, (S, T) float32, with its graph; 0 on padding."""

    @abstractmethod
    def reference_answers(self, batch: PromptBatch) -> Rollouts:
        """The answer to every item that rewards are relative to, written without sampling."""

    def scores(self, rollouts: Rollouts) -> tuple[Tensor, Tensor | None]:
        """What :meth:`log_probs` gives, and a scalar that is added to the loss; none, unless overridden."""
        return self.log_probs(rollouts), None

    def measures(self, rollouts: Rollouts) -> dict[str, Tensor]:
        """What else is logged of responses, a scalar by name, weighed by their number; nothing, unless overridden."""
        return {}

    def check_learning(self) -> None:
        """Make sure, before a fit, that there is something to learn; raises ``ValueError`` if not."""
        if not self.rewards:
            raise ValueError(f"{type(self).__name__} learns from rewards, and has none: set model.rewards")

    def description(self) -> dict[str, object]:
        """What decides the responses of a round beside weights, items and seed."""
        return {"max_new_tokens": self.max_new_tokens, "temperature": self.temperature, "seed": self.seed}

    # Data ----------------------------------------------------------------------------------------------

    @property
    def prompt_source(self) -> PromptSource:
        """Data that give prompts.

        Raises:
            ValueError: If the trainer's data do not.
        """
        if self._source is not None:
            return self._source
        trainer = self.attached_trainer
        data = None if trainer is None else getattr(trainer, "datamodule", None)
        if not isinstance(data, PromptSource):
            raise ValueError(
                f"{type(self).__name__} writes responses to prompts, and {type(data).__name__} gives none: use a data module "
                "of prompts, such as PersonalizedPromptsDataModule, or set prompt_source"
            )
        return data

    @prompt_source.setter
    def prompt_source(self, source: PromptSource | None) -> None:
        self._source = source

    def on_fit_start(self) -> None:
        """Make sure that there is something to learn from, and open the folder of the rounds."""
        super().on_fit_start()
        self.check_learning()
        _ = self.prompt_source
        trainer = self.trainer
        folder = Path(self.rollout_dir or Path(trainer.log_dir or trainer.default_root_dir) / FOLDER)
        self._store = RolloutStore(folder, self.description())

    # Rounds --------------------------------------------------------------------------------------------

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """A round: responses, ratings, and the optimiser steps that learn from them."""
        self.check_resumed()
        rollouts = self.round(batch)
        eta, spread = self._scale(rollouts)
        losses = [self._update(part.to(self.device), eta) for part in self._parts(rollouts)]
        self.num_rounds += 1
        shown = {
            "loss": torch.stack(losses).mean(),
            "reward_spread": spread,
            "eta": torch.as_tensor(eta),
            "step_size": eta * spread,
            **self._shown(rollouts),
        }
        self.step_values = {f"train/{name}": value.detach().float() for name, value in shown.items()}
        for name, value in self.step_values.items():
            self.log(name, value, batch_size=len(batch["id"]), prog_bar=name in ("train/loss", "train/reward"))

    def round(self, batch: PromptBatch) -> Rollouts:
        """Responses of the policy as it is, rated, on the CPU; read from the folder if an interrupted run has written them."""
        number, rank, weights = int(self.num_rounds), self.global_rank, self.policy_digest()
        if self._store is not None:
            found = self._store.read(number, rank, batch, weights=weights)
            if found is not None:
                rank_zero_info(f"round {number}: the responses that an interrupted run has written are used")
                return found
        generator = torch.Generator(self.device).manual_seed(self.seed_of(number, rank))
        rollouts = self.respond(batch, num_samples=self.num_samples, sample=True, generator=generator).to("cpu")
        self.rate(rollouts)
        if self._store is not None:
            self._store.write(number, rank, rollouts, weights=weights)
        return rollouts

    def seed_of(self, number: int, rank: int) -> int:
        """Seed of a round's draws on a rank."""
        return int.from_bytes(hashlib.sha256(f"{self.seed} {number} {rank}".encode()).digest()[:7], "big")

    @torch.no_grad()
    def policy_digest(self) -> str:
        """What tells the trained weights of now from others."""
        digest = hashlib.sha256()
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                values = parameter.double()
                digest.update(f"{name} {float(values.sum())!r} {float(values.square().sum())!r}".encode())
        return digest.hexdigest()[:16]

    def rate(self, rollouts: Rollouts) -> None:
        """Have the rewards rate responses, and put what they say together; kept in the rollouts.

        Raises:
            ValueError: If there are no rewards, or one is not finite.
        """
        if not self.rewards:
            raise ValueError(f"{type(self).__name__} has no rewards to rate responses with: set model.rewards")
        ratings = self._ratings(rollouts)
        references = None
        if self.reference == "greedy":
            of_items = self._references(rollouts.prompts)
            rollouts.reference_rewards = self._named(of_items)
            references = of_items[rollouts.item.cpu()]
        device = rollouts.log_prob.device
        rollouts.rewards = {name: score.to(device) for name, score in self._named(ratings.scores).items()}
        reward = combined(ratings, references).to(device)
        if self.missing_end_reward is not None:
            reward = torch.where(rollouts.finished, reward, self.missing_end_reward)
        if self.kl_weight:
            reward = reward - self.kl_weight * _log_ratio(rollouts)
        rollouts.reward = reward

    def _ratings(self, rollouts: Rollouts) -> Ratings:
        dimensions = self.prompt_source.dimensions
        return rate(self.rewards, rollouts.prompts, rollouts.item, rollouts.texts, dimensions)

    def _named(self, scores: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.rewards, scores.unbind(1), strict=True))

    def _references(self, batch: PromptBatch) -> Tensor:
        """What the rewards say of the reference answers, (N, K); each answer is written and rated once."""
        keys, known = batch["item_key"].tolist(), self._reference_rewards
        if self._store is not None and not known:
            for key, answer in self._store.references().items():
                if answer.rewards.keys() == self.rewards.keys():
                    known[key] = torch.tensor([answer.rewards[name] for name in self.rewards])
        lacking = [i for i, key in enumerate(keys) if key not in known]
        if lacking:
            answers = self.reference_answers(items_of(batch, lacking)).to("cpu")
            scores = self._ratings(answers).scores
            known |= {keys[i]: scores[j] for j, i in enumerate(lacking)}
            if self._store is not None:
                new = {keys[i]: self._answer(answers, scores, j) for j, i in enumerate(lacking)}
                self._store.add_references(int(self.num_rounds), self.global_rank, new)
        return torch.stack([known[key] for key in keys])

    def _answer(self, answers: Rollouts, scores: Tensor, place: int) -> ReferenceAnswer:
        tokens = answers.tokens[place, : int(answers.lengths[place])].tolist()
        rewards = dict(zip(self.rewards, scores[place].tolist(), strict=True))
        return ReferenceAnswer(answers.texts[place], tuple(tokens), bool(answers.finished[place]), rewards)

    def _scale(self, rollouts: Rollouts) -> tuple[float, Tensor]:
        """Eta of a round, and the spread of its rewards' differences over all ranks."""
        first, second = _pairs(rollouts)
        reward = _rated(rollouts)
        square = (reward[first] - reward[second]).square().mean().to(self.device)
        if self.trainer.world_size > 1:
            square = self.trainer.strategy.reduce(square, reduce_op="mean")  # type: ignore[assignment]
        spread = square.sqrt()
        memory = SPREAD_MEMORY if int(self.num_rounds) and float(self.spread) > 0 else 0.0
        self.spread.copy_(memory * self.spread + (1 - memory) * spread)
        running = float(self.spread)
        if self.eta is not None:
            return self.eta, spread
        return (self.step_size / running if running > 0 else self.step_size), spread

    def _parts(self, rollouts: Rollouts) -> Iterator[Rollouts]:
        """What each optimiser step of a round learns from."""
        number = len(rollouts.prompts["id"])
        generator = torch.Generator().manual_seed(self.seed_of(int(self.num_rounds), -1))
        for _ in range(self.num_epochs):
            for items in torch.randperm(number, generator=generator).split(self.batch_size):
                yield rollouts.part(items.sort().values.tolist())

    def relative_loss(self, rollouts: Rollouts, eta: float) -> Tensor:
        """REBEL's loss of rated responses, a mean over every two responses of an item, in squared nats."""
        log_prob, added = self.scores(rollouts)
        log_ratio = (log_prob - rollouts.log_prob).sum(1)
        first, second = _pairs(rollouts)
        reward = _rated(rollouts)
        loss = rebel_loss(
            log_ratio[first], log_ratio[second], reward[first], reward[second], eta=eta, scaling="log_ratio"
        )
        return loss if added is None else loss + added

    def _update(self, part: Rollouts, eta: float) -> Tensor:
        optimizer = self.optimizers()
        assert isinstance(optimizer, torch.optim.Optimizer) or hasattr(optimizer, "step")  # there is one
        loss = self.relative_loss(part, eta)
        optimizer.zero_grad()  # type: ignore[union-attr]
        self.manual_backward(loss)
        if self.max_grad_norm is not None:
            self.clip_gradients(optimizer, self.max_grad_norm, "norm")  # type: ignore[arg-type]
        optimizer.step()  # type: ignore[union-attr]
        scheduler = self.lr_schedulers()
        if scheduler is not None:
            scheduler.step()  # type: ignore[union-attr, call-arg]
        return loss.detach()

    def _shown(self, rollouts: Rollouts) -> dict[str, Tensor]:
        """Means over responses that are logged."""
        values = {"reward": _rated(rollouts), "length": rollouts.lengths, "finished": rollouts.finished}
        if rollouts.reference_log_prob is not None:
            values["kl"] = _log_ratio(rollouts)
        return {name: value.float().mean().cpu() for name, value in values.items()} | self.measures(rollouts)

    # Evaluation ----------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Begin to measure."""
        self._means = Means(self.device)

    def on_test_epoch_start(self) -> None:
        """Begin to measure."""
        self._means = Means(self.device)

    def validation_step(self, batch: PromptBatch, batch_idx: int) -> dict[str, Rollouts]:
        """Draw responses as in training, by numbers that are the same in every validation, and rate them."""
        return self._measure(batch, batch_idx)

    def test_step(self, batch: PromptBatch, batch_idx: int) -> dict[str, Rollouts]:
        """The same for the test split."""
        return self._measure(batch, batch_idx)

    def _measure(self, batch: PromptBatch, batch_idx: int) -> dict[str, Rollouts]:
        generator = torch.Generator(self.device).manual_seed(self.seed_of(batch_idx, -2 - self.global_rank))
        rollouts = self.respond(batch, num_samples=self.num_samples, sample=True, generator=generator)
        self.rate(rollouts)
        assert self._means is not None  # an evaluation has begun
        number = torch.tensor(float(len(rollouts.texts)))
        sums = {name: (value * number, number) for name, value in self._shown(rollouts).items()}
        for name, scores in rollouts.rewards.items():
            counts = ~scores.isnan()
            sums[f"reward_{name}"] = torch.where(counts, scores, 0.0).sum(), counts.sum().float()
        self._means.update({name: (total.to(self.device), weight.to(self.device)) for name, (total, weight) in sums.items()})
        return {"rollouts": rollouts}

    def on_validation_epoch_end(self) -> None:
        """Log the means."""
        self._log_means("val")

    def on_test_epoch_end(self) -> None:
        """Log the means."""
        self._log_means("test")

    def _log_means(self, stage: Stage) -> None:
        assert self._means is not None  # an evaluation has begun
        for name, value in self._means.values().items():
            if not bool(value.isnan()):  # a dimension that no item asks for
                self.log(f"{stage}/{name}", value, prog_bar=name == "reward", sync_dist=True)


def _rated(rollouts: Rollouts) -> Tensor:
    if rollouts.reward is None:
        raise ValueError("these responses were not rated yet: call rate()")
    return rollouts.reward


def _log_ratio(rollouts: Rollouts) -> Tensor:
    """Log-ratio of the responses to the policy that training started from, (S,), in nats: its mean is a KL divergence."""
    if rollouts.reference_log_prob is None:
        raise ValueError("these responses have no log-probabilities under the reference policy")
    return (rollouts.log_prob - rollouts.reference_log_prob).sum(1)


def _pairs(rollouts: Rollouts) -> tuple[Tensor, Tensor]:
    """Every two responses of an item, (P,) each; every item has equally many."""
    number = len(rollouts) // rollouts.num_items
    first, second = torch.combinations(torch.arange(number), 2).to(rollouts.item.device).unbind(1)
    start = torch.arange(rollouts.num_items, device=first.device)[:, None] * number
    return (start + first).flatten(), (start + second).flatten()


def items_of(batch: PromptBatch, index: list[int]) -> PromptBatch:
    """Some items of a batch."""
    part = PromptBatch()
    for name, value in batch.items():
        if isinstance(value, Tensor):
            part[name] = value[torch.tensor(index, device=value.device)]  # type: ignore[literal-required]
        elif isinstance(value, dict):
            part[name] = {key: [values[i] for i in index] for key, values in value.items()}  # type: ignore[literal-required]
        else:
            part[name] = [value[i] for i in index]  # type: ignore[literal-required, index]
    return part
