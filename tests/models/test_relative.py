"""The engine of rounds, on a policy small enough to be looked through: one table of logits for every place of a response."""

from typing import ClassVar

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from pluralign.models.relative import RolloutModule
from pluralign.models.responding import log_ratio
from pluralign.models.rollouts import Rollouts, RolloutStore

VOCABULARY, END = 6, 1


class Prompts(L.LightningDataModule):
    """Eight items in batches of four; half of them ask for many threes, half for many fours."""

    name = "prompts"
    dimensions = ("likes.threes", "likes.fours")
    axes: ClassVar = {"likes": ("threes", "fours")}
    splits, pad_id, end_id = ("train", "validation", "test"), 0, END

    def text_format(self):
        return {}

    def decode(self, responses):
        return [" ".join(str(token) for token in response if token != END) for response in responses]

    def pieces(self, response):
        return [str(token) for token in response]

    def batch(self, items):
        fours = torch.tensor([item % 2 == 1 for item in items])
        rows = torch.tensor([[3, item % 5 + 1] for item in items])
        return {
            "id": [f"item-{item}" for item in items],
            "item_key": torch.tensor(items),
            "prompt": [f"prompt {item}" for item in items],
            "preference": [(self.dimensions[int(four)],) for four in fours],
            "wanted": torch.stack([~fours, fours], 1),
            "input_ids": rows,
            "attention_mask": torch.ones_like(rows),
            "columns": {},
        }

    def train_dataloader(self):
        return DataLoader(range(8), batch_size=4, collate_fn=self.batch)

    val_dataloader = test_dataloader = train_dataloader


class Table(RolloutModule):
    """Draws every token from a softmax that depends on which dimension is asked for alone."""

    def configure_model(self):
        if not hasattr(self, "logits"):
            self.logits = nn.Parameter(torch.zeros(2, VOCABULARY))
            self.written = 0

    def _tokens(self, batch):
        return batch["wanted"].to(self.logits.dtype) @ self.logits  # (N, V)

    @torch.no_grad()
    def respond(self, batch, *, num_samples=1, sample=False, generator=None, config=None, streamer=None):
        self.written += 1
        item = torch.arange(len(batch["id"])).repeat_interleave(num_samples)
        scores = self._tokens(batch)[item].log_softmax(-1)
        tokens = torch.multinomial(scores.exp(), self.max_new_tokens, replacement=True, generator=generator)
        ends = tokens == END
        lengths = torch.where(ends.any(1), ends.int().argmax(1) + 1, self.max_new_tokens)
        mask = torch.arange(self.max_new_tokens) < lengths[:, None]
        log_prob = torch.where(mask, scores.gather(1, tokens), 0.0)
        return Rollouts(
            prompts=batch,
            item=item,
            tokens=tokens.masked_fill(~mask, 0),
            lengths=lengths,
            finished=ends.any(1),
            log_prob=log_prob,
            texts=self.texts_of(tokens, lengths),
            reference_log_prob=torch.where(mask, -torch.log(torch.tensor(float(VOCABULARY))), 0.0),
        )

    def reference_answers(self, batch):
        return self.respond(batch, generator=torch.Generator().manual_seed(5))

    def log_probs(self, rollouts):
        scores = self._tokens(rollouts.prompts)[rollouts.item].log_softmax(-1)
        return torch.where(rollouts.mask, scores.gather(1, rollouts.tokens), 0.0)


def share_of(digit):
    def reward(prompts, responses, columns):
        return [text.count(digit) / 6 for text in responses]

    return reward


REWARDS = {"likes.threes": share_of("3"), "likes.fours": share_of("4")}


@pytest.fixture
def module():
    def build(**settings):
        given = {
            "rewards": REWARDS,
            "max_new_tokens": 6,
            "optimizer": lambda p: torch.optim.Adam(p, lr=0.1),
            **settings,
        }
        return Table({"config": {"model_type": "llama"}}, **given)

    return build


@pytest.fixture
def fit(tmp_path):
    def run(module, data=None, path=None, **settings):
        trainer = L.Trainer(
            default_root_dir=tmp_path,
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
            logger=False,
            enable_checkpointing=settings.pop("enable_checkpointing", False),
            **{"max_epochs": 1, "limit_val_batches": 0, **settings},
        )
        trainer.fit(module, datamodule=data or Prompts(), ckpt_path=path, weights_only=True)
        return trainer

    return run


