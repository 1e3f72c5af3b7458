"""RespondingModule: a module that writes responses to prompts, and has rewards rate them."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Unpack

import torch
from torch import Tensor

from pluralign.datamodules.checks import check_choices, check_range
from pluralign.datamodules.prompt_batch import PromptBatch, PromptSource, RewardFunction

from ._loader_sums import Means
from ._ratings import Ratings, combined, rate, reward_identity
from .backbone import BackboneConfig
from .base import BaseModule, ModuleSettings, datamodule_of
from .rollouts import ReferenceAnswer, Rollouts, RolloutStore, items_of
from .sharding import gathered

if TYPE_CHECKING:
    from transformers import GenerationConfig
    from transformers.generation.streamers import BaseStreamer

__all__ = ["RespondingModule", "RespondingSettings", "log_ratio", "rated"]

Stage = Literal["val", "test"]


class RespondingSettings(ModuleSettings, total=False):
    """What every module that writes responses takes; :class:`RespondingModule` says what it means."""

    rewards: Mapping[str, RewardFunction] | None
    reference: Literal["greedy", "none"]
    num_samples: int
    kl_weight: float
    missing_end_reward: float | None
    max_new_tokens: int
    temperature: float
    seed: int


class RespondingModule(BaseModule, ABC):
    """Base of modules that write responses; a subclass writes :meth:`respond`, :meth:`reference_answers`, ``configure_model``.

    Validation and test draw responses as training does, rate them, and log means of rewards, lengths and log-ratios.

    Attributes:
        prompt_source: Data that give prompts; the trainer's, unless it is set.
    """

    not_saved: ClassVar[tuple[str, ...]] = ("rewards",)
    sharded_entries: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        backbone: BackboneConfig | Mapping[str, Any],
        *,
        rewards: Mapping[str, RewardFunction] | None = None,
        reference: Literal["greedy", "none"] = "greedy",
        num_samples: int = 2,
        kl_weight: float = 0.0,
        missing_end_reward: float | None = None,
        max_new_tokens: int = 64,
        temperature: float = 1.0,
        seed: int = 0,
        **settings: Unpack[ModuleSettings],
    ) -> None:
        """Keep the settings; builds no weights and reads no file.

        Args:
            backbone: Which network, in which state; a mapping of its fields also does.
            rewards: Functions that rate responses, by name; a class with its arguments (``class_path``, ``init_args``) or
                the import path of a function. Needed to train and to validate, not to write responses.
            reference: ``greedy``: the reward is the mean probability, over what counts, of beating an answer that is
                written once for every item without sampling, by what the method starts from; ``none``: the mean of the
                rewards themselves.
            num_samples: Responses to every item in training and evaluation, >= 2; every two of an item are compared.
            kl_weight: What a nat of a response's log-ratio to the reference policy takes from its reward, >= 0.
            missing_end_reward: Reward of a response that does not end within ``max_new_tokens``; None for its own.
            max_new_tokens: Longest response, >= 1.
            temperature: Of sampling, > 0; of a mixture that of every expert, before they are mixed.
            seed: Of sampling, with the number of the round or batch.
            **settings: As :class:`BaseModule` has them.

        Raises:
            ValueError: If a setting is outside its range.
        """
        super().__init__(backbone, **settings)
        check_choices(RespondingModule.__init__, reference=reference)
        check_range("num_samples", num_samples, at_least=2)
        check_range("max_new_tokens", max_new_tokens, at_least=1)
        check_range("temperature", temperature, above=0)
        check_range("kl_weight", kl_weight, at_least=0)
        check_range("seed", seed, at_least=0)
        self.rewards = dict(rewards or {})
        self.reference: Literal["greedy", "none"] = reference
        self.num_samples, self.kl_weight, self.missing_end_reward = num_samples, kl_weight, missing_end_reward
        self.max_new_tokens, self.temperature, self.seed = max_new_tokens, temperature, seed
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
        streamer: "BaseStreamer | None" = None,
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
    def reference_answers(self, batch: PromptBatch) -> Rollouts:
        """The answer to every item that rewards are relative to, written without sampling."""

    def measures(self, rollouts: Rollouts) -> dict[str, Tensor]:
        """What else is logged of responses, a scalar by name, weighed by their number; nothing, unless overridden."""
        return {}

    def description(self) -> dict[str, object]:
        """What decides the responses of a round, and what is said of them, beside weights, items and seed."""
        names = (
            "max_new_tokens",
            "temperature",
            "seed",
            "num_samples",
            "reference",
            "kl_weight",
            "missing_end_reward",
        )
        config, base = self.backbone_config, self.base_identity() or {}
        return {
            **{name: getattr(self, name) for name in names},
            "rewards": {name: reward_identity(reward) for name, reward in self.rewards.items()},
            "backbone": {
                **{name: getattr(config, name) for name in ("config", "dtype", "quantization")},
                "lora": None if config.lora is None else asdict(config.lora),
                "files": base.get("digest") or [base.get("name"), base.get("revision")],
            },
        }

    # Data ----------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Check the trainer; what rewards said of reference answers before is forgotten, for they may be others now."""
        super().setup(stage)
        self._store = None
        self._reference_rewards.clear()

    @property
    def prompt_source(self) -> PromptSource:
        """Data that give prompts.

        Raises:
            TypeError: If the trainer's data do not.
        """
        if self._source is not None:
            return self._source
        data = datamodule_of(self.attached_trainer)
        if not isinstance(data, PromptSource):
            raise TypeError(
                f"{type(self).__name__} writes responses to prompts, and {type(data).__name__} gives none: use a data module "
                "of prompts, such as PersonalizedPromptsDataModule, or set prompt_source"
            )
        return data

    @prompt_source.setter
    def prompt_source(self, source: PromptSource | None) -> None:
        self._source = source

    def check_tokens(self, batch: PromptBatch, vocabularies: Mapping[str, int | None]) -> None:
        """Make sure that networks have the tokens of prompts; an index error would say so late, and a GPU would stop for good.

        Args:
            batch: Items.
            vocabularies: Sizes, by what networks are called; None where one is not known.

        Raises:
            ValueError: If one has not.
        """
        rows = [batch["input_ids"], *(batch[name] for name in ("plain_ids", "own_ids") if name in batch)]
        largest = max(self.prompt_source.end_id, *(int(ids.max()) for ids in rows if ids.numel()))
        for name, size in vocabularies.items():
            if size is not None and largest >= size:
                raise ValueError(
                    f"token id {largest} of a prompt is outside the vocabulary of {name}, {size}: data.text.tokenizer and {name} do "
                    "not belong together"
                )

    def texts_of(self, tokens: Tensor, lengths: Tensor) -> list[str]:
        """Responses as text; of tokens, (S, T), and how many each has, (S,)."""
        rows = zip(tokens.tolist(), lengths.tolist(), strict=True)
        return self.prompt_source.decode([row[:length] for row, length in rows])

    def decoding(self, sample: bool) -> "GenerationConfig":
        """How tokens are chosen: drawn from the policy itself, or the likeliest; sources have the temperature."""
        from transformers import GenerationConfig

        source = self.prompt_source
        return GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            do_sample=sample,
            eos_token_id=source.end_id,
            pad_token_id=source.pad_id,
        )

    def seed_of(self, number: int, rank: int) -> int:
        """Seed of draws; of a round, or of a batch of an evaluation, on a rank."""
        return int.from_bytes(hashlib.sha256(f"{self.seed} {number} {rank}".encode()).digest()[:7], "big")

    # Rewards -------------------------------------------------------------------------------------------

    def rate(self, rollouts: Rollouts) -> None:
        """Have the rewards rate responses, and put what they say together; kept in the rollouts.

        Raises:
            ValueError: If there are no rewards, or one is not finite.
        """
        if not self.rewards:
            raise ValueError(
                f"{type(self).__name__} has no rewards to rate responses with: set model.rewards"
            )
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
            reward = reward - self.kl_weight * log_ratio(rollouts)
        rollouts.reward = reward

    def _ratings(self, rollouts: Rollouts) -> Ratings:
        dimensions = self.prompt_source.dimensions
        return rate(self.rewards, rollouts.prompts, rollouts.item, rollouts.texts, dimensions)

    def ratings_by(self, rewards: Mapping[str, RewardFunction], rollouts: Rollouts) -> Tensor:
        """What other rewards than the module's own say of responses, (S, K) float32; NaN where one does not count."""
        dimensions = self.prompt_source.dimensions
        return rate(rewards, rollouts.prompts, rollouts.item, rollouts.texts, dimensions).scores

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
                self._store.add_references(self._round_number(), self.global_rank, new)
        return torch.stack([known[key] for key in keys])

    def _round_number(self) -> int:
        """Of the round that new reference answers belong to."""
        return 0

    def _answer(self, answers: Rollouts, scores: Tensor, place: int) -> ReferenceAnswer:
        tokens = answers.tokens[place, : int(answers.lengths[place])].tolist()
        rewards = dict(zip(self.rewards, scores[place].tolist(), strict=True))
        return ReferenceAnswer(answers.texts[place], tuple(tokens), bool(answers.finished[place]), rewards)

    def _shown(self, rollouts: Rollouts) -> dict[str, Tensor]:
        """Means over responses that are logged."""
        values = {"reward": rated(rollouts), "length": rollouts.lengths, "finished": rollouts.finished}
        if rollouts.reference_log_prob is not None:
            values["kl"] = log_ratio(rollouts)
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
        with gathered(self):  # ranks write as many tokens as their responses have
            rollouts = self.respond(batch, num_samples=self.num_samples, sample=True, generator=generator)
            self.rate(rollouts)
        assert self._means is not None  # an evaluation has begun
        number = torch.tensor(float(len(rollouts.texts)))
        sums = {name: (value * number, number) for name, value in self._shown(rollouts).items()}
        for name, scores in rollouts.rewards.items():
            counts = ~scores.isnan()
            sums[f"reward_{name}"] = torch.where(counts, scores, 0.0).sum(), counts.sum().float()
        self._means.update(
            {name: (total.to(self.device), weight.to(self.device)) for name, (total, weight) in sums.items()}
        )
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


def rated(rollouts: Rollouts) -> Tensor:
    """The reward of responses, (S,).

    Raises:
        ValueError: If they were not rated.
    """
    if rollouts.reward is None:
        raise ValueError("these responses were not rated yet: call rate()")
    return rollouts.reward


def log_ratio(rollouts: Rollouts) -> Tensor:
    """Log-ratio of the responses to the policy that training started from, (S,), in nats: its mean is a KL divergence."""
    if rollouts.reference_log_prob is None:
        raise ValueError("these responses have no log-probabilities under the reference policy")
    return (rollouts.log_prob - rollouts.reference_log_prob).sum(1)
