"""What `pcm.py` trains: a base, experts and reward models of the small language of styles, and mixtures of the experts."""

from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from quiet_runs import adamw, quiet_trainer
from torch import Tensor

from pluralign.datamodules import (
    LoaderConfig,
    StyleGrammarDataModule,
    StyleGrammarPairsDataModule,
    TextConfig,
)
from pluralign.datamodules.datasets.style_grammar import AXES, DIMENSIONS, judge
from pluralign.datamodules.prompts import PromptLoaderConfig
from pluralign.inference import CheckpointReward
from pluralign.models import PCM, AutoregressiveRM, BackboneConfig, BradleyTerryRM, ExpertsConfig, LoRAConfig

__all__ = ["METHODS", "SINGLE", "TRAINED", "Budget", "Shown", "Workshop", "shown"]

TEXT = TextConfig(tokenizer="words")
SHAPE = {
    "model_type": "llama",
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "bos_token_id": None,
}
REWARD_SHAPE = {**SHAPE, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
MOST_TOKENS = 32
OWN_RATE, HEAD_RATE = 1e-3, 1e-2
"""Learning rates of a whole control network; of a head alone, or static weights."""
UNREADABLE = -10.0
"""Reward of a response without text."""
SINGLE = {
    f"the {axis} expert alone": {f"{axis}.{pole}": 1.0 for pole in poles} for axis, poles in AXES.items()
}
METHODS: dict[str, dict[str, Any]] = {
    "PCM, network of its own": {"own": True},
    "PCM, head on the base": {},
    "static weights": {"baseline": "static"},
    "uniform": {"baseline": "uniform"},
    "product soup": {"baseline": "product_soup"},
    "factor soup": {"baseline": "factor_soup"},
    "geometric (MOD)": {"baseline": "geometric"},
    "forward KL": {"baseline": "forward_kl"},
    "base, prompted": {"baseline": "prompting"},
    **{title: {"baseline": "fixed", "expert_weights": weights} for title, weights in SINGLE.items()},
}
"""Settings of each method; the first three are trained."""
TRAINED = 3


class Budget(NamedTuple):
    """Steps of everything."""

    base: int = 600
    expert: int = 160
    reward: int = 100
    rounds: int = 24
    """Of a mixture: responses are written, rated and learned from."""
    items: int = 64
    """Of a round."""
    test_prompts: int = 48
    """Held out, as the combinations of styles are."""


class Shown(NamedTuple):
    """What a method's responses show, by the rules of the language."""

    shares: Tensor
    """(N, 3): share of the style that was asked for on each axis, mean over responses of an item."""
    by_dimension: dict[str, float]
    """Mean share of each dimension, of the items that ask for it."""
    malformed: float
    tokens: float
    """Mean length of a response."""
    entropy: float | None
    """Mean entropy of the experts' weights over tokens, in nats; None where they are not mixed."""


class Workshop:
    """Trains and measures; keeps base, experts and reward models of a seed in a folder. Processes share it."""

    def __init__(self, folder: Path, seed: int, budget: Budget) -> None:
        """Name them.

        Args:
            folder: Of files.
            seed: Of base, experts and reward models.
            budget: Steps.
        """
        self.folder, self.seed, self.budget = folder / f"seed-{seed}", seed, budget
        self.cache = str(folder / "cache")

    # What is mixed -------------------------------------------------------------------------------------

    def train_base(self) -> None:
        """Train the base, and write it."""
        backbone = BackboneConfig(config=SHAPE, tokenizer="words")
        self._write("base", backbone, None, self.budget.base, 48, 3e-3)

    def train_expert(self, dimension: str) -> float:
        """Train expert and reward model of a style, and write them; the reward model's accuracy on new pairs."""
        backbone = self.base(lora=LoRAConfig(rank=8, alpha=16))
        self._write(dimension, backbone, dimension, self.budget.expert, 32, 5e-3)
        return self._reward(dimension)

    def base(self, **settings: Any) -> BackboneConfig:  # noqa: ANN401  fields of several types
        """The base that was written, as a backbone."""
        return BackboneConfig(name=str(self.folder / "base"), tokenizer="words", **settings)

    def _pairs(self, steps: int, size: int, **settings: Any) -> StyleGrammarPairsDataModule:  # noqa: ANN401  likewise
        return StyleGrammarPairsDataModule(
            num_train=steps * size,
            num_validation=128,
            seed=self.seed,
            merged_tokens=0,
            text=TEXT,
            cache_dir=self.cache,
            loader=LoaderConfig(batch_size=size, max_tokens=None, seed=self.seed),
            **settings,
        )

    def _write(
        self, name: str, backbone: BackboneConfig, dimension: str | None, steps: int, size: int, rate: float
    ) -> None:
        """Imitate writers, and write the language model or its adapter."""
        L.seed_everything(self.seed, verbose=False)
        module = AutoregressiveRM(
            backbone, ranking=0.0, imitation=1.0, optimizer=adamw(rate), lr_scheduler=one_cycle(rate, steps)
        )
        quiet_trainer(steps).fit(module, self._pairs(steps, size, dimension=dimension))
        module.save_language_model(self.folder / name)

    def _reward(self, dimension: str) -> float:
        """A reward model of one style, trained on pairs that differ in it alone."""
        L.seed_everything(self.seed, verbose=False)
        steps, rate = self.budget.reward, 3e-3
        module = BradleyTerryRM(
            BackboneConfig(config=REWARD_SHAPE, tokenizer="words"),
            optimizer=adamw(rate),
            lr_scheduler=one_cycle(rate, steps),
        )
        trainer = quiet_trainer(steps, validates=True)
        data = self._pairs(steps, 32, dimension=dimension, spurious=0.0, wishes="unsaid")
        trainer.fit(module, data)
        (found,) = trainer.validate(module, data, verbose=False)
        trainer.save_checkpoint(self.folder / f"{dimension}.ckpt", weights_only=True)
        return found["val/accuracy"]

    # Mixtures ------------------------------------------------------------------------------------------

    def data(self, seed: int) -> StyleGrammarDataModule:
        """Prompts: training has six combinations of styles, test the other two."""
        data = StyleGrammarDataModule(
            text=TEXT,
            num_test=self.budget.test_prompts,
            loader=PromptLoaderConfig(batch_size=self.budget.items, seed=seed),
        )
        data.setup()
        return data

    def mixture(self, seed: int, *, own: bool = False, **settings: Any) -> PCM:  # noqa: ANN401  settings of several types
        """A mixture, before training.

        Args:
            seed: Of its draws.
            own: Whether the control network is one of its own, which begins as the base, and all of it is trained.
            **settings: Of :class:`PCM`.
        """
        L.seed_everything(seed, verbose=False)
        adapters = {name: str(self.folder / name) for name in DIMENSIONS}
        beneath = self.base(frozen=True) if own else None
        return PCM(
            self.base() if own else self.base(frozen=True),
            experts=ExpertsConfig(base=beneath, adapters=adapters),
            rewards={
                name: CheckpointReward(str(self.folder / f"{name}.ckpt"), unscored=UNREADABLE)
                for name in DIMENSIONS
            },
            max_new_tokens=MOST_TOKENS,
            optimizer=adamw(OWN_RATE if own else HEAD_RATE),
            rollout_dir=str(self.folder / f"rollouts-{seed}-{own}-{settings.get('baseline')}"),
            seed=seed,
            **settings,
        )

    def train(self, mixture: PCM, data: StyleGrammarDataModule, *callbacks: L.Callback) -> PCM:
        """Learn the weights from the reward models."""
        trainer = L.Trainer(
            max_epochs=1,
            limit_train_batches=self.budget.rounds,
            limit_val_batches=0,
            accelerator="cpu",
            logger=False,
            callbacks=list(callbacks),
            enable_progress_bar=False,
            enable_checkpointing=False,
            enable_model_summary=False,
        )
        trainer.fit(mixture, data)
        return mixture


def one_cycle(rate: float, steps: int) -> Any:  # noqa: ANN401  what makes a scheduler
    """A learning rate that rises for a tenth of the steps, and falls."""
    return lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=steps, pct_start=0.1
    )