def test_each_preference_gets_what_it_likes(module, fit):
    policy = module(reference="none")
    trainer = fit(policy, max_epochs=15, limit_val_batches=None)
    probabilities = policy.logits.detach().softmax(-1)
    assert probabilities[0, 3] > 0.5 and probabilities[1, 4] > 0.5
    assert trainer.callback_metrics["val/reward"] > 0.4  # a table of equal numbers has 0.1
    assert trainer.callback_metrics["val/kl"] > 0.1
    assert trainer.callback_metrics["val/reward_likes.threes"] > 0.4


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_step_does_not_depend_on_the_scale_of_the_reward(module, fit, scale):
    rewards = {
        name: lambda *given, one=one: [scale * each for each in one(*given)] for name, one in REWARDS.items()
    }
    policy = module(rewards=rewards, reference="none", num_epochs=1)
    fit(policy, max_steps=1)
    plain = module(reference="none", num_epochs=1)
    fit(plain, max_steps=1)
    torch.testing.assert_close(policy.logits, plain.logits, rtol=1e-3, atol=1e-5)


def test_what_is_logged_of_a_round(module, fit):
    policy = module(reference="none", step_size=0.5, num_epochs=2, batch_size=2)
    trainer = fit(policy, limit_train_batches=1)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert trainer.global_step == 4 and int(policy.num_rounds) == 1
    assert logged["train/eta"] * logged["train/reward_spread"] == pytest.approx(0.5, rel=1e-5)
    assert logged["train/step_size"] == pytest.approx(0.5, rel=1e-5)
    assert logged["train/kl"] == pytest.approx(0.0, abs=1e-6)
    assert 1 <= logged["train/length"] <= 6 and 0 <= logged["train/finished"] <= 1


def test_a_ratio_is_one_before_the_first_step(module):
    policy = module()
    policy.configure_model()
    policy.prompt_source = Prompts()
    rollouts = policy.respond(Prompts().batch([0, 1, 2]), num_samples=3, sample=True)
    torch.testing.assert_close(policy.log_probs(rollouts).detach(), rollouts.log_prob, rtol=0, atol=1e-6)
    policy.rate(rollouts)
    first = torch.tensor([0, 0, 1, 3, 3, 4, 6, 6, 7])
    second = torch.tensor([1, 2, 2, 4, 5, 5, 7, 8, 8])
    gaps = rollouts.reward[first] - rollouts.reward[second]
    assert policy.relative_loss(rollouts, 2.0).item() == pytest.approx(
        float((2 * gaps).square().mean()), rel=1e-5
    )


def test_rewards_are_relative_lessened_by_kl_and_replaced_where_a_response_does_not_end(module):
    policy = module(missing_end_reward=-1.0)
    policy.configure_model()
    policy.prompt_source = Prompts()
    batch = Prompts().batch([0, 1])
    rollouts = policy.respond(batch, num_samples=4, sample=True, generator=torch.Generator().manual_seed(0))
    policy.rate(rollouts)
    assert bool((rollouts.reward[~rollouts.finished] == -1).all()) and bool((~rollouts.finished).any())
    reference = torch.stack([*rollouts.reference_rewards.values()], 1)[rollouts.item]
    scores = torch.stack([*rollouts.rewards.values()], 1)
    asked = batch["wanted"][rollouts.item]
    assert bool((scores.isnan() == ~asked).all())
    expected = (scores[asked] - reference[asked]).sigmoid()
    torch.testing.assert_close(rollouts.reward[rollouts.finished], expected[rollouts.finished])
    policy.kl_weight, policy.missing_end_reward = 0.5, None
    rollouts.reference_log_prob = rollouts.log_prob - 0.25 * rollouts.mask
    policy.rate(rollouts)
    torch.testing.assert_close(rollouts.reward, expected - 0.5 * 0.25 * rollouts.lengths)
    torch.testing.assert_close(log_ratio(rollouts), 0.25 * rollouts.lengths)