def shown(
    mixture: PCM, data: StyleGrammarDataModule, seed: int, split: str = "test", samples: int = 2
) -> Shown:
    """What responses to all items of a split show, drawn at temperature 1.

    Args:
        mixture: Who writes.
        data: The items.
        seed: Of the draws.
        split: Which.
        samples: Responses to an item.
    """
    mixture.prompt_source = data
    mixture.configure_model()
    generator = torch.Generator().manual_seed(seed)
    shares, wanted, tokens, entropies = [], [], [], []
    for batch in data.batches(split, batch_size=128):
        rollouts = mixture.respond(batch, num_samples=samples, sample=True, generator=generator)
        found = judge([str(batch["prompt"][item]) for item in rollouts.item.tolist()], rollouts.texts)
        asked = found[batch["wanted"][rollouts.item]].reshape(len(batch["id"]), samples, len(AXES))
        shares.append(asked)
        wanted.append(batch["wanted"])
        tokens.append(rollouts.lengths.float())
        entropies += [float(value) for value in mixture.measures(rollouts).values()]
    every, items = torch.cat(shares), torch.cat(wanted)
    of_item = every.mean(1)
    of_dimension = of_item.repeat_interleave(2, dim=1)  # an axis has two poles
    by_dimension = {
        name: float(of_dimension[items[:, place], place].mean()) for place, name in enumerate(DIMENSIONS)
    }
    return Shown(
        of_item,
        by_dimension,
        float((every.sum(-1) == 0).float().mean()),
        float(torch.cat(tokens).mean()),
        sum(entropies) / len(entropies) if entropies else None,
    )