def test_a_round_that_was_written_is_used_again_and_one_of_other_weights_is_not(module, fit, tmp_path):
    whole = module(rollout_dir=str(tmp_path / "rounds"))
    fit(whole)
    assert whole.written == 2 + 2  # two rounds, and their references
    again = module(rollout_dir=str(tmp_path / "rounds"))
    fit(again)
    assert again.written == 0
    assert torch.equal(again.logits, whole.logits)
    other = module(rollout_dir=str(tmp_path / "rounds"))
    other.configure_model()
    with torch.no_grad():
        other.logits += torch.arange(VOCABULARY) / 10
    fit(other, limit_train_batches=1)
    assert other.written == 1, "the references do not depend on the weights"


def test_a_round_that_other_rewards_have_rated_is_written_anew(module, fit, tmp_path):
    """The names are the same, and what a function counts, or what an object says of itself, is not."""

    class Told:
        identity = "one"

        def __call__(self, prompts, responses, columns):
            return [text.count("5") for text in responses]

    folder, told = str(tmp_path / "rounds"), Told()
    for changed in ({}, {"likes.fours": share_of("5")}, {"likes.fours": told}):
        policy = module(rollout_dir=folder, rewards={**REWARDS, **changed})
        fit(policy)
        assert policy.written == 2 + 2, "both rounds and their references"
    told.identity = "two"
    other = module(rollout_dir=folder, rewards={**REWARDS, "likes.fours": told})
    fit(other)
    same = module(rollout_dir=folder, rewards={**REWARDS, "likes.fours": told})
    fit(same)
    assert (other.written, same.written) == (4, 0)


def test_references_of_an_evaluation_are_of_its_rewards(module, fit):
    policy = module()
    trainer = fit(policy, max_steps=1)
    trainer.test(policy, datamodule=Prompts(), verbose=False)
    before = trainer.callback_metrics["test/reward"]
    policy.rewards = {
        name: lambda *given, one=one: [each + 9 for each in one(*given)] for name, one in REWARDS.items()
    }
    trainer.test(policy, datamodule=Prompts(), verbose=False)
    torch.testing.assert_close(trainer.callback_metrics["test/reward"], before)


def test_a_run_goes_on_as_if_it_had_not_been_interrupted(module, fit, tmp_path):
    whole = module()
    fit(whole, max_epochs=2)
    half = module()
    trainer = fit(half, max_epochs=1)
    path = tmp_path / "half.ckpt"
    trainer.save_checkpoint(path)
    resumed = module()
    fit(resumed, path=path, max_epochs=2)
    assert int(resumed.num_rounds) == int(whole.num_rounds) == 4
    assert torch.equal(resumed.logits, whole.logits)


def test_rewards_are_no_hyperparameters(module):
    assert "rewards" not in module().hparams and module(step_size=0.5).hparams["step_size"] == 0.5


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_samples": 1}, "num_samples must be finite and >= 2"),
        ({"eta": 0.0}, "eta must be finite and > 0"),
        ({"temperature": 0.0}, "temperature must be finite and > 0"),
        ({"reference": "best"}, "reference"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be finite and > 0"),
    ],
)
def test_settings_off_range(module, settings, words):
    with pytest.raises(ValueError, match=words):
        module(**settings)


def test_a_fit_without_rewards_or_prompts_says_what_to_set(module, fit):
    with pytest.raises(ValueError, match=r"set model\.rewards"):
        fit(module(rewards=None))
    loaders = L.LightningDataModule()
    loaders.train_dataloader = loaders.val_dataloader = Prompts().train_dataloader
    with pytest.raises(TypeError, match="use a data module of prompts"):
        fit(module(), loaders)


def test_the_store_is_where_the_run_is(module, fit, tmp_path):
    fit(module(), limit_train_batches=1)
    assert isinstance(RolloutStore(tmp_path / "rollouts", {}), RolloutStore)
    assert len(list((tmp_path / "rollouts").glob("*.parquet"))) == 2


def test_gradients_that_are_scaled_are_not_clipped(module, trainer):
    policy = module()
    policy.trainer = trainer()
    policy.trainer.strategy.precision_plugin.precision = "16-mixed"
    with pytest.raises(ValueError, match=r"trainer\.precision='16-mixed' scales losses"):
        policy.setup("fit")
